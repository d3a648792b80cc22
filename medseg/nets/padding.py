"""Any input size for networks that halve their input a fixed number of times, or were built for one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812  the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.types import Image, Logits

Level = Float[Tensor, "b c _ _ _"]
"""Logits on a grid of their own."""


class PadToMultiple(nn.Module):
    """Pad the input at the far end to a multiple, run the network, crop the output back.

    The padding repeats the border voxel, so that normalised intensities stay plausible; where the input already fits,
    nothing is copied. Of a deeply supervised network's coarser levels, whose voxel ``o`` covers the input voxels
    ``o s`` to ``(o + 1) s - 1`` along an axis with stride ``s``, those voxels are kept that cover any voxel of the
    input: ``ceil(n / s)`` along an axis of ``n``, which is what ``labels[..., ::s]`` has.
    """

    def __init__(self, net: nn.Module, multiple: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.multiple = multiple

    def forward(self, image: Image) -> Logits | tuple[Level, ...]:
        """Map ``(b, m, i, j, k)`` to ``(b, c, i, j, k)``, or to a tuple of levels, the finest first."""
        target = [n + -n % m for n, m in zip(image.shape[2:], self.multiple, strict=True)]
        return run_padded(self.net, image, target)


class PadToSize(nn.Module):
    """Pad the input at the far end to the one size a network was built for, and crop the output back."""

    def __init__(self, net: nn.Module, size: tuple[int, ...], *, name: str) -> None:
        super().__init__()
        self.net = net
        self.size = size
        self.name = name

    def forward(self, image: Image) -> Logits | tuple[Level, ...]:
        """Map ``(b, m, i, j, k)`` to ``(b, c, i, j, k)``, or to a tuple of levels, the finest first.

        Raises:
            UsageError: The input is larger than the network.
        """
        if any(n > limit for n, limit in zip(image.shape[2:], self.size, strict=True)):
            raise UsageError(
                f"{self.name} was built for at most {times(self.size)} voxels, got {times(image.shape[2:])}",
                "Train and predict with the plan's patch size, or take a convolutional network",
            )
        return run_padded(self.net, image, self.size)


def run_padded(net: nn.Module, image: Image, target: Sequence[int]) -> Logits | tuple[Level, ...]:
    """Run a network on the image padded to a target size, and crop what comes out.

    Raises:
        UsageError: What comes out is not as large as what went in.
    """
    size = image.shape[2:]
    padding = [side for n, wanted in zip(reversed(size), reversed(target), strict=True) for side in (0, wanted - n)]
    padded = F.pad(image, padding, mode="replicate") if any(padding) else image
    outputs: Tensor | Sequence[Tensor] = net(padded)
    finest = outputs if isinstance(outputs, Tensor) else outputs[0]
    if finest.shape[2:] != padded.shape[2:]:
        raise UsageError(
            f"the network maps {times(padded.shape[2:])} voxels to {times(finest.shape[2:])}",
            "Take one whose output has the size of its input, such as with padded convolutions",
        )
    if isinstance(outputs, Tensor):
        return _crop(outputs, size, target)
    return tuple(_crop(level, size, target) for level in outputs)


def times(size: Sequence[int]) -> str:
    """Write a size as people do.

    Example:
        >>> times((96, 96, 64))
        '96 x 96 x 64'
    """
    return " x ".join(map(str, size))


def _crop(logits: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    i, j, k = (-(-n * own // whole) for n, own, whole in zip(size, logits.shape[2:], padded, strict=True))
    return logits[:, :, :i, :j, :k]
