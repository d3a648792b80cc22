"""Reading a crop between its voxels, image and labels at the same places, as fast as the device allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.space.volume import Shape

IGNORED = -1
"""Label of voxels outside the scan or not annotated: no loss is taken there."""

Positions = Sequence[tuple[Tensor, Tensor]]
"""Where in the crop each voxel of a patch looks, in voxels: along each axis the sum of two tensors that broadcast to
the patch, for a plane and a line are sooner rescaled than their sum."""

_PARTS = 8


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

    def image(self, image: Float[Tensor, "m i j k"], target: Float[Tensor, "m x y z"]) -> None:
        """Trilinear interpolation, written to a patch."""
        target.copy_(self._native(image, "bilinear"))

    def nearest(self, labels: Integer[Tensor, "i j k"], target: Integer[Tensor, "x y z"]) -> None:
        """The label of the nearest voxel."""
        shifted = (labels - IGNORED).float()[None]  # outside reads as zero, so zero must mean ignored
        target.copy_(self._native(shifted, "nearest")[0]).add_(IGNORED)

    def voted(self, labels: Integer[Tensor, "i j k"], target: Integer[Tensor, "x y z"]) -> None:
        """The argmax of the interpolated one-hot map: the label that most of the eight voxels around speak for.

        The map is never made, so that any number of labels costs the same.
        """
        padded = zip(self.positions, self.crop, strict=True)
        points = [_sum(pair, shift=1.0).clamp_(0, size + 1) for pair, size in padded]
        target.copy_(_most(*_corners(_padded_labels(labels), points)))

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
    that fits in memory.
    """

    def __init__(self, positions: Positions, crop: Shape, *, border: int = 1) -> None:
        super().__init__(positions, crop)
        i, j, k = positions
        planes, self.rows, self.width = (size + 2 * border for size in crop)
        self.border = border
        self.height = (planes - 1) * self.rows
        self.row_scale, self.column_scale = 2 / (self.height - 1), 2 / (self.width - 1)
        above = _sum(i, shift=border).clamp_(0, planes - 1)
        self.plane = above.floor().clamp_max_(planes - 2)
        above -= self.plane
        self.row = _sum(j, scale=self.row_scale, shift=border * self.row_scale)
        self.row.clamp_(0, (self.rows - 1) * self.row_scale).sub_(1)
        grid = torch.empty(*above.shape, 2)
        _sum(k, scale=self.column_scale, shift=border * self.column_scale - 1, out=grid[..., 0])
        torch.add(self.row, self.plane, alpha=self.rows * self.row_scale, out=grid[..., 1])
        # in parts, for torch spreads the samples of a batch over its threads, and only those
        parts = next(number for number in range(_PARTS, 0, -1) if above[..., 0].numel() % number == 0)
        self.grid, self.above = grid.view(parts, -1, above.shape[2], 2), above.view(parts, -1, above.shape[2])

    def image(self, image: Float[Tensor, "m i j k"], target: Float[Tensor, "m x y z"]) -> None:
        """Trilinear interpolation: bilinear in the plane below and the plane above, then between them."""
        for channel, result in zip(F.pad(image, (self.border,) * 6).contiguous(), target, strict=True):
            torch.lerp(*self._both(channel, self.grid), self.above, out=result.view(self.above.shape))

    def nearest(self, labels: Integer[Tensor, "i j k"], target: Integer[Tensor, "x y z"]) -> None:
        """The label of the nearest voxel: of the nearest in the plane below or of that in the plane above."""
        values = F.pad(labels - IGNORED, (self.border,) * 6).float()
        below, above = self._both(values, self.grid, "nearest")
        target.view(self.above.shape).copy_(torch.lerp(below, above, self.above.round())).add_(IGNORED)

    def voted(self, labels: Integer[Tensor, "i j k"], target: Integer[Tensor, "x y z"]) -> None:
        """The argmax of the interpolated one-hot map; only where the voxels around differ there is anything to do."""
        padded = _padded_labels(labels, self.border)
        half_a_voxel = torch.tensor([self.column_scale / 2, self.row_scale / 2])
        extremes = _extremes(padded).view(1, 2, self.height, self.width)
        corners = _in_picture(extremes, self.grid - half_a_voxel, "nearest", outside="border")
        low, high = corners.transpose(0, 1).reshape(2, -1)
        mixed = torch.from_numpy(np.flatnonzero(low.numpy() != high.numpy()))  # several times as quick as torch's
        low, winner = low.index_select(0, mixed), high.index_select(0, mixed)
        high.index_copy_(0, mixed, self._decide(padded, mixed, low, winner))
        target.view(-1).copy_(high).add_(IGNORED)

    def _decide(
        self, padded: Integer[Tensor, "i j k"], where: Tensor, low: Float[Tensor, " n"], high: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The winner at some places between the lowest and the highest label around, counted from the ignored one.

        Where only two labels meet, the interpolated label m₁ itself says how near each is, and the interpolated square
        m₂ says that it is so: m₂ = (low + high) m₁ − low high, from which every third label takes something away.
        """
        grid = self.grid.view(-1, 2).index_select(0, where).view(1, 1, -1, 2)
        above = self.above.view(-1).index_select(0, where)
        shifted = (padded - IGNORED).float()
        first, second = (torch.lerp(*self._both(power, grid), above).flatten() for power in (shifted, shifted.square()))
        winner = torch.where(2 * first > low + high, high, low)
        lacking = ((low + high) * first - low * high - second).abs()
        third = (lacking > 1e-3 + 1e-6 * high * high).nonzero()[:, 0]
        winner[third] = (_most(*_corners(padded, self._points(where[third]))) - IGNORED).float()
        return winner

    def _points(self, where: Tensor) -> list[Tensor]:
        """Positions in the padded crop of some voxels of the patch."""
        i = self.plane.view(-1)[where] + self.above.view(-1)[where]
        j = (self.row.view(-1)[where] + 1) / self.row_scale
        k = (self.grid.view(-1, 2)[where, 0] + 1) / self.column_scale
        return [i, j, k.clamp_(0, self.width - 1)]

    def _both(
        self, padded: Float[Tensor, "i j k"], grid: Float[Tensor, "p rows columns 2"], mode: str = "bilinear"
    ) -> tuple[Tensor, Tensor]:
        """What the planes below and above hold."""
        stride = self.width * self.rows
        both = padded.as_strided((1, 2, self.height, self.width), (0, stride, self.width, 1), padded.storage_offset())
        below, above = _in_picture(both, grid, mode).unbind(1)
        return below, above


def _in_picture(
    picture: Float[Tensor, "1 c height width"],
    grid: Float[Tensor, "p rows columns 2"],
    mode: str,
    *,
    outside: str = "zeros",
) -> Float[Tensor, "p c rows columns"]:
    pictures = picture.expand(len(grid), -1, -1, -1)
    return F.grid_sample(pictures, grid, mode=mode, padding_mode=outside, align_corners=True)


def _sum(
    pair: tuple[Tensor, Tensor], *, scale: float = 1.0, shift: float | int = 0.0, out: Tensor | None = None
) -> Float[Tensor, "x y z"]:
    """The scaled and shifted sum, in one pass over the patch."""
    first, second = pair
    return torch.add(first * scale + shift, second, alpha=scale, out=out)


def _padded_labels(labels: Tensor, border: int = 1) -> Tensor:
    return F.pad(labels, (border,) * 6, value=IGNORED)


def _extremes(padded: Integer[Tensor, "i j k"]) -> Float[Tensor, "2 cells"]:
    """The lowest and the highest label of each eight neighbours, counted from the ignored one.

    One number per voxel, the first corner of its cell, without the last plane. On a flat array each step is a plain
    pass over memory. The last row and column of a plane wrap around: whoever looks there is on the voxel itself, which
    is among the eight.
    """
    low = high = (padded - IGNORED).flatten()
    for stride in padded.stride():
        low = torch.minimum(low[:-stride], low[stride:])
        high = torch.maximum(high[:-stride], high[stride:])
    extremes = torch.zeros(2, padded.numel() - padded.stride(0))
    extremes[1, len(high) :] = 1  # the last few have no neighbours here: unlike each other, so that they are looked at
    extremes[0, : len(low)], extremes[1, : len(high)] = low, high
    return extremes


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
