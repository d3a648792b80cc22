"""What the numbers in a label volume mean: an organ has one value or several, and regions may share values."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LabelValue = int | tuple[int, ...]
"""The value that an organ has in a file, or (a region that holds parts) its values."""

Others = Literal["background", "ignore"]
"""What becomes of the values of a label file that nobody declared."""

IGNORED = -1
"""Label of voxels outside the scan or not annotated, in the store and in patches: they count for nothing."""


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


def settle_others(labels: NDArray[Any], declared: Iterable[int], becomes: int) -> NDArray[Any]:
    """Labels in which every value that is not declared became another one.

    Example:
        >>> settle_others(np.array([0, 1, 7, 104]), (0, 1), becomes=0).tolist()
        [0, 1, 0, 0]
    """
    kept = np.isin(labels, list(declared))
    return labels if kept.all() else np.where(kept, labels, labels.dtype.type(becomes))


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
