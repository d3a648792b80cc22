"""Whole volumes from patches: a sliding window whose overlapping predictions are blended with Gaussian weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg.space.patch import PatchLocation
from medseg.space.volume import Shape

Predict = Callable[[Tensor], Tensor]
"""A batch of patches ``(b, m, i, j, k)`` to one value per class ``(b, c, i, j, k)``: logits or probabilities."""

TILINGS = ("even", "nnunet", "shifted")
FLOORS = {"even": 1e-30, "nnunet": 1e-30, "shifted": 1e-3}
"""Least weight of a voxel, by tiling. MONAI's 0.001 is reached at the border of one axis already: where a volume is one
tile deep, its border would be a plain mean of neighbouring tiles, their outermost voxels included."""
_TOGETHER = 2**24  # numbers that are turned into float32 and added at once


def tile_starts(size: int, patch: int, *, overlap: float = 0.5, tiling: str = "even") -> list[int]:
    """First voxels of the tiles along one axis; the last tile ends with the volume.

    ``"even"`` is nnU-Net's rule: as few tiles as keep the step at most ``patch · (1 − overlap)``, evenly spread.
    ``"nnunet"`` is the same, and its weights are nnU-Net's too (largest at voxel n // 2), and its sums
    are in float16, so that what is level there is level here.
    ``"shifted"`` is MONAI's: steps of exactly ``int(patch · (1 − overlap))``, the last tile moved back to the border.
    Each goes with the least weight that its author gives to a voxel, see `FLOORS`.

    Example:
        >>> tile_starts(110, 64), tile_starts(110, 64, tiling="shifted")
        ([0, 23, 46], [0, 32, 46])
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is a share of the patch in [0, 1), got {overlap}; nnU-Net uses 0.5")
    if tiling not in TILINGS:
        raise ValueError(f"tiling {tiling!r} is not known; expected one of {', '.join(TILINGS)}")
    furthest = max(size - patch, 0)
    if tiling == "shifted":
        step = max(int(patch * (1 - overlap)), 1)
        return [min(index * step, furthest) for index in range(math.ceil(furthest / step) + 1)]
    tiles = math.ceil(furthest / max(patch * (1 - overlap), 1)) + 1  # tiles of one voxel do not overlap
    return [round(furthest / max(tiles - 1, 1) * index) for index in range(tiles)]


def gaussian_weights(patch_size: Shape, *, sigma: float = 0.125, tiling: str = "even") -> Float[Tensor, "i j k"]:
    r"""How much each voxel of a tile counts: :math:`\exp(-\sum_a (x_a - c_a)^2 / 2 (\sigma n_a)^2)`.

    Args:
        patch_size: Voxels of a tile, n.
        sigma: Standard deviation as a share of the tile's edge; 1/8 as in nnU-Net and MONAI.
        tiling: Decides the centre and the least weight, see `tile_starts`.
    """
    weights = torch.ones((), dtype=torch.float64)
    for size in patch_size:
        centre = size // 2 if tiling == "nnunet" else (size - 1) / 2
        distance = torch.arange(size, dtype=torch.float64) - centre
        weights = weights.unsqueeze(-1) * torch.exp(-(distance**2) / (2 * (sigma * size) ** 2))
    return weights.clamp_min(FLOORS[tiling]).float()


