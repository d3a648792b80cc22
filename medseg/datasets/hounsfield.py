"""Whether intensities can be the Hounsfield units that a channel called CT is taken to hold."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.case import counted
from medseg.errors import listed

AIR = -200.0
"""In Hounsfield units; only air and lungs lie below it."""

BONE = 700.0
"""In Hounsfield units; only bone, metal and dense contrast lie above it."""

NARROW = 10.0
"""So many times less or more wide a range of intensities is one of another unit."""

_NEXT_TO_NONE = 1e-3  # share of the voxels
_MOST = 200_000  # voxels of a channel that are ranked


class Spread(NamedTuple):
    """The intensities of a channel by the share of its voxels that lie below: 0.5, 50, 80 and 99.5 percent."""

    low: float
    middle: float
    upper_fifth: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def spread_of(voxels: NDArray[Any]) -> Spread:
    """Of a sample of the voxels, spread evenly."""
    ranked = sampled(voxels)
    return Spread(*np.percentile(ranked, (0.5, 50.0, 80.0, 99.5)).tolist())


def sampled(voxels: NDArray[Any]) -> NDArray[Any]:
    """At most `_MOST` of the voxels, in a row."""
    row = voxels.reshape(-1)
    step = max(1, -(-row.size // _MOST))
    while gcd(step, voxels.shape[-1]) > 1:  # steps as long as an axis would see a single slice
        step += 1
    return row[::step]


def is_ct(modality: str) -> bool:
    """Whether the name of a channel says that its intensities are Hounsfield units."""
    return modality.casefold() == "ct"


def oddity(spread: Spread) -> str:
    """What speaks against Hounsfield units, as the end of a sentence; empty where nothing does.

    Silent on a crop without air, in which fat and noise lie below 0, and on padding with -2000 or -3024.

    Example:
        >>> oddity(Spread(-1023.0, -95.0, 54.0, 246.0)), oddity(Spread(-110.0, 40.0, 80.0, 900.0))
        ('', '')
        >>> oddity(Spread(1.0, 929.0, 1078.0, 1270.0))
        'a fifth of the voxels above 700, as if 1024 had been added'
    """
    if spread.upper_fifth > BONE:
        return f"a fifth of the voxels above {BONE:g}, as if 1024 had been added"
    if spread.low >= 0:
        return "next to nothing below 0, as if 1024 had been added or it was scaled"
    if spread.high <= AIR:
        return f"next to nothing above {AIR:g}, as if 1024 had been taken away twice"
    return ""


def unlike_window(voxels: NDArray[Any], lower: float, upper: float) -> str:
    """What sets the channel of an image apart from the organs whose intensities lay between two bounds in training.

    An image of a body has voxels between the bounds, its intensities differ by about as much as those of the organs,
    and whatever the bounds, little of it is denser than bone. A crop without air passes.

    Args:
        voxels: Of the whole image.
        lower: The 0.5 percentile of the organs.
        upper: Their 99.5 percentile.

    Returns:
        The end of a sentence; empty where nothing is odd.

    Example:
        >>> scan = np.linspace(-1000, 400, 1000)
        >>> unlike_window(scan, -20, 200), unlike_window(scan + 2000, -20, 200)
        ('', 'a fifth of the voxels above 700, as if 1024 had been added')
        >>> unlike_window(scan // 150 + 7, -20, 200)
        'intensities that differ by 9 only, as labels or scaled ones do'
    """
    spread = spread_of(voxels)
    if spread.upper_fifth > max(BONE, upper):
        return oddity(spread)
    if spread.high - spread.low < (upper - lower) / NARROW:
        return f"intensities that differ by {spread.high - spread.low:.3g} only, as labels or scaled ones do"
    few = sampled(voxels)
    if np.count_nonzero((few >= lower) & (few <= upper)) < few.size * _NEXT_TO_NONE:
        return "next to no voxel in that range"
    return ""


def doubts(modality: str, spreads: Mapping[str, Spread]) -> dict[str, tuple[str, str]]:
    """What is odd about CTs that lie side by side, and what to do.

    Args:
        modality: Name of the channel.
        spreads: Of that channel, by case.

    Returns:
        The end of a sentence about each case that differs from most; about the dataset, under an empty name, where most
        are odd or as many as not.
    """
    few = odd_ones(spreads)
    if few:
        remedy = "Bring it to Hounsfield units (the slope and intercept of its DICOM), unless it is so"
        return {
            case: (f"is no {modality} as the others: it has {told} ({spreads[case]})", remedy)
            for case, told in few.items()
        }
    odd = {case: told for case, spread in spreads.items() if (told := oddity(spread))}
    if not odd:
        return {}
    case, told = next(iter(odd.items()))
    others = [case for case in spreads if case not in odd]
    problem = (
        f"calls a channel {modality}, but {len(odd)} of {counted(len(spreads), 'case')} have no Hounsfield units: "
    )
    problem += f"{case} has {told} ({spreads[case]})" + (f"; {listed(others)} may" if others else "")
    return {"": (problem, "Bring them to those units; if all are so on purpose, so must be whatever is predicted")}


def odd_ones(spreads: Mapping[str, Spread]) -> dict[str, str]:
    """The cases that an `oddity` sets apart from most; none where most have one: then it is the way of the dataset."""
    odd = {case: told for case, spread in spreads.items() if (told := oddity(spread))}
    return odd if 2 * len(odd) < len(spreads) else {}
