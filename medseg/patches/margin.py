"""How much more than a patch must be read so that rotation and shrinking find real voxels."""

from __future__ import annotations

import math

import numpy as np

from medseg.patches.draw import Geometry, rotation
from medseg.patches.settings import Augmentation
from medseg.space.volume import Shape


def crop_size(settings: Augmentation, geometry: Geometry, largest: Shape) -> Shape:
    """The patch plus an equal margin on both sides of each axis.

    The margin is what the largest rotation about one axis and the largest scale reach, but no more than
    ``settings.margin`` of the patch, and no more than the largest volume has voxels for.

    Args:
        settings: Ranges of the augmentation.
        geometry: The patch and its spacing.
        largest: Voxels of the largest volume along each axis.

    Example:
        >>> grid = Geometry((40, 40, 40), (1.0, 1.0, 1.0))
        >>> crop_size(Augmentation(), grid, (300, 300, 44))
        (60, 60, 44)
        >>> crop_size(Augmentation(rotation_probability=0.0, scale_probability=0.0), grid, (300, 300, 300))
        (40, 40, 40)
    """
    if not settings.spatial:
        return geometry.patch_size
    sizes = zip(geometry.patch_size, _reach(settings, geometry), largest, strict=True)
    i, j, k = (
        size + 2 * max(0, math.ceil(min(reached, size * settings.margin, (most - size) / 2)))
        for size, reached, most in sizes
    )
    return i, j, k


def _reach(settings: Augmentation, geometry: Geometry) -> list[float]:
    """Voxels beyond the patch on each side that the strongest transform may look at."""
    spacing_mm, plane = np.array(geometry.spacing_mm), geometry.through_plane
    half_mm = np.array(geometry.patch_size) * spacing_mm / 2
    furthest = half_mm.copy()
    if settings.rotation_probability > 0:
        for axis in range(3) if plane is None else (plane,):
            largest_deg = settings.rotation_deg if plane is None else settings.rotation_in_plane_deg
            for angle_deg in np.linspace(0, largest_deg, 10):
                turn = rotation(np.deg2rad(np.where(np.arange(3) == axis, angle_deg, 0.0)))
                furthest = np.maximum(furthest, np.abs(turn) @ half_mm)
    if settings.scale_probability > 0:
        scaled = np.full(3, max(settings.scale[1], 1.0))
        if plane is not None:
            scaled[plane] = 1.0
        furthest = furthest * scaled
    if settings.elastic_probability > 0:
        furthest = furthest + 2 * settings.elastic_mm * (np.arange(3) != (-1 if plane is None else plane))
    return [float(reached) for reached in (furthest - half_mm) / spacing_mm]
