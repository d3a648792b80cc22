"""Reading a crop between its voxels, image and labels at the same places, as fast as the device allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.space.labels import IGNORED
from medseg.space.volume import Shape

Positions = Sequence[tuple[Tensor, Tensor]]
"""Where in the crop each voxel of a patch looks, in voxels: along each axis the sum of two tensors that broadcast to
the patch, for a plane and a line are sooner rescaled than their sum."""

Sample = tuple[Float[Tensor, "m _ _ _"], Integer[Tensor, "_ _ _"]]
"""Channels and labels on one grid."""

_SLAB = 1 << 16
"""Voxels worked on at once on a CPU: a dozen arrays of them fit in a core's second cache."""


def places(positions: Positions, crop: Shape, *, inside: bool = False) -> Places:
    """Prepare to read a crop of some shape at some positions; what lies outside is zero, and ignored.

    Args:
        positions: Where to read.
        crop: Voxels of what is read.
        inside: No position is further out than the outermost voxels, so that nothing need be put around them.
    """
    if positions[0][0].device.type == "cpu":
        return PlanePlaces(positions, crop, border=0 if inside and min(crop) > 1 else 1)
    return Places(positions, crop)


class Places:
    """Positions in a crop, read by torch's own three-dimensional interpolation."""

    def __init__(self, positions: Positions, crop: Shape) -> None:
        self.crop = crop
        self.positions = positions

    def read(self, crop: Sample, into: Sample, *, nearest: bool) -> None:
        """Fill a patch and its labels.

        Args:
            crop: An image, interpolated linearly along each axis, and labels, read at the same places.
            into: Where they go.
            nearest: The label of the nearest voxel; otherwise the argmax of the interpolated one-hot map, that is the
                label that most of the eight voxels around speak for. The map is never made, so that any number of
                labels costs the same.
        """
        (image, labels), (patch, target) = crop, into
        if len(image):
            patch.copy_(self._native(image, "bilinear"))
        if nearest:
            shifted = (labels - IGNORED).float()[None]  # outside reads as zero, so zero must mean ignored
            target.copy_(self._native(shifted, "nearest")[0]).add_(IGNORED)
            return
        padded = zip(self.positions, self.crop, strict=True)
        points = [_sum(pair, shift=1.0).clamp_(0, size + 1) for pair, size in padded]
        target.copy_(_most(*_corners(_padded(labels, 1, value=IGNORED), points)))

    def _native(self, channels: Tensor, mode: str) -> Tensor:
        sizes = zip(self.positions, self.crop, strict=True)
        normalised = [_sum(pair, scale=2 / size, shift=1 / size - 1) for pair, size in sizes]
        grid = torch.stack(normalised[::-1], dim=-1)[None]
        return F.grid_sample(channels[None], grid, mode=mode, align_corners=False)[0]


