"""All that moves voxels: rotation, scaling, bending and mirroring in one interpolation, or in none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from medseg.machine.devices import uploaded
from medseg.patches.draw import Draw
from medseg.patches.interpolate import Positions, places, smooth_field
from medseg.space.volume import Shape

Box = tuple[slice, slice, slice]


def centre(volume: Tensor, patch_size: Shape) -> Tensor:
    """The middle of the last three axes, as a view."""
    starts = [(size - wanted) // 2 for size, wanted in zip(volume.shape[-3:], patch_size, strict=True)]
    for axis, (start, wanted) in enumerate(zip(starts, patch_size, strict=True), start=-3):
        volume = volume.narrow(axis, start, wanted)
    return volume


def deform(
    image: Sequence[Float[Tensor, "m _i _j _k"]] | Float[Tensor, "b m i j k"],
    labels: Sequence[Integer[Tensor, "*_maps _i _j _k"]] | Integer[Tensor, "b *maps i j k"],
    draw: Draw,
    patch_size: Shape,
    *,
    nearest: bool = False,
) -> tuple[Float[Tensor, "b m x y z"], Integer[Tensor, "b *maps x y z"]]:
    """Cut the patch out of its larger crop, mirrored, and interpolated where a sample was rotated, scaled or bent.

    Image and labels are read at the same places. Voxels from outside the crop are zero in the image (its mean, in
    normalised units, which is what prediction pads with) and ignored in the labels.

    Args:
        image: Crops, each as large as the patch or larger by an even number of voxels per axis.
        labels: Their labels, or several maps of them; −1 is ignored.
        draw: Parameters of the batch.
        patch_size: Voxels that remain.
        nearest: Labels of the nearest voxel; otherwise the label with the largest interpolated share.
    """
    patches = image[0].new_empty((len(image), len(image[0]), *patch_size))
    targets = labels[0].new_empty((len(labels), *labels[0].shape[:-3], *patch_size))
    for sample, moved in enumerate(draw.spatial.tolist()):
        if moved:
            positions, box, inside = _positions(draw, sample, patch_size, image[sample])
            i, j, k = (part.stop - part.start for part in box)
            look = places(positions, (i, j, k), inside=inside)
            crop, into = image[sample][(slice(None), *box)], patches[sample]
            read, found = (
                maps.reshape(-1, *maps.shape[-3:]) for maps in (labels[sample][(..., *box)], targets[sample])
            )
            for names, target in zip(read, found, strict=True):
                look.read((crop, names), (into, target), nearest=nearest)
                crop, into = crop[:0], into[:0]  # which the first map has brought along
        else:
            patches[sample] = _mirrored(centre(image[sample], patch_size), draw.flips[sample])
            targets[sample] = _mirrored(centre(labels[sample], patch_size), draw.flips[sample])
    return patches, targets


def _mirrored(volume: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """Flip the chosen ones of the last three axes."""
    axes = [axis - 3 for axis, flipped in enumerate(flips.tolist()) if flipped]
    return volume.flip(axes) if axes else volume


def _positions(draw: Draw, sample: int, patch_size: Shape, image: Tensor) -> tuple[Positions, Box, bool]:
    """Where each voxel of the patch looks, in a box of the crop that holds all these places.

    Returns:
        The positions, the box they are relative to, and whether none of them leaves the crop: then the box is made of
        whole planes, which can be read where they lie in memory.
    """
    affine, flips, bends = draw.affine[sample], draw.flips[sample], draw.fields[sample]
    furthest = np.array([(size - 1) / 2 for size in patch_size])
    i, j, k = (
        np.linspace(-end, end, size) for end, size in zip(np.where(flips, -furthest, furthest), patch_size, strict=True)
    )
    for control in bends:
        furthest = furthest + np.abs(control).max((1, 2, 3))  # a spline never leaves its control points' range
    box, middles, inside = _looked_at(np.abs(affine) @ furthest, image)
    planes = affine[:, 0, None, None] * i[:, None] + affine[:, 1, None, None] * j
    lines = affine[:, 2, None] * k + middles[:, None]
    firsts, seconds = (uploaded(part.astype(np.float32), image.device) for part in (planes, lines))
    shifts = list(seconds)
    for control in bends:
        moved = uploaded(np.tensordot(affine, control, 1), image.device)
        fields = [_mirrored(smooth_field(field, patch_size), flips) for field in moved]
        shifts = [field + line for field, line in zip(fields, shifts, strict=True)]
    return list(zip(firsts[..., None], shifts, strict=True)), box, inside


def _looked_at(reach: NDArray[np.floating[Any]], image: Tensor) -> tuple[Box, NDArray[np.float64], bool]:
    """The part of a crop within reach of its centre, the centre's place in it, and whether that is all inside."""
    centre = np.array([(size - 1) / 2 for size in image.shape[-3:]])
    inside = bool((reach <= centre).all())
    first = np.maximum(0, np.floor(centre - reach)).astype(int)
    last = np.minimum(2 * centre, np.ceil(centre + reach)).astype(int)
    if inside:
        first[1:], last[1:] = 0, 2 * centre[1:]
    i, j, k = (slice(start, end + 1) for start, end in zip(first.tolist(), last.tolist(), strict=True))
    return (i, j, k), centre - first, inside
