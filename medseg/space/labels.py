"""What the numbers in a label volume mean: an organ has one value or several, and regions may share values."""

from __future__ import annotations

from collections.abc import Iterable
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
