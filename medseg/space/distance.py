"""Distances, surfaces and boxes of one binary volume: in millimetres when the spacing is given, in voxels otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[slice, ...]
"""One slice per axis: the part of a volume that matters."""

Steps = Sequence[float] | NDArray[np.float64]
"""From voxel to voxel in mm: an edge per axis or, where they are not square, the matrix (mm, axes) of the steps."""


def places_mm(indices: Num[np.ndarray, "n axes"], steps_mm: Steps) -> Float[np.ndarray, "n mm"]:
    """Where voxels lie, from the corner of the grid.

    Example:
        >>> places_mm(np.array([[1, 2]]), (1.0, 3.0)), places_mm(np.array([[0, 1]]), np.array([[1.0, 0.5], [0.0, 2.0]]))
        (array([[1., 6.]]), array([[0.5, 2. ]]))
    """
    steps = np.asarray(steps_mm, dtype=np.float64)
    return indices * steps if steps.ndim == 1 else indices @ steps.T


def edges_mm(steps_mm: Steps) -> tuple[float, ...]:
    """The lengths of the edges of a voxel."""
    steps = np.asarray(steps_mm, dtype=np.float64)
    return tuple(float(edge) for edge in (steps if steps.ndim == 1 else np.linalg.norm(steps, axis=0)))


def voxel_size(steps_mm: Steps) -> float:
    """The volume of a voxel: the product of its edges where they are square, else the determinant.

    Example:
        >>> voxel_size((1.0, 2.0, 3.0)), round(voxel_size(np.array([[1.0, 1.0], [0.0, 2.0]])), 9)
        (6.0, 2.0)
    """
    steps = np.asarray(steps_mm, dtype=np.float64)
    return float(np.prod(steps) if steps.ndim == 1 else abs(np.linalg.det(steps)))


def euclidean_distance(
    mask: Bool[np.ndarray, "*space"], spacing_mm: Sequence[float] | None = None
) -> Float[np.ndarray, "*space"]:
    """Measure how far every voxel is from the nearest voxel of the mask: d(x) = min over y in mask of |x - y|.

    Zero on the mask itself; infinite everywhere when the mask is empty. To measure inwards pass the complement.
    Only the lines of voxels that can meet the mask are scanned; the interpreter is free meanwhile, so several volumes
    may be measured from several threads.

    Args:
        mask: Two or three axes; True where distance is zero.
        spacing_mm: Edge lengths of a voxel, one per axis; None measures in voxels.

    Returns:
        Distances in float64, the shape of the mask.

    Raises:
        ValueError: If there is not one positive spacing per axis.

    Example:
        >>> euclidean_distance(np.array([[True, False, False]]), spacing_mm=(1.0, 2.5)).tolist()
        [[0.0, 2.5, 5.0]]
    """
    sampling = checked_spacing(spacing_mm, mask.ndim)
    if not mask.any():
        return np.full(mask.shape, np.inf)
    offsets = ndimage.distance_transform_edt(~mask, sampling=sampling, return_distances=False, return_indices=True)
    for axis in range(mask.ndim):
        offsets[axis] -= np.arange(mask.shape[axis], dtype=offsets.dtype).reshape(_along(axis, mask.ndim))
    offsets *= offsets  # still whole numbers, in place: SciPy would make three copies in double precision
    if len(set(sampling)) == 1:
        distance: NDArray[np.float64] = np.sqrt(offsets.sum(axis=0, dtype=np.float64))
        return distance if sampling[0] == 1 else distance * sampling[0]
    squared = sum(axis_offsets * step**2 for axis_offsets, step in zip(offsets, sampling, strict=True))
    return np.asarray(np.sqrt(squared))


def surface(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """Keep the voxels of the mask that share a face with a voxel outside it; beyond the edge of the volume is outside.

    Args:
        mask: Two or three axes.

    Returns:
        The one-voxel-thick inner surface, the shape of the mask.

    Example:
        >>> surface(np.ones((3, 3), dtype=bool)).astype(int).tolist()
        [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    rim = np.zeros_like(mask)
    box = bounding_box(mask)
    if box is not None:
        rim[box] = mask[box] & ~_inside(mask[box])
    return rim


def _inside(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """The voxels whose face neighbours are all in the mask; by shifts, a fifth of the time of SciPy's erosion."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        kept, full = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)  # views
        kept[1:] &= full[:-1]
        kept[:-1] &= full[1:]
        kept[0] = kept[-1] = False
    return inside


def bounding_box(mask: Bool[np.ndarray, "*space"], *, margin: int = 0) -> Box | None:
    """Find the smallest box around the mask, grown by a margin of voxels as far as the volume reaches.

    Args:
        mask: Two or three axes.
        margin: Voxels added on every side.

    Returns:
        A slice per axis, or None when the mask is empty.

    Example:
        >>> bounding_box(np.array([[False, False, True], [False, False, False]]), margin=1)
        (slice(0, 2, None), slice(1, 3, None))
    """
    axes = range(mask.ndim)
    box = []
    for axis in axes:
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis)))
        if not occupied.size:
            return None
        first, last = int(occupied[0]), int(occupied[-1])
        box.append(slice(max(first - margin, 0), min(last + 1 + margin, mask.shape[axis])))
    return tuple(box)


def nonzero_box(array: Num[np.ndarray, "m i j k"]) -> tuple[slice, slice, slice]:
    """The smallest box outside which every channel is zero; the whole volume when all of it is.

    Example:
        >>> image = np.zeros((1, 4, 4, 4)); image[0, 1, 2, 3] = 5; image[0, 2, 2, 2] = -5
        >>> nonzero_box(image)
        (slice(1, 3, None), slice(2, 3, None), slice(2, 4, None))
    """
    box = [slice(0, count) for count in array.shape[1:]]
    if not array.any():
        return box[0], box[1], box[2]
    for axis in range(3):
        lines = np.moveaxis(array[:, box[0], box[1], box[2]], axis + 1, 0)
        first = next(index for index in range(len(lines)) if lines[index].any())
        last = next(index for index in reversed(range(len(lines))) if lines[index].any())
        box[axis] = slice(first, last + 1)
    return box[0], box[1], box[2]


def checked_spacing(spacing_mm: Sequence[float] | None, axes: int) -> tuple[float, ...]:
    """Return one positive edge length per axis, ones when no spacing is given.

    Raises:
        ValueError: If the number of values is not the number of axes, or one is not positive and finite.

    Example:
        >>> checked_spacing(None, 3)
        (1.0, 1.0, 1.0)
    """
    if spacing_mm is None:
        return (1.0,) * axes
    steps = tuple(float(step) for step in spacing_mm)
    if len(steps) != axes or not all(np.isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"spacing_mm must be {axes} positive numbers, one per axis, got {steps}")
    return steps


def _along(axis: int, axes: int) -> tuple[int, ...]:
    """Shape that lays a vector along one axis of an array."""
    return tuple(-1 if position == axis else 1 for position in range(axes))
