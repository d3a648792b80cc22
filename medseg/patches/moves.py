"""What moves voxels: rotation, scaling and bending, drawn here and applied in one interpolation (`spatial`)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medseg.patches.augmentations import Bounds, Drawn, Field, Matrix, Range, Setting, augmentation
from medseg.patches.geometry import Geometry


def rotation_reach(
    furthest_mm: NDArray[np.float64], geometry: Geometry, *, rotation_deg: float, rotation_in_plane_deg: float
) -> NDArray[np.float64]:
    """How far the largest rotation about one axis looks."""
    plane, reached = geometry.through_plane, furthest_mm
    for axis in range(3) if plane is None else (plane,):
        for angle_deg in np.linspace(0, rotation_deg if plane is None else rotation_in_plane_deg, 10):
            turn = turned(np.deg2rad(np.where(np.arange(3) == axis, angle_deg, 0.0)))
            reached = np.maximum(reached, np.abs(turn) @ furthest_mm)
    return reached


@augmentation(
    probability=0.2,
    presets={"full": {}, "moderate": {"rotation_deg": 20.0, "rotation_in_plane_deg": 20.0}},
    reach=rotation_reach,
)
def rotation(
    rng: np.random.Generator,
    geometry: Geometry,
    *,
    rotation_deg: Drawn = Setting(30.0, neutral=0.0),
    rotation_in_plane_deg: Drawn = Setting(180.0, neutral=0.0),
) -> Matrix:
    """Rotated about each axis in turn, in millimetres.

    Args:
        rotation_deg: Largest angle about each axis.
        rotation_in_plane_deg: Largest angle where voxels are so anisotropic (over 3) that only the plane is rotated.
    """
    plane = geometry.through_plane
    largest = np.full(3, rotation_deg)
    if plane is not None:
        largest[:] = 0.0
        largest[plane] = rotation_in_plane_deg
    return turned(np.deg2rad(rng.uniform(-largest, largest)))


def turned(angles_rad: NDArray[np.float64]) -> Matrix:
    """The product of rotations about axes 0, 1 and 2, each by the right-hand rule."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def scale_reach(furthest_mm: NDArray[np.float64], geometry: Geometry, *, scale: Range) -> NDArray[np.float64]:
    """How far the largest scale looks."""
    return furthest_mm * np.where(in_plane(geometry), max(scale[1], 1.0), 1.0)


@augmentation(probability=0.2, presets={"full": {}, "moderate": {"scale": (0.8, 1.2)}}, reach=scale_reach)
def scale(
    rng: np.random.Generator, geometry: Geometry, *, scale: Drawn = Setting((0.7, 1.4), Bounds(above=True), neutral=1.0)
) -> Matrix:
    """Magnified or shrunk.

    Args:
        scale: Length of the region looked at, as a multiple of the patch: 0.8 magnifies, 1.25 shrinks.
    """
    return np.diag(np.where(in_plane(geometry), rng.uniform(*scale), 1.0))


def elastic_reach(
    furthest_mm: NDArray[np.float64], geometry: Geometry, *, elastic_mm: float, elastic_points: int
) -> NDArray[np.float64]:
    """Two standard deviations."""
    return furthest_mm + 2 * elastic_mm * in_plane(geometry)


@augmentation(probability=0.0, reach=elastic_reach)
def elastic(
    rng: np.random.Generator,
    geometry: Geometry,
    *,
    elastic_mm: Drawn = Setting(3.0, neutral=0.0),
    elastic_points: Drawn = Setting(6, Bounds(2)),
) -> Field:
    """Bent smoothly.

    Args:
        elastic_mm: Standard deviation of the displacement of each control point.
        elastic_points: Control points along each axis of a patch, one at each end.
    """
    spread = np.where(in_plane(geometry), elastic_mm / np.array(geometry.spacing_mm), 0.0)
    points = rng.standard_normal((3, *[elastic_points] * 3)) * spread[:, None, None, None]
    return points.astype(np.float32)


def in_plane(geometry: Geometry) -> NDArray[np.bool_]:
    """The axes along which voxels may move: all three, or without the one across thick slices."""
    return np.array([axis != geometry.through_plane for axis in range(3)])
