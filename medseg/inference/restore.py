"""From the scores of a network to label values on the grid of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray

from medseg.plan.plan import Plan
from medseg.store.grid import GridChange, argmax_from_plan_grid, probabilities_from_plan_grid


def label_values(
    scores: Float[np.ndarray, "c i j k"], change: GridChange, plan: Plan, *, averaged: bool = False
) -> Integer[np.ndarray, "i2 j2 k2"]:
    """Decide every voxel of the image, in the label values of the dataset's own files.

    Scores are interpolated on the image's grid class by class and compared there, so that an organ's border lies
    between the plan's voxels where it belongs.

    Args:
        scores: Logits, or averaged probabilities, on the plan's grid.
        change: What `to_plan_grid` returned for the image.
        plan: Names classes and values.
        averaged: Whether the scores are probabilities; decides the threshold of overlapping regions.

    Returns:
        Integers of the smallest type that holds the values, on the grid of the file.
    """
    if plan.exclusive:
        values = np.array((0, *plan.atoms))
        table = values.astype(np.min_scalar_type(int(values.max())))
        decided: NDArray[Any] = table[argmax_from_plan_grid(scores, change)]
        return decided
    paint = plan.paint_order or tuple(range(1, len(plan.organs) + 1))
    painted = np.zeros(change.source_shape, dtype=np.min_scalar_type(max(paint)))
    threshold = 0.5 if averaged else 0.0
    for region, value in zip(scores, paint, strict=True):  # later regions over earlier ones
        painted[probabilities_from_plan_grid(region[None], change)[0] > threshold] = value
    return painted
