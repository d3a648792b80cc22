"""What the numbers in a label volume mean: an organ has one value or several, and regions may share values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import listed
from medseg.space.distance import Box

LabelValue = int | tuple[int, ...]
"""The value that an organ has in a file, or (a region that holds parts) its values."""

Others = Literal["background", "ignore"]
"""What becomes of the values of a label file that nobody declared."""

IGNORED = -1
"""Label of voxels outside the scan or not annotated, in the store and in patches: they count for nothing."""

ROUNDING = 1e-5
"""How far a number that was a whole one may lie from it because of arithmetic alone: a scaled file, a float image."""

_RELATIVE = 2.0**-22  # the same as a share of the number: a header keeps its scale in 24 bits
_DIRECT = 1 << 16  # values this close together are counted and replaced by a table, others by a search
_AT_ONCE = 1 << 20  # voxels; bounds the copies that counting and searching make
_NOISY = 0.35  # share of neighbours that are equal: noise has less, a map of labels more
_FEW = 10  # undeclared values; more of them may be intensities


def values_of(organ: LabelValue) -> tuple[int, ...]:
    """The values of an organ, one or several.

    Example:
        >>> values_of(3), values_of((1, 3))
        ((3,), (1, 3))
    """
    return tuple(organ) if isinstance(organ, tuple | list) else (organ,)


def others_value(others: Others | None, ignore: int | None) -> int | None:
    """The value that undeclared ones count as, None where there may be none.

    Example:
        >>> others_value("background", None), others_value("ignore", 255), others_value(None, 255)
        (0, 255, None)
    """
    return {None: None, "background": 0, "ignore": IGNORED if ignore is None else ignore}[others]


@dataclass(frozen=True)
class Numbering:
    """What becomes of the values of a label file.

    Attributes:
        table: Value in the file -> value that takes its place; it holds 0.
        others: What takes the place of those that the table lacks; None: there may be none.

    Example:
        >>> Numbering.keeping((0, 1), others=0).settled(np.array([0, 1, 7, 104])).tolist()
        [0, 1, 0, 0]
    """

    table: Mapping[int, int]
    others: int | None = None

    @classmethod
    def keeping(cls, values: Iterable[int], others: int | None = None) -> Numbering:
        """The one that changes none of some values."""
        return cls({value: value for value in values}, others)

    def strangers(self, labels: NDArray[Any]) -> str:
        """What is wrong with values that nothing is said of, as `strangers`."""
        return strangers(labels, self.table) if self.others is None else ""

    def settled(self, labels: NDArray[Any]) -> NDArray[Any]:
        """The labels as they are meant, where nothing is wrong with their values."""
        other = 0 if self.others is None else self.others
        if any(value != target for value, target in self.table.items()):
            return replaced(labels, self.table, other=other)
        kept = np.isin(labels, list(self.table))
        if kept.all():
            return labels
        kind = np.result_type(labels.dtype, np.min_scalar_type(other))
        return np.where(kept, labels, kind.type(other))


def overlap(organs: Iterable[LabelValue]) -> bool:
    """Whether a voxel may belong to two of them.

    Example:
        >>> overlap([1, (2, 3)]), overlap([(1, 2), 2])
        (False, True)
    """
    flat = [value for organ in organs for value in values_of(organ)]
    return len(flat) != len(set(flat))


def paint_order(regions: Iterable[LabelValue]) -> tuple[int, ...]:
    """A value to paint each region with, later over earlier: one that no later region holds, where there is one.

    Example:
        >>> paint_order([(1, 2, 3), (2, 3), 3])
        (1, 2, 3)
    """
    values = [values_of(region) for region in regions]
    order = []
    for index, many in enumerate(values):
        later = {value for others in values[index + 1 :] for value in others}
        order.append(next((value for value in many if value not in later), many[0]))
    return tuple(order)


@dataclass(frozen=True, eq=False)
class WholeNumbers:
    """The whole numbers nearest to those of an array.

    Attributes:
        array: int32, or int64 where that is too narrow; the shape of the array.
        gap: How far from them a number lies at most; infinite where there is NaN.
        exact: Whether rounding in the arithmetic of whoever wrote the file explains the gap.
    """

    array: NDArray[Any]
    gap: float
    exact: bool


def whole_numbers(voxels: NDArray[Any], *, step: float = 0.0) -> WholeNumbers:
    """Read numbers of any type as whole ones.

    Args:
        voxels: Any shape.
        step: Between numbers that the file can hold: half of it is rounding too.

    Raises:
        ValueError: They do not fit into 64 bits, or (floats) are beyond 2^53, where not every whole number exists.

    Example:
        >>> whole_numbers(np.array([0.0, 2.9999999993])).array.tolist(), whole_numbers(np.array([0.5])).exact
        ([0, 3], False)
    """
    low, high = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)):
        return WholeNumbers(np.zeros(voxels.shape, np.int32), np.inf, exact=False)
    floating = voxels.dtype.kind == "f"
    if not -(2**63) <= int(low) <= int(high) < 2**63 or (floating and max(-low, high) > 2**53):
        raise ValueError(f"values up to {max(-int(low), int(high)):.6g}")
    narrow = int(low) > -(2**31) and int(high) < 2**31 - 1  # with a place to spare on either side
    kind = np.int32 if narrow else np.int64
    if not floating:
        return WholeNumbers(voxels.astype(kind), 0.0, exact=True)
    whole = np.empty_like(voxels, dtype=kind)
    gap, exact = 0.0, True
    for part, source in zip(_parts(whole), _parts(voxels), strict=True):
        near = np.rint(source)
        part[...] = near
        if not np.array_equal(near, source):
            away = np.abs(source - near)
            gap = max(gap, float(away.max()))
            exact &= bool((away <= ROUNDING + step / 2 + np.minimum(np.abs(near) * _RELATIVE, 0.1)).all())
    return WholeNumbers(whole, gap, exact)


def integer_type(labels: NDArray[Any]) -> np.dtype[Any]:
    """The smallest type of integers that holds all values of an array; never uint64, which NumPy compares as floats.

    Example:
        >>> integer_type(np.array([0, 255])), integer_type(np.array([-1, 255])), integer_type(np.array([0, 2**40]))
        (dtype('uint8'), dtype('int16'), dtype('int64'))
    """
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low == 0 and high < 2**32:
        return np.min_scalar_type(high)
    return np.result_type(np.int16, np.min_scalar_type(min(low, -high - 1)))  # what holds -n - 1 holds n, too


def value_counts(labels: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Count the voxels of every value; time and memory follow the number of values, not the largest of them.

    Example:
        >>> value_counts(np.array([[0, 7], [0, -1]]))
        {-1: 1, 0: 2, 7: 1}
    """
    counts: Counter[int] = Counter()
    for part in _parts(labels):
        low, high = int(part.min()), int(part.max())
        if high - low > _DIRECT:
            values, numbers = np.unique(part, return_counts=True)
        else:
            table = np.bincount(part.astype(np.int64) - low)
            values = np.flatnonzero(table)
            numbers, values = table[values], values + low
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return dict(sorted(counts.items()))


