"""The convolution that our own networks are made of."""

from __future__ import annotations

from torch import nn

from medseg.nets.norm import InstanceNorm3d

Triple = tuple[int, int, int]
SLOPE = 0.01
"""Of the leaky ReLU."""


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size up to its stride, instance normalisation, and leaky ReLU where asked for.

    The convolution has no bias: the normalisation would take it off again.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: Triple = (3, 3, 3),
        *,
        stride: Triple = (1, 1, 1),
        activate: bool = True,
    ) -> None:
        i, j, k = kernel
        padding = (i // 2, j // 2, k // 2)
        layers = [
            nn.Conv3d(*channels, kernel_size=kernel, stride=stride, padding=padding, bias=False),
            InstanceNorm3d(channels[1], affine=True),
        ]
        super().__init__(*layers, *([nn.LeakyReLU(SLOPE, inplace=True)] if activate else []))


def initialise(module: nn.Module) -> None:
    """Draw a convolution's weights from He's normal distribution for leaky ReLU; for `torch.nn.Module.apply`."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
