"""From the scores of a network to label values and probabilities on the grid of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from numpy.typing import NDArray
from torch import Tensor

from medseg.inference.slabs import Slabs, Window, box_of, windows
from medseg.plan.grid import GridChange, kept_box
from medseg.plan.plan import Plan
from medseg.segmenter import Canvas
from medseg.space.labels import Painting, integer_type


def restore(
    slabs: Slabs,
    change: GridChange,
    plan: Plan,
    *,
    axis: int = 0,
    averaged: bool = False,
    probabilities: NDArray[np.float16] | None = None,
) -> Integer[np.ndarray, "i2 j2 k2"]:
    """Decide every voxel of the image, in the label values of the dataset's own files.

    Scores are interpolated linearly on the image's grid class by class and compared there, so that an organ's border
    lies between the plan's voxels where it belongs. A class is interpolated only in the box where it beats the
    background somewhere: outside of it no blend of its scores can win.

    Args:
        slabs: Logits, or averaged probabilities, on the plan's grid, as of `medseg.patches.stitch.stitched_slabs`.
        change: What `to_plan_grid` returned for the image.
        plan: Names classes and values.
        axis: Which axis the slabs follow.
        averaged: Whether the scores are probabilities; decides the threshold of overlapping regions.
        probabilities: Where to write the probability of every class, ``(c, i, j, k)`` on the image's grid, zeros to
            begin with; it may be a memory map, and then even the largest volume fits. They are activated before they
            are interpolated.

    Returns:
        Integers of the smallest type that holds the values, on the grid of the file.
    """
    values = plan.painted_classes
    labels = np.zeros(change.source_shape, dtype=integer_type(np.array([plan.highest])))
    target = np.moveaxis(kept_box(labels, change), axis, 0)
    channels = [] if probabilities is None else [np.moveaxis(kept_box(p, change), axis, 0) for p in probabilities]
    if probabilities is not None and plan.exclusive:
        probabilities[0] = 1  # outside of the box that was kept there is nothing but background
    for window in windows(slabs, change, axis=axis):
        threshold = 0.5 if averaged else 0.0
        decided = _best(window, values) if plan.exclusive else _painted(window, plan.painting, threshold)
        target[window.rows] = decided.cpu().numpy()
        if channels:
            _write_probabilities(window if averaged else _activated(window, plan), channels)
    return labels


def _best(window: Window, values: tuple[int, ...]) -> Tensor:
    """The value of the class with the highest score; in a tie the first."""
    background = window.of_class(0)
    best = background.new_empty(window.shape)
    for place, score in window.interpolated(background):
        best[place] = score
    winner = torch.zeros(window.shape, dtype=_wide(values), device=best.device)
    for index in range(1, window.classes):
        rivals = window.of_class(index)
        box = box_of(rivals > background)
        if box is None:
            continue
        for place, rival in window.interpolated(rivals, box):
            held = best[place]
            winner[place].masked_fill_(rival > held, values[index])
            torch.maximum(held, rival, out=held)
    return winner


def _painted(window: Window, painting: Painting, threshold: float) -> Tensor:
    """The values of overlapping regions."""
    kind = _wide([value for values in painting.regions for value in values])
    canvas = Canvas(painting, torch.zeros(window.shape, dtype=kind, device=window.slab.device))
    for index in range(window.classes):
        scores = window.of_class(index)
        box = box_of(scores > threshold)
        if box is None:
            continue
        for place, score in window.interpolated(scores, box):
            canvas.add(index, place, score > threshold)
    return canvas.finished()


def _wide(values: Sequence[int]) -> torch.dtype:
    """The type of integers that holds the values while they are decided."""
    return torch.int32 if max(values) < 2**31 else torch.int64


def _activated(window: Window, plan: Plan) -> Window:
    """The window with probabilities in place of logits."""

    def activate(logits: Tensor) -> Tensor:
        out = torch.empty_like(logits, dtype=torch.float16)
        for plane in range(logits.shape[1]):
            numbers = logits[:, plane].float()
            out[:, plane] = numbers.softmax(dim=0) if plan.exclusive else numbers.sigmoid()
        return out

    before = None if window.before is None else activate(window.before)
    return Window(window.rows, window.first, before, activate(window.slab), window.axes)


def _write_probabilities(window: Window, channels: list[NDArray[Any]]) -> None:
    for index, channel in enumerate(channels):
        rows = channel[window.rows]
        for place, values in window.interpolated(window.of_class(index)):
            rows[place] = values.half().cpu().numpy()
