"""Details of a volume that stay what they are when it is cropped, padded, mirrored or put into other units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float32, UInt64
from numpy.typing import NDArray
from scipy.sparse import csr_array

KEPT = 512
"""Details of a volume that are kept: those of the smallest numbers, so that a part keeps those of the whole in it."""

_REACH = 2  # voxels from a peak along each axis that make its detail
_MANY = 8 * KEPT  # peaks whose comparisons are all made, for few need be to know the smallest
_AT_ONCE = 13  # comparisons that are made before peaks are parted from again
_OFFSETS = [offset for offset in product(range(-_REACH, _REACH + 1), repeat=3) if any(offset)]
_PAIRS = np.random.default_rng(0).permutation(np.array(_OFFSETS)).reshape(2, -1, 3)  # who is compared with whom
_BESIDE = sorted(
    (o for o in _OFFSETS if max(map(abs, o)) == 1), key=lambda o: sum(map(abs, o))
)  # by face, edge, corner
_STIR = np.uint64(0x9E3779B97F4A7C15)  # odd: no kind of peak comes first


def details(voxels: Float32[np.ndarray, "i j k"]) -> UInt64[np.ndarray, " details"]:
    """Peaks of intensity, each as a number that tells which of its neighbours are brighter than which (census, BRIEF).

    Such comparisons outlive every increasing change of the intensities. They are made from where the peak falls off
    less on each axis, so a mirror image has the same. What a volume shows twice tells nothing and is left out.

    Args:
        voxels: Along the axes of the body.

    Returns:
        At most `KEPT`, in ascending order; none of a volume thinner than five voxels.

    Reference:
        Calonder et al., "BRIEF: Binary Robust Independent Elementary Features", ECCV 2010; Broder, "On the resemblance
        and containment of documents", 1997.

    Example:
        >>> scan = np.random.default_rng(0).normal(size=(40, 30, 20)).astype(np.float32)
        >>> part = 5 - 2 * np.pad(-scan[:25, 3:, ::-1], 4)
        >>> len(np.intersect1d(details(scan), details(part))) > 200
        True
    """
    if min(voxels.shape) <= 2 * _REACH:
        return np.zeros(0, np.uint64)
    flat = np.ascontiguousarray(voxels).reshape(-1)
    steps = np.array([voxels.shape[1] * voxels.shape[2], voxels.shape[2], 1])
    places = _distinct(flat, _peaks(voxels, flat, steps), steps)
    rising = np.stack([flat[places + step] > flat[places - step] for step in steps.tolist()], axis=1)
    sides = rising @ np.array([4, 2, 1])
    signs = np.array(list(product((-1, 1), repeat=3)))  # of the three axes, in the order of `sides`
    jumps = _PAIRS @ (signs * steps).T  # to either neighbour of each pair, for each turn of the axes
    numbers = np.zeros(len(places), np.uint64)
    for start in range(0, jumps.shape[1], _AT_ONCE):
        some = jumps[:, start : start + _AT_ONCE]
        numbers = numbers << np.uint64(some.shape[1]) | _compared(flat, places, sides, some)
        if len(numbers) > _MANY:  # which of them are the smallest is decided
            kept = numbers <= np.partition(numbers, _MANY)[_MANY]
            places, sides, numbers = places[kept], sides[kept], numbers[kept]
    found, times = np.unique(numbers, return_counts=True)
    once: UInt64[np.ndarray, " details"] = found[times == 1][:KEPT]
    return once


def _peaks(voxels: NDArray[np.float32], flat: NDArray[np.float32], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in memory of the voxels that are brighter than all 26 around them."""
    inner = [slice(_REACH, size - _REACH) for size in voxels.shape]
    top = np.ones(voxels[tuple(inner)].shape, dtype=bool)
    for offset in _BESIDE[:6]:
        moved = (slice(side.start + by, side.stop + by) for side, by in zip(inner, offset, strict=True))
        top &= voxels[tuple(inner)] > voxels[tuple(moved)]
    places: NDArray[np.int64] = (np.argwhere(top) + _REACH) @ steps
    for offset in _BESIDE[6:]:
        places = places[flat[places] > flat[places + steps @ offset]]
    return places


def _distinct(flat: NDArray[np.float32], places: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those peaks that fall off unequally along each axis, and on into something: a frame of air makes all alike."""
    clear = np.ones(len(places), dtype=bool)
    for step in steps.tolist():
        before, after = flat[places - step], flat[places + step]
        clear &= (before != after) & (before != flat[places - 2 * step]) & (after != flat[places + 2 * step])
    return places[clear]


def _compared(
    flat: NDArray[np.float32], places: NDArray[np.int64], sides: NDArray[np.int64], jumps: NDArray[np.int64]
) -> UInt64[np.ndarray, " peaks"]:
    """A bit for each pair of neighbours, whether the first is darker, stirred to a number of as many bits."""
    bits = np.zeros(len(places), np.uint64)
    for one, other in zip(*jumps, strict=True):
        bits = bits << np.uint64(1) | (flat[places + one[sides]] < flat[places + other[sides]]).astype(np.uint64)
    return (bits + np.uint64(1)) * _STIR % np.uint64(1 << jumps.shape[1])


def shared(several: Sequence[UInt64[np.ndarray, " _"]]) -> dict[tuple[int, int], int]:
    """Places of two volumes, the smaller first -> how many details they have in common, where they have any."""
    numbers, columns = np.unique(np.concatenate(several), return_inverse=True)
    ends = np.concatenate([[0], np.cumsum([len(one) for one in several])])
    holds = csr_array((np.ones(len(columns), np.int32), columns, ends), shape=(len(several), len(numbers)))
    common = (holds @ holds.T).tocoo()
    pairs = zip(common.row.tolist(), common.col.tolist(), common.data.tolist(), strict=True)
    return {(one, other): count for one, other, count in pairs if one < other}
