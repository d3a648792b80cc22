"""Reading a crop between its voxels, image and labels at the same places, as fast as the device allows."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.space.volume import Shape

IGNORED = -1
"""Label of voxels outside the scan or not annotated: no loss is taken there."""

Positions = tuple[Float[Tensor, "x y z"], Float[Tensor, "x y z"], Float[Tensor, "x y z"]]
"""For each voxel of a patch where it looks, along each axis of the crop, in voxels."""

_MIXED = -1
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
        plane = i.floor().clamp_max_(crop[0])
        self.above = i - plane
        self.height, self.width = (crop[0] + 1) * (crop[1] + 2), crop[2] + 2
        self.grid = torch.empty(*i.shape, 2)
        self.grid[..., 0] = k * (2 / (self.width - 1)) - 1
        self.grid[..., 1] = plane.mul_(crop[1] + 2).add_(j).mul_(2 / (self.height - 1)).sub_(1)

    def image(self, image: Float[Tensor, "m i j k"]) -> Float[Tensor, "m x y z"]:
        """Trilinear interpolation: bilinear in the plane below and the plane above, then between them."""
        patch = image.new_empty((len(image), *self.above.shape))
        for channel, target in zip(F.pad(image, (1, 1) * 3), patch, strict=True):
            stride = self.width * (self.crop[1] + 2)
            both = channel.as_strided((2, self.height, self.width), (stride, self.width, 1), channel.storage_offset())
            below, above = self._picture(both, self.grid, "bilinear")
            torch.lerp(below, above, self.above, out=target)
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
        half_a_voxel = torch.tensor([1 / (self.width - 1), 1 / (self.height - 1)])
        cells = _cells(labels).view(1, self.height, self.width)
        found = self._picture(cells, self.grid - half_a_voxel, "nearest")[0]
        result = found.to(labels.dtype) + IGNORED
        mixed = (found.flatten() == _MIXED).nonzero()[:, 0]
        points = [position.flatten()[mixed] for position in self.padded]
        result.view(-1)[mixed] = _decided(*_corners(_padded_labels(labels), points))
        return result

    def _picture(self, channels: Float[Tensor, "c height width"], grid: Tensor, mode: str) -> Tensor:
        """Interpolate in two dimensions, in parts: torch spreads the samples of a batch over its threads, no more."""
        rows, columns = grid.shape[0] * grid.shape[1], grid.shape[2]
        parts = next(number for number in range(_PARTS, 0, -1) if rows % number == 0)
        sampled = F.grid_sample(
            channels.expand(parts, *channels.shape),
            grid.view(parts, rows // parts, columns, 2),
            mode=mode,
            align_corners=True,
        )
        return sampled.transpose(0, 1).reshape(-1, *grid.shape[:3])


def _padded_labels(labels: Tensor) -> Tensor:
    return F.pad(labels, (1, 1) * 3, value=IGNORED)


def _cells(labels: Tensor) -> Float[Tensor, "cells_i cells_j cells_k"]:
    """Between each eight neighbours their label, counted from the ignored one, or `_MIXED`; as wide as the picture."""
    low = high = F.pad(labels - IGNORED, (1, 2, 1, 2, 1, 1))
    for axis in range(3):
        size = low.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, 1, size))
        high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, 1, size))
    return low.masked_fill_(low != high, _MIXED).float()


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


def _decided(names: Integer[Tensor, "8 n"], weights: Float[Tensor, "8 n"]) -> Integer[Tensor, " n"]:
    """The same, quicker where two labels meet, which is nearly everywhere that any do."""
    low, high = names.amin(0), names.amax(0)
    upper = names == high
    winner = torch.where(upper.mul(weights).sum(0) > 0.5, high, low)
    third = (upper | (names == low)).all(0).logical_not_().nonzero()[:, 0]
    winner[third] = _most(names[:, third], weights[:, third])
    return winner
