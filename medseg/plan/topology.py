"""The shape of a U-Net for a patch: where it halves, with which kernels, and how much memory its features take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, prod

from medseg.plan.plan import Triple

SMALLEST_EDGE = 4  # voxels of a feature map in the bottleneck
FIRST_FEATURES = 32
MOST_FEATURES = {3: 320, 2: 512, 1: 512}  # by the number of axes with more than one voxel
CONVOLUTIONS = 2  # per stage, on the way down and on the way up


@dataclass(frozen=True)
class Topology:
    """A U-Net for one patch size.

    Attributes:
        patch_size: Rounded up to what the strides divide.
        strides: Per stage; the first keeps the resolution.
        kernels: Per stage; 1 along an axis that is still too coarse to mix.
        first_features: Channels of the first stage.
        second_features: Channels of the second, which are doubled from there on; None for twice the first.
    """

    patch_size: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    first_features: int = FIRST_FEATURES
    second_features: int | None = None

    @property
    def features(self) -> tuple[int, ...]:
        """Channels per stage: doubled from the second, at most fivefold (320 after 64), or eightfold for pictures."""
        deeper = (min(self._second * 2**stage, self.most_features) for stage in range(len(self.strides) - 1))
        return (self.first_features, *deeper)

    @property
    def most_features(self) -> int:
        """Channels that no stage exceeds."""
        return MOST_FEATURES[len(deep_axes(self.patch_size))] * self._second // (2 * FIRST_FEATURES)

    @property
    def _second(self) -> int:
        return self.second_features or 2 * self.first_features

    @property
    def multiple(self) -> Triple:
        """What the patch is a multiple of, per axis."""
        i, j, k = (prod(stride[axis] for stride in self.strides) for axis in range(3))
        return i, j, k

    def activations(self, classes: int) -> int:
        """Numbers that the convolutions of one patch write, which is what training memory grows with.

        Σ over stages of 2 f V going down, plus (2 + 1) f V going up (two convolutions, one transposed), plus C V for
        the class scores; f features and V voxels of the stage.

        Example:
            >>> Topology((8, 8, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))).activations(2)
            91136
            >>> 5 * 32 * 8**3 + 2 * 64 * 4**3 + 2 * 8**3
            91136
        """
        total, size = 0, self.patch_size
        for stage, (features, stride) in enumerate(zip(self.features, self.strides, strict=True)):
            size = (size[0] // stride[0], size[1] // stride[1], size[2] // stride[2])
            deepest = stage == len(self.strides) - 1
            total += (CONVOLUTIONS if deepest else 2 * CONVOLUTIONS + 1) * features * prod(size)
        return total + classes * prod(self.patch_size)


def deep_axes(shape: Sequence[int | float]) -> list[int]:
    """The axes along which there is more than one voxel to convolve, halve and flip; all where there are none.

    Example:
        >>> deep_axes((512, 512, 1)), deep_axes((64, 64, 64))
        ([0, 1], [0, 1, 2])
    """
    return [axis for axis in range(3) if shape[axis] > 1] or [0, 1, 2]


def topology_for(patch_size: Sequence[int | float], spacing_mm: Sequence[float]) -> Topology:
    """Halve the axes of a patch until nothing is left to halve, the finer axes first.

    At each step those axes are halved that have at least 8 voxels left and a spacing within a factor of two of the
    finest among them; a single remaining axis needs 12. A kernel is 1 along an axis until its spacing comes within a
    factor of two of the finest, and 3 from then on and in the bottleneck; it stays 1 along an axis of one voxel.

    Args:
        patch_size: Voxels wanted; rounded up to what the strides divide.
        spacing_mm: Edge lengths of a voxel.

    Paper: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note 2.

    Example:
        >>> topology_for((36, 50, 35), (1.0, 1.0, 1.0)).patch_size
        (40, 56, 40)
        >>> topology_for((16, 16, 1), (1.0, 1.0, 0.1)).kernels
        ((3, 3, 1), (3, 3, 1), (3, 3, 1))
    """
    size, deep = list(patch_size), deep_axes(patch_size)
    spacing = [edge if axis in deep else inf for axis, edge in enumerate(spacing_mm)]  # too coarse for ever
    kernel = [1, 1, 1]
    strides, kernels = [(1, 1, 1)], []
    while axes := _axes_to_halve(size, spacing):
        kernel = [
            3 if known == 3 or edge / min(spacing) < 2 else 1 for known, edge in zip(kernel, spacing, strict=True)
        ]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        i, j, k = (2 if axis in axes else 1 for axis in range(3))
        strides.append((i, j, k))
        for axis in axes:
            size[axis] = ceil(size[axis] / 2)
            spacing[axis] *= 2
    i, j, k = (3 if axis in deep else 1 for axis in range(3))
    kernels.append((i, j, k))
    found = Topology((0, 0, 0), tuple(strides), tuple(kernels))
    i, j, k = (ceil(count / step) * step for count, step in zip(patch_size, found.multiple, strict=True))
    return Topology((i, j, k), found.strides, found.kernels)


def _axes_to_halve(size: Sequence[int | float], spacing: Sequence[float]) -> list[int]:
    large = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    fine = [axis for axis in large if spacing[axis] / finest < 2]
    if len(fine) == 1 and size[fine[0]] < 3 * SMALLEST_EDGE:
        return []
    return fine
