"""Change the spacing of a volume: a resampling along one axis is a product with a small banded matrix.

Voxel centres follow the half-pixel convention, x_in = (x_out + ½) · n_in / n_out − ½, and the volume continues with its
edge value; so images agree with ``scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)``, the splines of
scikit-image and nnU-Net, at the price of a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isclose, prod
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from scipy import ndimage

from medseg.space.volume import Shape

ANISOTROPY = 3.0
"""A grid whose coarsest voxel edge is more than this many times its finest is resampled slice by slice."""

MOST_VOXELS = 1 << 32
"""Of a resampled volume, 1600 along each edge: where there are more, a spacing or a header is wrong."""

MOST_IN_ONE_VOXEL = 1000  # of a volume; where more become one, the new spacing is wrong and not the volume small

Band = tuple[slice, slice, NDArray[np.float32]]
"""Rows of the output, the columns of the input that they depend on, and the weights between them."""

TILE = 48  # rows of a band: long enough for the matrix product to be efficient, short enough to skip most zeros
SPLINE_PADDING = 12  # edge voxels repeated before the spline is fitted; its memory of them fades as 0.27 ** distance
ROUNDING = 1e-6  # relative; an affine in float32 knows spacings to some 1e-7, nnU-Net reads them from the header
TIE = 1e-5  # two labels this close are a tie, whatever the rounding of the weights


def resampled_shape(shape: Shape, spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Shape:
    """Count the voxels of the same extent at another spacing, at least one per axis; a half goes to the even side.

    Example:
        >>> resampled_shape((512, 512, 90), (0.8, 0.8, 5.0), (1.6, 0.8, 2.5))
        (256, 512, 180)
    """
    sizes = zip(shape, spacing_mm, target_mm, strict=True)
    exact = (old / new * count for count, old, new in sizes)
    halves = ((number, round(2 * number) / 2) for number in exact)
    i, j, k = (max(1, round(half if isclose(number, half, rel_tol=ROUNDING) else number)) for number, half in halves)
    return i, j, k


def is_absurd(size: Shape, resampled: Shape) -> bool:
    """Whether a resampling says that a spacing is wrong: a volume that no memory holds, or one voxel of very many."""
    return prod(resampled) > MOST_VOXELS or (prod(resampled) == 1 and prod(size) > MOST_IN_ONE_VOXEL)


def through_plane_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """Name the axis whose slices are so far apart that values must not be blended across them, or None.

    That is the single coarsest axis of the source, or else of the target, where it exceeds the finest by more than
    `ANISOTROPY`.

    Paper: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note 2.

    Example:
        >>> through_plane_axis((0.8, 0.8, 5.0), (0.8, 0.8, 5.0)), through_plane_axis((1.0, 1.0, 3.0), (1.0, 1.0, 1.0))
        (2, None)
    """
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY * (1 + ROUNDING):
            coarsest = [axis for axis, edge in enumerate(spacing) if isclose(edge, max(spacing), rel_tol=ROUNDING)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    image: Float[np.ndarray, "m i j k"], shape: Shape, *, order: int = 3, through_plane: int | None = None
) -> Float[np.ndarray, "m i2 j2 k2"]:
    """Interpolate every channel onto a grid of another shape over the same extent.

    Values never leave the range of the input: the overshoot of the spline is clipped.

    Args:
        image: Channels first.
        shape: Voxels of the new grid.
        order: 3 for cubic splines, 1 for linear, 0 for the nearest voxel.
        through_plane: Axis along which whole slices are copied from the nearest one instead; see `through_plane_axis`.

    Returns:
        float32, ``(m, *shape)``; the input itself where its shape is already that.

    Raises:
        ValueError: If the order is not 0, 1 or 3.

    Example:
        >>> resample_image(np.array([[[[0.0, 1.0]]]]), (1, 1, 4), order=1).round(2).tolist()
        [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    if image.shape[1:] == tuple(shape):
        return image.astype(np.float32, copy=False)
    channels = [_resample_channel(channel, shape, order, through_plane) for channel in image]
    return channels[0][None] if len(channels) == 1 else np.stack(channels)


def resample_labels(
    labels: Integer[np.ndarray, "i j k"], shape: Shape, *, through_plane: int | None = None
) -> Integer[np.ndarray, "i2 j2 k2"]:
    """Move a label volume to a grid of another shape: each voxel takes the label with most linear weight.

    Equal to the argmax of the linearly interpolated one-hot volume, but only one class is interpolated at a time, and
    only in its bounding box. In a tie a later label beats an earlier one, any label the background.

    Args:
        labels: Any integers, negative ones too; 0 is background.
        shape: Voxels of the new grid.
        through_plane: Axis along which whole slices are copied from the nearest one.

    Returns:
        The dtype of the input, ``shape``.

    Example:
        >>> resample_labels(np.array([[[0, 2, 2, 1]]]), (1, 1, 2)).tolist()
        [[[2, 2]]]
    """
    if labels.shape == tuple(shape):
        return labels
    if through_plane is None:
        return _vote(labels, shape)
    flat = _with(shape, through_plane, labels.shape[through_plane])
    if shape[through_plane] <= labels.shape[through_plane]:
        return _vote(_nearest(labels, shape[through_plane], through_plane), shape)
    return _nearest(_vote(labels, flat), shape[through_plane], through_plane)


def _resample_channel(
    channel: Float[np.ndarray, "i j k"], shape: Sequence[int], order: int, through_plane: int | None
) -> NDArray[np.float32]:
    if order not in (0, 1, 3):
        raise ValueError(f"order must be 0 (nearest), 1 (linear) or 3 (cubic spline), got {order}")
    axes = sorted(range(3), key=lambda axis: shape[axis] / channel.shape[axis])  # shrink first: less to carry on
    out = channel.astype(np.float32, copy=False)
    for axis in axes:
        if axis == through_plane or order == 0:
            out = _nearest(out, shape[axis], axis)
        elif shape[axis] != channel.shape[axis]:
            out = _multiply(out, _bands(channel.shape[axis], shape[axis], order), shape[axis], axis)
    if order < 3:
        return out
    slices = tuple(axis for axis in range(3) if axis != through_plane)
    lowest, highest = (extreme(channel, axis=slices, keepdims=True) for extreme in (np.min, np.max))
    if through_plane is not None:
        lowest, highest = (_nearest(bound, shape[through_plane], through_plane) for bound in (lowest, highest))
    return np.clip(out, lowest.astype(np.float32), highest.astype(np.float32), out=out)


def _vote(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Label with most linear weight, class by class in its bounding box."""
    out = np.zeros(tuple(shape), dtype=labels.dtype)
    lowest = int(labels.min(initial=0))
    boxes = ndimage.find_objects(labels - (lowest - 1)) if lowest < 0 else ndimage.find_objects(labels)
    found = [(index + (lowest or 1), box) for index, box in enumerate(boxes) if box is not None]
    found = [(value, box) for value, box in found if value != 0]
    best = np.zeros(out.shape, dtype=np.float32)
    total = np.zeros(out.shape, dtype=np.float32)
    for value, box in found:
        weight, place = _box_weight(labels[box] == value, box, labels.shape, shape)
        total[place] += weight
        wins = weight >= best[place] - TIE
        wins &= weight > 0
        np.copyto(out[place], value, where=wins)
        np.maximum(best[place], weight, out=best[place])
    out[total + best < 1 - TIE] = 0  # the background holds the rest: 1 − total > best
    return out


def _box_weight(
    mask: NDArray[np.bool_], box: tuple[slice, ...], source: Sequence[int], shape: Sequence[int]
) -> tuple[NDArray[np.float32], tuple[slice, ...]]:
    """Linear weight of a class, and where in the output it can be more than zero."""
    weight = mask.astype(np.float32)
    place = []
    for axis, (window, count_in, count_out) in enumerate(zip(box, source, shape, strict=True)):
        if count_in == count_out:
            place.append(window)
            continue
        matrix = _matrix(count_in, count_out, 1)[:, window]
        rows = np.flatnonzero(matrix.any(axis=1))
        if not rows.size:  # thinner than the step of the new grid: no centre falls beside it
            return np.zeros((0, 0, 0), dtype=np.float32), (slice(0, 0),) * 3
        reached = slice(int(rows[0]), int(rows[-1]) + 1)
        weight = _multiply(weight, _cut(matrix[reached]), reached.stop - reached.start, axis)
        place.append(reached)
    return weight, tuple(place)


def _multiply(array: NDArray[np.float32], bands: list[Band], count: int, axis: int) -> NDArray[np.float32]:
    """Product of a banded matrix with every line of the array along one axis."""
    out = np.empty(_with(array.shape, axis, count), dtype=np.float32)
    if axis == 0:
        flat_in, flat_out = np.ascontiguousarray(array).reshape(array.shape[0], -1), out.reshape(count, -1)
        for rows, columns, weights in bands:
            np.matmul(weights, flat_in[columns], out=flat_out[rows])
    elif axis == 1:
        for rows, columns, weights in bands:
            np.matmul(weights, array[:, columns], out=out[:, rows])
    else:
        for rows, columns, weights in bands:
            out[:, :, rows] = array[:, :, columns] @ weights.T
    return out


def _nearest(array: NDArray[Any], count: int, axis: int) -> NDArray[Any]:
    before = array.shape[axis]
    if before == count:
        return array
    index = np.floor(_centres(before, count) + 0.5).astype(np.intp).clip(0, before - 1)
    return np.take(array, index, axis=axis)


def _centres(count_in: int, count_out: int) -> NDArray[np.float64]:
    """Where the centres of the new voxels lie among the old ones."""
    return (np.arange(count_out, dtype=np.float64) + 0.5) * (count_in / count_out) - 0.5


@lru_cache(maxsize=64)
def _bands(count_in: int, count_out: int, order: int) -> list[Band]:
    return _cut(_matrix(count_in, count_out, order))


def _cut(matrix: NDArray[np.float32]) -> list[Band]:
    """Tiles of rows with the columns in which they are not zero."""
    bands = []
    for start in range(0, len(matrix), TILE):
        tile = matrix[start : start + TILE]
        used = np.flatnonzero(tile.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
        bands.append((slice(start, start + len(tile)), columns, np.ascontiguousarray(tile[:, columns])))
    return bands


@lru_cache(maxsize=16)
def _matrix(count_in: int, count_out: int, order: int) -> NDArray[np.float32]:
    """Weights (count_out, count_in) of linear interpolation or of the interpolating cubic spline; rows sum to one."""
    padding = SPLINE_PADDING if order == 3 else 1
    centres = _centres(count_in, count_out) + padding
    first = np.floor(centres).astype(np.intp) - (order // 2)
    basis = _cubic(centres - np.floor(centres)) if order == 3 else _linear(centres - np.floor(centres))
    coefficients = np.eye(count_in + 2 * padding)
    if order == 3:
        coefficients = ndimage.spline_filter1d(coefficients, 3, axis=0, mode="nearest")
    padded = np.zeros((count_out, len(coefficients)))
    for step, weight in enumerate(basis):
        padded += weight[:, None] * coefficients[first + step]
    matrix = padded[:, padding:-padding].copy()
    matrix[:, 0] += padded[:, :padding].sum(axis=1)
    matrix[:, -1] += padded[:, -padding:].sum(axis=1)
    matrix[np.abs(matrix) < 1e-7] = 0
    return matrix.astype(np.float32)


def _linear(t: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [1 - t, t]


def _cubic(t: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The four cubic B-splines that overlap a point at fraction t of its cell."""
    s = 1 - t
    return [s**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * s**2 + 3 * s**3) / 6, t**3 / 6]


def _with(shape: Sequence[int], axis: int, count: int) -> tuple[int, ...]:
    """A shape with one axis changed."""
    return tuple(count if position == axis else size for position, size in enumerate(shape))
