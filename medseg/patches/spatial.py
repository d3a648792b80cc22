"""Rotation, scaling and bending in one interpolation; mirroring without any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
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
        look = places(_positions(draw, sample, patch_size, image), (image.shape[2], image.shape[3], image.shape[4]))
        patches[sample] = look.image(image[sample])
        targets[sample] = (look.nearest if nearest else look.voted)(labels[sample])
    return patches, targets


def mirror(volume: Tensor, flips: Sequence[bool]) -> Tensor:
    """Flip the chosen ones of the last three axes."""
    axes = [axis - 3 for axis, flipped in enumerate(flips) if flipped]
    return volume.flip(axes) if axes else volume


def _positions(draw: Draw, sample: int, patch_size: Shape, image: Tensor) -> Positions:
    """Where in the crop each voxel of the patch looks."""
    axes = [torch.arange(size, dtype=torch.float32, device=image.device) - (size - 1) / 2 for size in patch_size]
    bent = draw.elastic is not None and draw.elastic[sample].any()
    offsets = _bent(axes, draw.elastic[sample]) if draw.elastic is not None and bent else _open(axes)
    middle = [(size - 1) / 2 for size in image.shape[2:]]
    i, j, k = (
        offsets[0] * a + offsets[1] * b + (offsets[2] * c + m)
        for (a, b, c), m in zip(draw.affine[sample].tolist(), middle, strict=True)
    )
    return i, j, k


def _open(axes: list[Tensor]) -> list[Tensor]:
    i, j, k = axes
    return [i[:, None, None], j[:, None], k]


def _bent(axes: list[Tensor], control: object) -> list[Tensor]:
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