def replaced(labels: NDArray[Any], table: Mapping[int, int], *, other: int) -> NDArray[np.int32]:
    """Give every value another one; memory follows the number of values.

    Args:
        labels: Whole numbers.
        table: Value -> what takes its place.
        other: What takes the place of values that the table lacks.

    Example:
        >>> replaced(np.array([0, 614454277, 5]), {0: 0, 614454277: 1}, other=-1).tolist()
        [0, 1, -1]
    """
    known = np.array(sorted(table), dtype=np.int64)
    targets = np.array([table[value] for value in known.tolist()], dtype=np.int32)
    low, high = min(int(labels.min(initial=0)), int(known[0])), max(int(labels.max(initial=0)), int(known[-1]))
    if high - low <= _DIRECT:
        direct = np.full(high - low + 1, other, dtype=np.int32)
        direct[known - low] = targets
        return direct[labels.astype(np.int64) - low] if low else direct[labels]
    labels = np.ascontiguousarray(labels)
    out = np.empty(labels.shape, dtype=np.int32)
    for part, source in zip(_parts(out), _parts(labels), strict=True):
        place = np.searchsorted(known, source).clip(max=known.size - 1)
        part[...] = np.where(known[place] == source, targets[place], other)
    return out


def boxes_of(labels: NDArray[Any], values: Collection[int]) -> dict[int, Box | None]:
    """The smallest box around the voxels of each value above 0, None where there are none; one pass for all values.

    Example:
        >>> boxes_of(np.array([0, 7, 7, 0]), [7, 8])
        {7: (slice(1, 3, None),), 8: None}
    """
    wanted = sorted(value for value in values if value > 0)
    if not wanted:
        return {}
    highest = int(labels.max(initial=0))
    if highest > _DIRECT:
        labels = replaced(labels, {value: index for index, value in enumerate(wanted, 1)}, other=0)
        return dict(zip(wanted, ndimage.find_objects(labels, len(wanted)), strict=True))
    found = ndimage.find_objects(labels, highest)
    return {value: found[value - 1] if value <= highest else None for value in wanted}