class PlanePlaces(Places):
    """The same on a CPU, where torch interpolates in two dimensions some fifteen times as fast as in three.

    The planes of the crop, with a border of what lies outside where one is needed, are laid end to end as one tall
    picture. A point between two planes is then the mean of two points in that picture, one plane apart. Rounding in the
    tall coordinate moves a point by about 1e-7 of the picture's height, less than a hundredth of a voxel for any crop
    that fits in memory. The patch is worked on slab by slab, so that what is computed on the way stays in a core's
    cache, and labels are looked up where the image was.
    """

    def __init__(self, positions: Positions, crop: Shape, *, border: int = 1) -> None:
        super().__init__(positions, crop)
        self.border = border
        self.planes, self.rows, self.width = (size + 2 * border for size in crop)
        self.height = (self.planes - 1) * self.rows
        self.row_scale, self.column_scale = 2 / (self.height - 1), 2 / (self.width - 1)

    def read(self, crop: Sample, into: Sample, *, nearest: bool) -> None:
        """Fill a patch and its labels, as `Places.read` does."""
        (image, labels), (patch, target) = crop, into
        channels = [_padded(channel, self.border).contiguous() for channel in image]
        names = _padded(labels - IGNORED, self.border)
        looked_up = (names if nearest else _agreed(names)).float().view(1, 1, -1, self.width)
        for slab in self._slabs():
            grid, plane, above = self._in_picture(slab)
            for channel, result in zip(channels, patch, strict=True):
                below, beyond = _pick(self._twice(channel), grid).unbind(1)
                torch.lerp(below, beyond, above, out=result[slab])
            if nearest:
                self._move_to_nearest_plane(grid, above)
                found = _pick(looked_up, grid, "nearest")[:, 0]
            else:
                found = _pick(looked_up, self._cell(grid), "nearest")[:, 0]
                self._settle(found, names, (grid, plane, above))
            target[slab] = found.add_(IGNORED)

    def _slabs(self) -> Iterator[slice]:
        first, second = self.positions[0]
        thickness = max(1, _SLAB // (first.shape[1] * second.shape[-1]))
        for start in range(0, first.shape[0], thickness):
            yield slice(start, start + thickness)

    def _in_picture(self, slab: slice) -> tuple[Float[Tensor, "2 x y z"], Tensor, Tensor]:
        """Where the plane below each point of a slab lies, its number, and how far above it the point is.

        Returns:
            Column and row in the tall picture, between -1 and 1; the plane ``(x, y, z)``; the distance ``(x, y, z)``.
        """
        # what is the same for every plane has no axis to cut
        pairs = ((first[slab], second[slab] if second.ndim == 3 else second) for first, second in self.positions)
        i, j, k = pairs
        above = _sum(i, shift=self.border).clamp_(0, self.planes - 1)
        plane = above.floor().clamp_max_(self.planes - 2)
        above -= plane
        grid = torch.empty(2, *above.shape)  # coordinate first: sooner written, and torch reads it as well
        _sum(k, scale=self.column_scale, shift=self.border * self.column_scale - 1, out=grid[0])
        row = _sum(j, scale=self.row_scale, shift=self.border * self.row_scale - 1, out=grid[1])
        row.clamp_(-1, (self.rows - 1) * self.row_scale - 1).add_(plane, alpha=self.rows * self.row_scale)
        return grid, plane, above

    def _twice(self, padded: Float[Tensor, "i j k"]) -> Float[Tensor, "1 2 height width"]:
        """The planes end to end, and the same from the second plane on."""
        stride = self.width * self.rows
        return padded.as_strided((1, 2, self.height, self.width), (0, stride, self.width, 1), padded.storage_offset())

    def _move_to_nearest_plane(self, grid: Float[Tensor, "2 x y z"], above: Float[Tensor, "x y z"]) -> None:
        """From the plane below to the nearest, in a picture that is higher by the last plane."""
        shrink = (self.height - 1) / (self.height + self.rows - 1)
        grid[1].mul_(shrink).add_(shrink - 1).add_(above.round(), alpha=shrink * self.rows * self.row_scale)

    def _cell(self, grid: Float[Tensor, "2 x y z"]) -> Float[Tensor, "2 x y z"]:
        """Where the nearest voxel is the first corner of the cell that a point lies in."""
        return grid - torch.tensor([self.column_scale / 2, self.row_scale / 2])[:, None, None, None]

    def _settle(
        self, found: Float[Tensor, "x y z"], names: Integer[Tensor, "i j k"], where: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Let the eight voxels around vote, where they differ."""
        mixed = torch.from_numpy(np.flatnonzero(found.numpy() < 0))  # several times as quick as torch's
        (column, row), plane, above = where
        k, j, i, after = (part.reshape(-1).index_select(0, mixed) for part in (column, row, plane, above))
        j = ((j + 1) / self.row_scale - i * self.rows).clamp_(0, self.rows - 1)
        k = ((k + 1) / self.column_scale).clamp_(0, self.width - 1)
        found.view(-1).index_copy_(0, mixed, _decide(names, [i + after, j, k]))


def _pick(
    picture: Float[Tensor, "1 c height width"], grid: Float[Tensor, "2 x y z"], mode: str = "bilinear"
) -> Float[Tensor, "x c y z"]:
    """Read a picture; torch spreads the samples of a batch over its threads, and only those: a plane is a sample."""
    pictures = picture.expand(grid.shape[1], -1, -1, -1)
    return F.grid_sample(pictures, grid.permute(1, 2, 3, 0), mode=mode, padding_mode="border", align_corners=True)


def _sum(
    pair: tuple[Tensor, Tensor], *, scale: float = 1.0, shift: float | int = 0.0, out: Tensor | None = None
) -> Float[Tensor, "x y z"]:
    """The scaled and shifted sum, in one pass over the patch."""
    first, second = pair
    return torch.add(first * scale + shift, second, alpha=scale, out=out)


def _padded(channels: Tensor, border: int, *, value: int = 0) -> Tensor:
    """With a border, or as it is: torch would copy it even for a border of nothing."""
    return F.pad(channels, (border,) * 6, value=value) if border else channels


def _agreed(names: Integer[Tensor, "i j k"]) -> Integer[Tensor, " cells"]:
    """The label of each eight neighbours, or something negative where they differ.

    One number per voxel, the first corner of its cell, without the last plane. On a flat array each step is a plain
    pass over memory, taken piece by piece to stay in the cache. The last row and column of a plane wrap around:
    whoever looks there is on the voxel itself, which is among the eight.
    """
    flat, strides = names.flatten(), names.stride()
    agreed = torch.full_like(flat[strides[0] :], -1)
    for start in range(0, len(flat) - sum(strides), 2 * _SLAB):
        low = high = flat[start : start + 2 * _SLAB + sum(strides)]
        for stride in strides:
            low = torch.minimum(low[:-stride], low[stride:])
            high = torch.maximum(high[:-stride], high[stride:])
        agreed[start : start + len(low)] = high | (low - high)  # a comparison would cost ten times as much
    return agreed


def _decide(names: Integer[Tensor, "i j k"], points: list[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """The label with the largest interpolated share at some points.

    Where only two labels meet, the interpolated label itself says which of them is nearer.
    """
    index, offsets = torch.zeros((), dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    fractions = []
    for point, size, stride in zip(points, names.shape, names.stride(), strict=True):
        corner = point.floor().clamp_max_(size - 2)
        fractions.append(point - corner)
        index = index + corner.to(torch.int32) * stride
        offsets = torch.cat([offsets, offsets + stride])
    around = names.view(-1).index_select(0, (index + offsets[:, None]).view(-1)).view(8, -1)
    low, high = around.amin(0), around.amax(0)
    third = torch.from_numpy(np.flatnonzero(torch.minimum(around - low, high - around).amax(0).numpy()))
    mean, gap = around.float(), (high - low).clamp_min_(1).float()  # nothing between them where all agree
    for fraction in fractions[::-1]:
        before, after = mean.chunk(2)
        mean = torch.lerp(before, after, fraction)
    winner = mean[0].sub_(low).div_(gap).round_().mul_(gap).add_(low)
    if len(third):
        winner[third] = _most(*_corners(names, [point[third] for point in points])).float()
    return winner


def _corners(padded: Tensor, points: list[Tensor]) -> tuple[Integer[Tensor, "8 *n"], Float[Tensor, "8 *n"]]:
    """Labels and weights of the eight voxels around each point."""
    index, weights = torch.zeros((), dtype=torch.long, device=padded.device), torch.ones((), device=padded.device)
    for point, size, stride in zip(points, padded.shape, padded.stride(), strict=True):
        corner = point.floor().clamp_max_(size - 2)
        after = point - corner
        first = corner.long() * stride
        index = (index + torch.stack([first, first + stride])[:, None]).flatten(0, 1)
        weights = (weights * torch.stack([1 - after, after])[:, None]).flatten(0, 1)
    return padded.flatten()[index], weights


def _most(names: Integer[Tensor, "8 *n"], weights: Float[Tensor, "8 *n"]) -> Integer[Tensor, "*n"]:
    """The label with the largest sum of weights."""
    winner, most = names[0], (names == names[0]).mul(weights).sum(0)
    for name in names[1:]:
        votes = (names == name).mul(weights).sum(0)
        winner, most = torch.where(votes > most, name, winner), torch.maximum(votes, most)
    return winner


def smooth_field(control: Float[Tensor, "g g g"], shape: Shape) -> Float[Tensor, "x y z"]:
    """A cubic B-spline through the patch, its control points spread evenly from border to border."""
    bases = [_spline_basis(size, control.shape[0], control.device) for size in shape]
    return torch.einsum("abc,xa,yb,zc->xyz", control, *bases)


def _spline_basis(size: int, points: int, device: torch.device) -> Float[Tensor, "size points"]:
    position = torch.linspace(0, points - 1, size, device=device)[:, None]
    distance = (position - torch.arange(points, device=device)).abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clamp_min(0) ** 3 / 6
    basis = torch.where(distance < 1, inner, outer)
    return basis / basis.sum(1, keepdim=True)
