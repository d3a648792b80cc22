"""Whether the voxels of two files lie at the same places, and if not, what sets them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import DataError
from medseg.space.volume import Volume, distance_in_voxels, same_place

_SMALL_SHIFT = 1.0  # voxels; half of one comes of programs that disagree on what an origin is the place of


def require_same_grid(path: Path, volume: Volume, reference_path: Path, reference: Volume) -> None:
    """Refuse a volume whose voxels do not lie where those of the reference lie.

    Raises:
        DataError: Naming the first of shape, spacing, direction and origin that differs.
    """
    other = reference_path.name if reference_path.name != path.name else str(reference_path)
    if volume.shape != reference.shape:
        raise DataError(
            path, f"has shape {volume.shape}, but {other} has {reference.shape}", "Resample one onto the other's grid"
        )
    if same_place(volume.affine, reference.affine, volume.shape):
        return
    problem = f"has another affine than {other}: {affine_difference(volume, reference)}"
    remedy = "Resample it, or copy the affine if you know that only the header is wrong"
    if (apart := distance_in_voxels(volume.affine, reference.affine, volume.shape)) < _SMALL_SHIFT:
        problem += f", {apart:.2g} of a voxel"
        remedy = (
            f"Look whether it fits {other} as it lies or with the other affine, then resample it or copy that affine"
        )
    raise DataError(path, problem, remedy)


def affine_difference(volume: Volume, reference: Volume) -> str:
    """Say which of spacing, direction and origin sets two grids of one shape apart, spacing first.

    Example:
        >>> thin, thick = (Volume(np.zeros((1, 2, 2, 2)), np.diag([1.0, 1.0, z, 1.0])) for z in (1, 5))
        >>> affine_difference(thin, thick)
        'spacing (1, 1, 1) mm, expected (1, 1, 5) mm'
    """
    ours, theirs = volume.affine, reference.affine
    if not np.allclose(volume.spacing_mm, reference.spacing_mm, rtol=1e-3):
        return f"spacing {_triple(volume.spacing_mm)} mm, expected {_triple(reference.spacing_mm)} mm"
    if volume.orientation != reference.orientation:
        return f"direction {volume.orientation}, expected {reference.orientation}"
    cosines = np.clip((ours[:3, :3] * theirs[:3, :3]).sum(0) / (ours[:3, :3] ** 2).sum(0), -1, 1)
    if not np.allclose(cosines, 1, atol=1e-4):
        return f"direction turned by {np.degrees(np.arccos(cosines.min())):.2g} degrees"
    return f"origin {_triple(ours[:3, 3])} mm, expected {_triple(theirs[:3, 3])} mm"


def _triple(numbers: Any) -> str:
    return "(" + ", ".join(f"{float(n):.4g}" for n in numbers) + ")"