def strangers(labels: NDArray[Any], declared: Collection[int]) -> str:
    """What is wrong with values that nobody declared, as the end of a sentence; empty where there is none.

    Example:
        >>> strangers(np.array([0, 1, 7, 7]), {0, 1})
        'holds 2 voxels with 1 value that no label names: 7'
    """
    counts = value_counts(labels)
    strange = {value: count for value, count in counts.items() if value not in declared}
    if not strange:
        return ""
    if looks_like_scan(labels, counts) and len(strange) > _FEW:
        low, high = min(counts), max(counts)
        return f"holds {len(counts)} different values from {low} to {high} as noise has them: a scan, not a label map"
    total, number = sum(strange.values()), len(strange)
    voxels, values = f"{total} voxel{'s' * (total != 1)}", f"{number} value{'s' * (number != 1)}"
    return f"holds {voxels} with {values} that no label names: {listed(strange)}"


def cut_away(labels: NDArray[Any], kept: NDArray[Any], organs: Mapping[str, LabelValue]) -> list[str]:
    """What of each organ a part of a label map lacks, in words.

    Example:
        >>> cut_away(np.array([1, 1, 0, 2]), np.array([1, 0, 2]), {"liver": 1, "spleen": 2})
        ['liver (1 of 2 voxels)']
    """
    if kept.size == labels.size:
        return []
    whole, inside = value_counts(labels), value_counts(kept)
    told = []
    for organ, value in organs.items():
        there, left = (sum(counts.get(one, 0) for one in values_of(value)) for counts in (whole, inside))
        told += [f"{organ} ({there - left} of {there} voxels)"] if left < there else []
    return told


def looks_like_scan(labels: NDArray[Any], counts: Mapping[int, int]) -> bool:
    """Whether neighbouring voxels differ as those of a scan do; what is most frequent (air, background) is left out.

    Example:
        >>> noise, blocks = np.random.default_rng(0).integers(0, 99, 500), np.repeat(np.arange(50), 10)
        >>> [looks_like_scan(labels, value_counts(labels)) for labels in (noise, blocks)]
        [True, False]
    """
    if len(counts) <= _FEW:
        return False
    common = max(counts, key=lambda value: counts[value])
    axis = int(np.argmax(labels.shape))
    lines = np.moveaxis(labels, axis, 0)
    inside = lines[:-1] != common
    alike = int(np.count_nonzero((lines[:-1] == lines[1:]) & inside))
    return alike < _NOISY * int(np.count_nonzero(inside))


def _parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """An array in pieces, in the order of its memory; views where it is contiguous in any order of its axes."""
    flat = array.ravel(order="K")
    return (flat[start : start + _AT_ONCE] for start in range(0, flat.size, _AT_ONCE))


@dataclass(frozen=True)
class Painting:
    """How the regions that a voxel lies in become the one value that a label file has room for.

    A value stands for a set of regions: those that name it. Regions are painted one over the other, with a value each,
    as nnU-Net does; but where a set would so get the value of another, it gets one that stands for it. A set for which
    there is no value is painted, for nothing can tell it.

    Attributes:
        regions: The values of each region, in the order of the classes.
        order: The value that each is painted with.

    Example:
        >>> overlapping = Painting(((1, 2), (2, 3)), (1, 2))
        >>> [overlapping.value(members) for members in ((), (0,), (1,), (0, 1))]
        [0, 1, 3, 2]
    """

    regions: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]

    def members(self, value: int) -> tuple[int, ...]:
        """The regions that a value stands for."""
        return tuple(index for index, values in enumerate(self.regions) if value in values)

    @cached_property
    def sets(self) -> dict[tuple[int, ...], int]:
        """Every set of regions for which there is a value, and the value; the smallest, where there are several."""
        values = sorted({value for values in self.regions for value in values}, reverse=True)
        told = {self.members(value): value for value in values}
        painted = {members: self.order[members[-1]] for members in told}
        return told | {members: value for members, value in painted.items() if self.members(value) == members}

    @cached_property
    def exact(self) -> dict[tuple[int, ...], int]:
        """The sets that painting alone would get wrong."""
        return {members: value for members, value in self.sets.items() if self.order[members[-1]] != value}

    def value(self, members: Collection[int]) -> int:
        """The value of a voxel that lies in some regions."""
        known = tuple(sorted(members))
        return self.sets.get(known, self.order[known[-1]]) if known else 0

    def within(self, members: Collection[int]) -> int:
        """The value of the largest set that is a part of some regions; 0 where there is none."""
        inside = [known for known in self.sets if set(known) <= set(members)]
        return self.sets[max(inside, key=len)] if inside else 0

    def around(self, members: Collection[int]) -> int | None:
        """The value of the smallest set that holds some regions; None where there is none."""
        outside = [known for known in self.sets if set(known) >= set(members)]
        return self.sets[min(outside, key=len)] if outside else None
