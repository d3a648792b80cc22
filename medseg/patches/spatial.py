"""Rotation, scaling and bending in one interpolation; mirroring without any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.patches.draw import Draw
from medseg.space.volume import Shape

IGNORED = -1
"""Label of voxels outside the scan or not annotated: no loss is taken there."""

_SLICES_AT_ONCE = 8
_MIXED = -1


def centre(volume: Tensor, patch_size: Shape) -> Tensor:
    """The middle of the last three axes, as a view."""
    starts = [(size - wanted) // 2 for size, wanted in zip(volume.shape[-3:], patch_size, strict=True)]
    for axis, (start, wanted) in enumerate(zip(starts, patch_size, strict=True), start=-3):
        volume = volume.narrow(axis, start, wanted)
    return volume


def deform(
    image: Float[Tensor, "b m i j k"],
    labels: Integer[Tensor, "b i j k"],
    draw: Draw,
    patch_size: Shape,
    *,
    nearest: bool = False,
) -> tuple[Float[Tensor, "b m x y z"], Integer[Tensor, "b x y z"]]:
    """Cut the patch out of its larger crop, interpolated where a sample was rotated, scaled or bent.

    Image and labels are read at the same places. Voxels from outside the crop are zero in the image
    (its mean, in normalised units, which is what prediction pads with) and ignored in the labels.

    Args:
        image: Crops, as large as the patch or larger by an even number of voxels per axis.
        labels: Their labels; −1 is ignored.
        draw: Parameters of the batch.
        patch_size: Voxels that remain.
        nearest: Labels of the nearest voxel; otherwise the label with the largest interpolated share.
    """
    patches, targets = centre(image, patch_size).clone(), centre(labels, patch_size).clone()
    for sample in np.flatnonzero(draw.spatial).tolist():
        grid = _grid(draw, sample, patch_size, image)
        patches[sample] = _sample(image[sample], grid)
        targets[sample] = (_nearest_labels if nearest else _linear_labels)(labels[sample], grid)
    return patches, targets


def mirror(volume: Tensor, flips: Sequence[bool]) -> Tensor:
    """Flip the chosen ones of the last three axes."""
    axes = [axis - 3 for axis, flipped in enumerate(flips) if flipped]
    return volume.flip(axes) if axes else volume


def _grid(draw: Draw, sample: int, patch_size: Shape, image: Tensor) -> Float[Tensor, "x y z 3"]:
    """Where in the crop each voxel of the patch looks, in the units of `grid_sample` (the last axis comes first)."""
    device, source = image.device, image.shape[-3:]
    axes = [torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2 for size in patch_size]
    offsets = _bent(axes, draw.elastic[sample]) if draw.elastic is not None and draw.elastic[sample].any() else None
    grid = torch.empty(*patch_size, 3, device=device)
    for target, row in enumerate(draw.affine[sample].tolist()):
        unit = 2 / source[target]
        if offsets is None:
            i, j, k = (factor * unit * axis for factor, axis in zip(row, axes, strict=True))
            position = (i[:, None] + j)[..., None] + k
        else:
            position = sum(
                (factor * unit * offset for factor, offset in zip(row, offsets, strict=True)), grid.new_zeros(())
            )
        grid[..., 2 - target] = position
    return grid


def _bent(axes: list[Tensor], control: object) -> list[Tensor]:
    """Offsets from the centre, each moved by the smooth field that the control points span."""
    i, j, k = axes
    straight = (i[:, None, None], j[:, None], k)
    shape: Shape = (len(i), len(j), len(k))
    points = torch.as_tensor(control, device=i.device)
    return [plain + smooth_field(field, shape) for plain, field in zip(straight, points, strict=True)]


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


def _sample(channels: Float[Tensor, "c i j k"], grid: Tensor, mode: str = "bilinear") -> Float[Tensor, "c x y z"]:
    """Interpolate; on a CPU in slices, for torch spreads the samples of a batch over its threads and only those."""
    depth = grid.shape[0]
    most = _SLICES_AT_ONCE if grid.device.type == "cpu" else 1
    parts = next(n for n in range(min(most, depth), 0, -1) if depth % n == 0)
    sliced = grid.reshape(parts, depth // parts, *grid.shape[1:])
    sampled = F.grid_sample(channels.expand(parts, *channels.shape), sliced, mode=mode, align_corners=False)
    return sampled.transpose(0, 1).reshape(-1, *grid.shape[:3])


def _nearest_labels(labels: Tensor, grid: Tensor) -> Tensor:
    shifted = (labels - IGNORED).float()[None]  # outside reads as zero, so zero must mean ignored
    return _sample(shifted, grid, "nearest")[0].to(labels.dtype) + IGNORED


def _linear_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """The argmax of the interpolated one-hot map, which is never made, so that any number of labels costs the same.

    Only where the eight voxels around a point differ is there anything to decide. A GPU decides everywhere, which is
    cheaper for it than to wait for the list of such points.
    """
    if grid.device.type != "cpu":
        return _vote(labels, grid)
    sizes = grid.new_tensor(labels.shape[::-1])
    found = _sample(_cells(labels)[None], grid * (sizes / (sizes + 1)), "nearest")[0]
    result = found.to(labels.dtype) + IGNORED
    mixed = (found.flatten() == _MIXED).nonzero()[:, 0]
    result.view(-1)[mixed] = _vote(labels, grid.view(-1, 3)[mixed])
    return result


def _cells(labels: Tensor) -> Float[Tensor, "i_and_1 j_and_1 k_and_1"]:
    """Between each eight neighbouring voxels their label, counted from the ignored one, or `_MIXED` if they differ."""
    low = high = F.pad(labels - IGNORED, (1, 1) * 3)
    for axis in range(3):
        size = low.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, 1, size))
        high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, 1, size))
    return low.masked_fill_(low != high, _MIXED).float()


def _vote(labels: Tensor, points: Float[Tensor, "*n 3"]) -> Integer[Tensor, "*n"]:
    """The label that the eight voxels around a point give the most weight; outside the crop is ignored."""
    padded = F.pad(labels, (1, 1) * 3, value=IGNORED)
    index, weights = torch.zeros((), dtype=torch.long, device=labels.device), torch.ones((), device=labels.device)
    for axis, (size, stride) in enumerate(zip(padded.shape, padded.stride(), strict=True)):
        position = ((points[..., 2 - axis] + 1) * ((size - 2) / 2) + 0.5).clamp(0, size - 1.001)
        corner = position.floor()
        after = position - corner
        first = corner.long() * stride
        index = (index + torch.stack([first, first + stride])[:, None]).flatten(0, 1)
        weights = (weights * torch.stack([1 - after, after])[:, None]).flatten(0, 1)
    names = padded.flatten()[index]
    winner, most = names[0], (names == names[0]).mul(weights).sum(0)
    for name in names[1:]:
        votes = (names == name).mul(weights).sum(0)
        winner, most = torch.where(votes > most, name, winner), torch.maximum(votes, most)
    return winner
