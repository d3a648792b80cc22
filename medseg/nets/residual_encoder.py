"""The residual encoder U-Net: most of the work on the way down, little on the way up."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.nets.blocks import SLOPE, ConvNorm, Triple, initialise
from medseg.nets.padding import PadToMultiple
from medseg.nets.supervision import supervised
from medseg.nets.table import NetSpec, net
from medseg.types import Image, Logits

_BLOCKS = (1, 3, 4, 6, 6, 6)
_FEWEST_STAGES = 2


class BlockMean(nn.AvgPool3d):
    """`torch.nn.AvgPool3d` of blocks side by side, which also obeys ``torch.use_deterministic_algorithms`` on CUDA.

    There the gradient of PyTorch's own is summed in any order, and refused in deterministic mode.
    """

    def forward(self, x: Float[Tensor, "b c i j k"]) -> Float[Tensor, "b c _ _ _"]:
        """Average over each block."""
        if x.is_cuda and torch.are_deterministic_algorithms_enabled():
            return block_mean(x, self.stride)  # type: ignore[arg-type]  # three numbers, as it is built here
        return super().forward(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a short cut that averages where the stride skips (ResNet-D).

    Paper: He et al. 2019, Bag of tricks, arXiv:1812.01187.
    """

    def __init__(self, channels: tuple[int, int], kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.first = ConvNorm(channels, kernel, stride=stride)
        self.second = ConvNorm((channels[1], channels[1]), kernel, activate=False)
        self.short_cut = nn.Sequential()
        if stride != (1, 1, 1):
            self.short_cut.append(BlockMean(stride, stride))
        if channels[0] != channels[1]:
            self.short_cut.append(ConvNorm(channels, (1, 1, 1), activate=False))
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "b c_in _ _ _"]) -> Float[Tensor, "b c_out _ _ _"]:
        """Add what the convolutions find to what came in."""
        out: Tensor = self.activation(self.second(self.first(x)) + self.short_cut(x))
        return out

    def reset(self) -> None:
        """Start as the short cut alone."""
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]  # Sequential's index is typed as any module


class ResidualEncoderUNet(nn.Module):
    """A residual encoder and a decoder of one convolution per stage, on the plan's strides and kernels."""

    def __init__(self, spec: NetSpec, blocks: list[int], *, upsampling_bias: bool = False) -> None:
        super().__init__()
        widths, kernels, strides = spec.features, spec.kernels, spec.strides
        self.stem = ConvNorm((spec.in_channels, widths[0]), kernels[0])
        self.encoder = nn.ModuleList()
        before = widths[0]
        for width, kernel, stride, count in zip(widths, kernels, strides, blocks, strict=True):
            stage = [ResidualBlock((before, width), kernel, stride)]
            stage += [ResidualBlock((width, width), kernel, (1, 1, 1)) for _ in range(count - 1)]
            self.encoder.append(nn.Sequential(*stage))
            before = width
        levels = range(len(widths) - 2, -1, -1)
        self.decoder = nn.ModuleList([ConvNorm((2 * widths[at], widths[at]), kernels[at]) for at in levels])
        self.upsamplers = nn.ModuleList(
            [
                nn.ConvTranspose3d(widths[at + 1], widths[at], strides[at + 1], strides[at + 1], bias=upsampling_bias)
                for at in levels
            ]
        )
        self.head = nn.Conv3d(widths[0], spec.out_channels, kernel_size=1)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.reset()

    def forward(self, image: Image) -> Logits:
        """Map ``(b, m, i, j, k)`` to ``(b, c, i, j, k)``; the size must be a multiple of the strides."""
        x = self.stem(image)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for upsample, merge in zip(self.upsamplers, self.decoder, strict=True):
            x = merge(torch.cat([upsample(x), skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


def block_mean(x: Float[Tensor, "b c i j k"], block: Triple) -> Float[Tensor, "b c _ _ _"]:
    """The mean over each block of voxels; every size must be a multiple of the block's.

    Example:
        >>> block_mean(torch.arange(8.0).reshape(1, 1, 4, 2, 1), (2, 2, 1)).flatten().tolist()
        [1.5, 5.5]
    """
    (b, c, *size), (i, j, k) = x.shape, block
    return x.reshape(b, c, size[0] // i, i, size[1] // j, j, size[2] // k, k).mean(dim=(3, 5, 7))


@net
def residual_encoder_unet(
    spec: NetSpec,
    *,
    features: list[int] | None = None,
    blocks: list[int] | None = None,
    upsampling_bias: bool = False,
    deep_supervision: bool = False,
) -> nn.Module:
    """U-Net with a deep residual encoder and a light decoder, as nnU-Net recommends today (ours; MONAI lacks it).

    Where there is time to train something larger than the `unet`; `medseg.nets.cost.estimate` says how much larger.

    Args:
        spec: The plan's numbers.
        features: Channels per stage instead of the plan's.
        blocks: Residual blocks per stage of the encoder; by default 1, 3, 4, 6, 6, ...; the last number goes on.
        upsampling_bias: Give the transposed convolutions a bias, as nnU-Net does.
        deep_supervision: Return coarser levels too, in training.

    Paper: Isensee et al. 2024, nnU-Net Revisited, arXiv:2404.09556.
    """
    spec = spec.reshaped(_FEWEST_STAGES, features)
    spec.require_context("residual_encoder_unet", spec.multiple)
    stages = len(spec.strides)
    counts = list(blocks or _BLOCKS)
    counts = [*counts, *counts[-1:] * stages][:stages]
    network = ResidualEncoderUNet(spec, counts, upsampling_bias=upsampling_bias)
    decoder = list(network.decoder)[::-1]
    return PadToMultiple(supervised(network, decoder, spec) if deep_supervision else network, spec.multiple)
