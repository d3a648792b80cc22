"""Reading a crop between its voxels, image and labels at the same places, as fast as the device allows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.space.volume import Shape

IGNORED = -1
"""Label of voxels outside the scan or not annotated: no loss is taken there."""

Positions = tuple[Float[Tensor, "x y z"], Float[Tensor, "x y z"], Float[Tensor, "x y z"]]
"""For each voxel of a patch where it looks, along each axis of the crop, in voxels."""

_PARTS = 8


def places(positions: Positions, crop: Shape) -> Places:
    """Prepare to read a crop of some shape at some positions; what lies outside is zero, and ignored."""
    return PlanePlaces(positions, crop) if positions[0].device.type == "cpu" else Places(positions, crop)


class Places:
    """Positions in a crop, read by torch's own three-dimensional interpolation."""

    def __init__(self, positions: Positions, crop: Shape) -> None:
        self.crop = crop
        sizes = zip(positions, crop, strict=True)
        self.padded = [(position + 1).clamp_(0, size + 1) for position, size in sizes]

    def image(self, image: Float[Tensor, "m i j k"]) -> Float[Tensor, "m x y z"]:
        """Trilinear interpolation."""
        return self._native(image, "bilinear")

    def nearest(self, labels: Integer[Tensor, "i j k"]) -> Integer[Tensor, "x y z"]:
        """The label of the nearest voxel."""
        shifted = (labels - IGNORED).float()[None]  # outside reads as zero, so zero must mean ignored
        return self._native(shifted, "nearest")[0].to(labels.dtype) + IGNORED

    def voted(self, labels: Integer[Tensor, "i j k"]) -> Integer[Tensor, "x y z"]:
        """The argmax of the interpolated one-hot map: the label that most of the eight voxels around speak for.

        The map is never made, so that any number of labels costs the same.
        """
        return _most(*_corners(_padded_labels(labels), self.padded))

    def _native(self, channels: Tensor, mode: str) -> Tensor:
        normalised = [(2 * position - 1) / size - 1 for position, size in zip(self.padded, self.crop, strict=True)]
        grid = torch.stack(normalised[::-1], dim=-1)[None]
        return F.grid_sample(channels[None], grid, mode=mode, align_corners=False)[0]


