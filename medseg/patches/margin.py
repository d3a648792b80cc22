"""How much more than a patch must be read so that what moves voxels finds real ones."""

from __future__ import annotations

import math

import numpy as np

from medseg.patches.geometry import Geometry
from medseg.patches.settings import Augmentation
from medseg.space.volume import Shape


def crop_size(settings: Augmentation, geometry: Geometry, largest: Shape) -> Shape:
    """The patch plus an equal margin on both sides of each axis.

    The margin is what the augmentations say that they reach, but no more than ``settings.margin`` of the patch, and no
    more than the largest volume has voxels for.

    Args:
        settings: Ranges of the augmentation.
        geometry: The patch and its spacing.
        largest: Voxels of the largest volume along each axis.

    Example:
        >>> from medseg.patches.settings import PRESETS
        >>> grid = Geometry((40, 40, 40), (1.0, 1.0, 1.0))
        >>> crop_size(PRESETS["full"], grid, (300, 300, 44)), crop_size(PRESETS["light"], grid, (300, 300, 300))
        ((60, 60, 44), (40, 40, 40))
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
    spacing_mm = np.array(geometry.spacing_mm)
    half_mm = np.array(geometry.patch_size) * spacing_mm / 2
    furthest_mm = half_mm.copy()
    for strength in settings.strengths:
        if strength.row.reach is not None and strength.probability > 0:
            furthest_mm = strength.row.reach(furthest_mm, geometry, **strength.own)
    return [float(reached) for reached in (furthest_mm - half_mm) / spacing_mm]