@dataclass(frozen=True)
class Sweep:
    """Where tiles lie in a volume that is swept along its first axis; one smaller than a tile is padded on both sides.

    Attributes:
        shape: Voxels of the volume.
        tile: Voxels of a tile.
        starts: First voxels of the tiles along each axis, counted in the padded volume.
    """

    shape: Shape
    tile: Shape
    starts: tuple[list[int], ...]

    @property
    def padded(self) -> Shape:
        """Voxels of the volume with its padding."""
        i, j, k = map(max, self.tile, self.shape)
        return i, j, k

    @property
    def before(self) -> Shape:
        """Padding in front of the volume."""
        i, j, k = ((padded - extent) // 2 for padded, extent in zip(self.padded, self.shape, strict=True))
        return i, j, k

    @property
    def columns(self) -> list[tuple[int, ...]]:
        """Corners of the tiles of a row, in its plane."""
        return list(itertools.product(*self.starts[1:]))

    @property
    def tiles(self) -> list[PatchLocation]:
        """All tiles, row by row, in voxels of the volume."""
        a, b, c = self.before
        return [PatchLocation((i - a, j - b, k - c), self.tile) for i, j, k in itertools.product(*self.starts)]

    @property
    def inner(self) -> tuple[slice, ...]:
        """The volume's part of a padded plane."""
        return tuple(slice(b, b + n) for b, n in zip(self.before[1:], self.shape[1:], strict=True))

    def strips(self) -> Iterator[tuple[int, slice, slice]]:
        """Per row of tiles: how many planes no later row reaches, the volume's among them, their place in it."""
        begin, end = self.before[0], self.before[0] + self.shape[0]
        for start, following in itertools.pairwise([*self.starts[0], self.padded[0]]):
            first, last = max(start, begin), min(following, end)
            yield following - start, slice(first - start, last - start), slice(first - begin, max(first, last) - begin)


def stitched_slabs(
    image: Float[Tensor, "1 m i j k"],
    patch_size: Shape,
    predict: Predict,
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    sigma: float = 0.125,
    tiling: str = "even",
    device: torch.device | None = None,
    axis: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[slice, Float[Tensor, "c i j k"]]]:
    """Predict a volume tile by tile, handed out in slabs along one axis as soon as no later tile can change a voxel.

    Where tiles overlap, a voxel is their Gaussian-weighted mean, taken in float32; with the tiling ``"nnunet"`` what
    nnU-Net's sums in float16 make of it, voxel by voxel, where the sweep takes tiles in its order, along axis 0. No
    more than one tile's depth is held with all its classes: memory does not grow with the length of the volume.

    Args:
        image: One prepared volume. One smaller than a patch is padded with zeros on both sides, and cut back.
        patch_size: Voxels of a tile.
        predict: Logits or probabilities of a batch of tiles, on the device of ``image``, in any float precision.
        overlap: Least share of a tile that its neighbour covers too.
        batch_size: Tiles per call of ``predict``; the last call may have fewer.
        sigma: Width of the weights as a share of the tile's edge.
        tiling: ``"even"``, ``"nnunet"`` or ``"shifted"`` (MONAI's), see `tile_starts`.
        device: Where the means are kept; the image's own by default.
        axis: The spatial axis that is cut into slabs; `sweep_axis` names the one that takes least memory.
        dtype: Of the means; float16, in which nnU-Net adds, takes half the memory.

    Yields:
        The slice of that axis which is finished, and its predictions ``(c, i, j, k)``; together the slices cover the
        volume once, in order. The tensor is a view of the means: use or copy it before asking for the next.

    Example:
        >>> image = torch.rand(1, 1, 20, 9, 17)
        >>> slabs = [slab.clone() for _, slab in stitched_slabs(image, (8, 10, 8), lambda tiles: 2 * tiles)]
        >>> torch.allclose(torch.cat(slabs, dim=1), 2 * image[0], atol=1e-5)
        True
    """
    image = image.movedim(axis + 2, 2)
    shape, tile = (image.shape[2], image.shape[3], image.shape[4]), _to_front(patch_size, axis)
    ends = zip(shape, tile, strict=True)
    starts = tuple(tile_starts(max(extent, edge), edge, overlap=overlap, tiling=tiling) for extent, edge in ends)
    sweep = Sweep(shape, tile, starts)
    predictions = _predictions(image, sweep.tiles, predict, batch_size=batch_size, axis=axis)
    weights, place = gaussian_weights(tile, sigma=sigma, tiling=tiling), device or image.device
    if tiling == "nnunet":
        half = (10 * weights).half()
        half.clamp_min_(half[half > 0].min())
        blend: _Blend = _HalfSums(half.to(place), sweep.padded[1:], torch.float16)
    else:
        blend = _Blend(weights.to(place), sweep.padded[1:], dtype)
    for depth, planes, where in sweep.strips():
        for j, k in sweep.columns:
            blend.add(j, k, next(predictions))
        if where.stop > where.start:
            yield where, blend.finish(depth)[(slice(None), planes, *sweep.inner)].movedim(1, axis + 1)
        blend.advance(depth)


def sweep_axis(shape: Sequence[int], patch_size: Sequence[int]) -> int:
    """The axis along which one tile's depth of the volume has the fewest voxels.

    Example:
        >>> sweep_axis((240, 240, 400), (128, 128, 128))
        2
    """
    lengths = [extent / edge for extent, edge in zip(shape, patch_size, strict=True)]
    return lengths.index(max(lengths))


def _predictions(
    image: Tensor, tiles: list[PatchLocation], predict: Predict, *, batch_size: int, axis: int
) -> Iterator[Tensor]:
    """The prediction of each tile in turn; batches run on over rows, so that small volumes fill them too.

    The swept axis lies in front here; the network sees the axes in their own order.
    """
    for first in range(0, len(tiles), batch_size):
        batch = torch.stack([_cut(image[0], tile) for tile in tiles[first : first + batch_size]]).movedim(2, axis + 2)
        predicted = predict(batch)
        if predicted.shape[0] != len(batch) or predicted.shape[2:] != batch.shape[2:]:
            raise ValueError(
                f"predict must keep samples and voxels of {tuple(batch.shape)}, it returned {tuple(predicted.shape)}; "
                "hand over the full-resolution output only"
            )
        yield from predicted.movedim(axis + 2, 2)
        del predicted  # or two of the largest tensors there are would be alive during the next call


def _to_front(triple: Shape, axis: int) -> Shape:
    """The triple with one of its numbers moved to the front.

    Example:
        >>> _to_front((1, 2, 3), 2)
        (3, 1, 2)
    """
    first, second, third = triple[axis], *(number for place, number in enumerate(triple) if place != axis)
    return first, second, third


def _cut(volume: Tensor, tile: PatchLocation) -> Tensor:
    shape: Shape = (volume.shape[1], volume.shape[2], volume.shape[3])
    inner, padding = tile.inside(shape)
    patch = volume[(slice(None), *inner.slices)]
    widths = [width for pair in reversed(padding) for width in pair]
    return torch.nn.functional.pad(patch, widths) if any(widths) else patch


class _Blend:
    """Weighted means over one tile's depth of the volume, and the sums of their weights.

    A mean takes in a tile by its share of the weights so far, so that neither tiny weights nor many tiles cost half
    precision anything.
    """

    def __init__(self, weights: Tensor, plane: tuple[int, int], dtype: torch.dtype) -> None:
        self.weights = weights
        self.plane = plane
        self.dtype = dtype
        self.means: Tensor | None = None
        self.total = weights.new_zeros((weights.shape[0], *plane))
        self.together = max(1, _TOGETHER // weights.numel())

    def add(self, j: int, k: int, prediction: Tensor) -> None:
        depth, height, width = self.weights.shape
        if self.means is None:
            self.means = self.weights.new_zeros((prediction.shape[0], depth, *self.plane), dtype=self.dtype)
        where = (slice(None), slice(j, j + height), slice(k, k + width))
        self.total[where] += self.weights
        share = self.weights / self.total[where]
        target = self.means[(slice(None), *where)]
        for first in range(0, len(prediction), self.together):  # a float32 copy of all classes would be the largest
            part = slice(first, first + self.together)
            self._take_in(target[part], prediction[part].to(self.weights.device, torch.float32), share)

    def _take_in(self, target: Tensor, values: Tensor, share: Tensor) -> None:
        if self.dtype == torch.float32:
            target.lerp_(values, share)
        else:
            target.copy_(torch.lerp(target.float(), values, share))

    def finish(self, depth: int) -> Tensor:
        """The means of the first ``depth`` planes, a view; they are given up by `advance`."""
        if self.means is None:
            raise ValueError("expected at least one tile before a slab can be finished")
        return self.means[:, :depth]

    def advance(self, depth: int) -> None:
        """Move what later tiles will add to to the front."""
        kept = len(self.total) - depth
        for planes in (self.total, *(self.means if self.means is not None else ())):
            planes[:kept] = planes[depth:].clone()
            planes[kept:] = 0


class _HalfSums(_Blend):
    """Sums of tiles times weights in float16, divided by the sums of the weights in the end, as in nnU-Net.

    A logit of 8 is rounded to 1/128 there, so that the best two are often level and the first is taken.
    """

    def _take_in(self, target: Tensor, values: Tensor, share: Tensor) -> None:
        target += values * self.weights

    def finish(self, depth: int) -> Tensor:
        """The sums of the first ``depth`` planes over those of their weights; once, before `advance`."""
        return super().finish(depth).div_(self.total[:depth])


def mirrored(predict: Predict, axes: tuple[int, ...], *, pairs: Sequence[tuple[int, int]] = ()) -> Predict:
    """Average a prediction over all flips of some spatial axes; hand in probabilities, for these may be averaged.

    Args:
        predict: Probabilities of a batch of patches.
        axes: Spatial axes (0, 1, 2) whose direction means nothing to the organs: never left/right when organs come in
            pairs, unless these are named. All subsets are run, 2 to the power of their number.
        pairs: Classes that a flip of axis 0 (left/right) exchanges, as it did in training: what the network takes for
            a left kidney in a mirrored patch is the right one.

    Example:
        >>> patches = torch.rand(1, 1, 4, 4, 4)
        >>> torch.allclose(mirrored(lambda x: x, (0, 1))(patches), patches)
        True
    """
    if not set(axes) <= {0, 1, 2}:
        raise ValueError(f"expected spatial axes out of 0, 1 and 2, got {axes}")
    subsets = [subset for size in range(len(axes) + 1) for subset in itertools.combinations(axes, size)]

    def average(patches: Tensor) -> Tensor:
        total: Tensor | None = None
        for subset in subsets:
            dims = [axis + 2 for axis in subset]
            predicted = predict(patches.flip(dims)).float().flip(dims)
            if 0 in subset and pairs:
                predicted = predicted[:, exchanged(predicted.shape[1], pairs)]
            total = predicted if total is None else total.add_(predicted)
        return torch.zeros(()) if total is None else total / len(subsets)

    return average


def exchanged(classes: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The order of the classes with the two of each pair exchanged.

    Example:
        >>> exchanged(4, [(1, 3)])
        [0, 3, 2, 1]
    """
    order = list(range(classes))
    for one, other in pairs:
        order[one], order[other] = other, one
    return order