class PlanePlaces(Places):
    """The same on a CPU, where torch interpolates in two dimensions some fifteen times as fast as in three.

    The planes of the padded crop are laid end to end as one tall picture. A point between two planes is then the mean
    of two points in that picture, one plane apart. Rounding in the tall coordinate moves a point by about 1e-7 of the
    picture's height, less than a hundredth of a voxel for any crop that fits in memory.
    """

    def __init__(self, positions: Positions, crop: Shape) -> None:
        super().__init__(positions, crop)
        i, j, k = self.padded
        self.shape = i.shape
        plane = i.floor().clamp_max_(crop[0])
        above = i - plane
        self.height, self.width = (crop[0] + 1) * (crop[1] + 2), crop[2] + 2
        grid = torch.empty(*i.shape, 2)
        grid[..., 0] = k * (2 / (self.width - 1)) - 1
        grid[..., 1] = plane.mul_(crop[1] + 2).add_(j).mul_(2 / (self.height - 1)).sub_(1)
        # in parts, for torch spreads the samples of a batch over its threads, and only those
        rows = i.shape[0] * i.shape[1]
        parts = next(number for number in range(_PARTS, 0, -1) if rows % number == 0)
        self.grid, self.above = grid.view(parts, -1, i.shape[2], 2), above.view(parts, -1, i.shape[2])

    def image(self, image: Float[Tensor, "m i j k"]) -> Float[Tensor, "m x y z"]:
        """Trilinear interpolation: bilinear in the plane below and the plane above, then between them."""
        patch = image.new_empty((len(image), *self.shape))
        for channel, target in zip(F.pad(image, (1, 1) * 3), patch, strict=True):
            torch.lerp(*self._both(channel, self.grid), self.above, out=target.view(self.above.shape))
        return patch

    def nearest(self, labels: Integer[Tensor, "i j k"]) -> Integer[Tensor, "x y z"]:
        """The label of the nearest voxel."""
        padded = _padded_labels(labels)
        index = torch.zeros((), dtype=torch.long)
        for position, stride in zip(self.padded, padded.stride(), strict=True):
            index = index + position.round().long() * stride
        return padded.flatten()[index]

    def voted(self, labels: Integer[Tensor, "i j k"]) -> Integer[Tensor, "x y z"]:
        """The argmax of the interpolated one-hot map; only where the voxels around differ there is anything to do."""
        padded = _padded_labels(labels)
        half_a_voxel = torch.tensor([1 / (self.width - 1), 1 / (self.height - 1)])
        extremes = _extremes(padded).view(1, 2, self.height, self.width)
        low, high = _in_picture(extremes, self.grid - half_a_voxel, "nearest").transpose(0, 1).reshape(2, -1)
        result: Tensor = high.to(labels.dtype)
        mixed = torch.from_numpy(np.flatnonzero(low.numpy() != high.numpy()))  # several times as quick as torch's
        result[mixed] = self._decide(padded, mixed, low[mixed], high[mixed]).to(labels.dtype)
        result += IGNORED
        return result.view(self.shape)

    def _decide(
        self, padded: Integer[Tensor, "i j k"], where: Tensor, low: Float[Tensor, " n"], high: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The winner at some places between the lowest and the highest label around, counted from the ignored one.

        Where only two labels meet, the interpolated label m₁ itself says how near each is, and the interpolated square
        m₂ says that it is so: m₂ = (low + high) m₁ − low high, from which every third label takes something away.
        """
        grid, above = self.grid.view(-1, 2)[where].view(1, 1, -1, 2), self.above.view(-1)[where]
        shifted = (padded - IGNORED).float()
        first, second = (torch.lerp(*self._both(power, grid), above).flatten() for power in (shifted, shifted.square()))
        winner = torch.where(2 * first > low + high, high, low)
        lacking = (low + high) * first - low * high - second
        third = (lacking > 1e-3 + 1e-6 * high * high).nonzero()[:, 0]
        points = [position.view(-1)[where[third]] for position in self.padded]
        winner[third] = (_most(*_corners(padded, points)) - IGNORED).float()
        return winner

    def _both(self, padded: Float[Tensor, "i j k"], grid: Float[Tensor, "p rows columns 2"]) -> tuple[Tensor, Tensor]:
        """What the planes below and above hold."""
        stride = self.width * (self.crop[1] + 2)
        both = padded.as_strided((1, 2, self.height, self.width), (0, stride, self.width, 1), padded.storage_offset())
        below, above = _in_picture(both, grid, "bilinear").unbind(1)
        return below, above


def _in_picture(
    picture: Float[Tensor, "1 c height width"], grid: Float[Tensor, "p rows columns 2"], mode: str
) -> Float[Tensor, "p c rows columns"]:
    return F.grid_sample(picture.expand(len(grid), -1, -1, -1), grid, mode=mode, align_corners=True)


def _padded_labels(labels: Tensor) -> Tensor:
    return F.pad(labels, (1, 1) * 3, value=IGNORED)


def _extremes(padded: Integer[Tensor, "i j k"]) -> Float[Tensor, "2 cells"]:
    """The lowest and the highest label of each eight neighbours, counted from the ignored one.

    One number per voxel, the first corner of its cell, without the last plane. The last row and column of a plane wrap
    around; nobody looks at them. On a flat array each step is a plain pass over memory.
    """
    low = high = (padded - IGNORED).flatten()
    for stride in padded.stride():
        low = torch.minimum(low[:-stride], low[stride:])
        high = torch.maximum(high[:-stride], high[stride:])
    extremes = torch.zeros(2, padded.numel() - padded.stride(0))
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
