"""Cleaning of finished labels: stray components and holes, organ by organ, by the rules of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray

from medseg.plan.cleaning import Rule, Rules
from medseg.plan.grid import filled
from medseg.plan.plan import Plan
from medseg.space.components import connected_components
from medseg.space.distance import bounding_box
from medseg.space.labels import Painting

Parts = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Numbered components, and how many voxels each has; entry 0 is the background's and 0."""


def clean(
    labels: Integer[np.ndarray, "i j k"], voxel_mm3: float, rules: Rules, plan: Plan
) -> Integer[np.ndarray, "i j k"]:
    """Apply the rules organ by organ.

    A voxel that leaves an organ becomes what of its other regions can be without it, which for exclusive organs is the
    background; one that enters an organ enters the regions around it, too, and stays what it is where no value says so.

    Args:
        labels: Label values, as predicted.
        voxel_mm3: Volume of a voxel.
        rules: By organ; organs without a rule are left alone.
        plan: Says what the values mean.

    Returns:
        A new array, or the given one where there is nothing to do.
    """
    active = [(index, rules[organ]) for index, organ in enumerate(plan.organs) if not rules.get(organ, Rule()).idle]
    cleaned = labels.copy() if active else labels
    for index, rule in active:
        mask = np.isin(cleaned, plan.values[index])
        box = bounding_box(mask)
        if box is not None:
            after = applied(rule, mask[box], parts_of(mask[box]), voxel_mm3)
            changed = after != mask[box]
            cleaned[box][changed] = moved(cleaned[box][changed], after[changed], index, plan.painting)
    return cleaned


def moved(
    values: Integer[np.ndarray, " n"], inside: Bool[np.ndarray, " n"], index: int, painting: Painting
) -> Integer[np.ndarray, " n"]:
    """What voxels become that enter a region, or leave it.

    Args:
        values: Before.
        inside: Whether each lies in the region from now on.
        index: Of the region.
        painting: Says what the values mean.
    """
    after = values.copy()
    ways: tuple[tuple[NDArray[np.bool_], Callable[[set[int]], int | None]], ...] = (
        (~inside, lambda members: painting.within(members - {index})),
        (inside, lambda members: painting.around(members | {index})),
    )
    for which, way in ways:
        for value in np.unique(values[which]):
            new = way(set(painting.members(int(value))))
            if new is not None:
                after[which & (values == value)] = new
    return after


def parts_of(mask: Bool[np.ndarray, "*space"]) -> Parts:
    """The connected components of a mask."""
    numbered, count = connected_components(mask)
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    sizes[0] = 0
    return numbered, sizes


def applied(rule: Rule, mask: NDArray[np.bool_], parts: Parts, voxel_mm3: float) -> NDArray[np.bool_]:
    """One organ's mask after its rule; holes filled whatever lies in them."""
    numbered, sizes = parts
    kept = sizes * voxel_mm3 >= rule.minimum_mm3
    if rule.largest_component:
        kept &= np.arange(len(sizes)) == np.argmax(sizes)
    kept[0] = False
    after: NDArray[np.bool_] = mask if kept[1:].all() else kept[numbered]
    return filled(after) if rule.fill_holes else after
