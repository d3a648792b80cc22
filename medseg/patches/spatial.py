"""All that moves voxels: rotation, scaling, bending and mirroring in one interpolation, or in none."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from medseg.patches.draw import Draw
from medseg.patches.interpolate import Positions, places
from medseg.space.volume import Shape


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
    """Cut the patch out of its larger crop, mirrored, and interpolated where a sample was rotated, scaled or bent.

    Image and labels are read at the same places. Voxels from outside the crop are zero in the image (its mean, in
    normalised units, which is what prediction pads with) and ignored in the labels.

    Args:
        image: Crops, as large as the patch or larger by an even number of voxels per axis.
        labels: Their labels; −1 is ignored.
        draw: Parameters of the batch.
        patch_size: Voxels that remain.
        nearest: Labels of the nearest voxel; otherwise the label with the largest interpolated share.
    """
    patches = image.new_empty((*image.shape[:2], *patch_size))
    targets = labels.new_empty((len(labels), *patch_size))
    for sample, moved in enumerate(draw.spatial.tolist()):
        if moved:
            positions, box, inside = _positions(draw, sample, patch_size, image)
            i, j, k = (part.stop - part.start for part in box)
            look = places(positions, (i, j, k), inside=inside)
            look.image(image[sample][(slice(None), *box)], patches[sample])
            (look.nearest if nearest else look.voted)(labels[sample][box], targets[sample])
        else:
            patches[sample] = _mirrored(centre(image[sample], patch_size), draw.flips[sample])
            targets[sample] = _mirrored(centre(labels[sample], patch_size), draw.flips[sample])
    return patches, targets


def _mirrored(volume: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """Flip the chosen ones of the last three axes, as far as there are so many of them."""
    axes = [axis - 3 for axis, flipped in enumerate(flips.tolist()) if flipped and 3 - axis <= volume.ndim]
    return volume.flip(axes) if axes else volume


def _positions(
    draw: Draw, sample: int, patch_size: Shape, image: Tensor
) -> tuple[Positions, tuple[slice, slice, slice], bool]:
    """Where each voxel of the patch looks, in a box of the crop that holds all these places.

    Returns:
        The positions, the box they are relative to, and whether none of them leaves the crop: then the box is made of
        whole planes, which can be read where they lie in memory.
    """
    axes = [torch.arange(size, dtype=torch.float32, device=image.device) - (size - 1) / 2 for size in patch_size]
    control = None if draw.elastic is None or not draw.elastic[sample].any() else draw.elastic[sample]
    offsets = _open(axes) if control is None else _bent(axes, control)
    offsets = [_mirrored(offset, draw.flips[sample]) for offset in offsets]
    furthest = np.array([(size - 1) / 2 for size in patch_size])
    if control is not None:
        furthest = furthest + np.abs(control).max((1, 2, 3))  # a spline never leaves its control points' range
    reach = np.abs(draw.affine[sample]) @ furthest
    middles = [(size - 1) / 2 for size in image.shape[2:]]
    inside = all(reached <= middle for reached, middle in zip(reach.tolist(), middles, strict=True))
    positions, box = [], []
    for axis, (row, reached, middle) in enumerate(zip(draw.affine[sample].tolist(), reach, middles, strict=True)):
        first, last = max(0, math.floor(middle - reached)), min(round(2 * middle), math.ceil(middle + reached))
        if inside and axis > 0:
            first, last = 0, round(2 * middle)
        box.append(slice(first, last + 1))
        i, j, k = (offset * factor for offset, factor in zip(offsets, row, strict=True))
        positions.append((i + j, k + (middle - first)))
    return positions, (box[0], box[1], box[2]), inside


def _open(axes: list[Tensor]) -> list[Tensor]:
    i, j, k = axes
    return [i[:, None, None], j[:, None], k]


def _bent(axes: list[Tensor], control: NDArray[np.float32]) -> list[Tensor]:
    """Offsets from the centre, each moved by the smooth field that the control points span."""
    shape: Shape = (len(axes[0]), len(axes[1]), len(axes[2]))
    points = torch.as_tensor(control, device=axes[0].device)
    return [plain + smooth_field(field, shape) for plain, field in zip(_open(axes), points, strict=True)]


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
