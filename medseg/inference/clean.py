"""Cleaning of finished labels: stray components and holes, organ by organ, only where that was seen to raise Dice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray

from medseg.plan.grid import filled
from medseg.space.components import connected_components
from medseg.space.distance import bounding_box

MINIMA_MM3 = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""The least volumes that `choose_rules` tries."""


@dataclass(frozen=True)
class Rule:
    """What is done to one organ, in this order.

    Attributes:
        largest_component: Keep only the largest part (26-neighbourhood in 3D).
        minimum_mm3: Remove parts smaller than this.
        fill_holes: Give enclosed background to the organ; never another organ's voxels.
    """

    largest_component: bool = False
    minimum_mm3: float = 0.0
    fill_holes: bool = False

    @property
    def idle(self) -> bool:
        """Whether it does nothing."""
        return self == Rule()


Rules = Mapping[int, Rule]
"""Label value -> what is done to it."""


@dataclass(frozen=True)
class Choice:
    """What a rule is worth on the cases it was chosen on.

    Attributes:
        rule: The chosen one; idle where none raised Dice.
        before: Mean Dice without it.
        after: Mean Dice with it.
    """

    rule: Rule
    before: float
    after: float

    @property
    def sentence(self) -> str:
        """For a table.

        Example:
            >>> Choice(Rule(largest_component=True), 0.9, 0.95).sentence
            'keep the largest part: Dice 0.9000 -> 0.9500'
        """
        steps = [
            *(["keep the largest part"] if self.rule.largest_component else []),
            *([f"remove parts below {self.rule.minimum_mm3:g} mm³"] if self.rule.minimum_mm3 else []),
            *(["fill holes"] if self.rule.fill_holes else []),
        ]
        if not steps:
            return f"left alone: Dice {self.before:.4f}, no rule raises it"
        return f"{', '.join(steps)}: Dice {self.before:.4f} -> {self.after:.4f}"


def clean(
    labels: Integer[np.ndarray, "i j k"], spacing_mm: Sequence[float], rules: Rules
) -> Integer[np.ndarray, "i j k"]:
    """Apply the rules; what is removed becomes background.

    Args:
        labels: Label values.
        spacing_mm: Edge lengths of a voxel.
        rules: By label value; values without a rule are left alone.

    Returns:
        A new array, or the given one where there is nothing to do.

    Example:
        >>> labels = np.array([[[1, 1, 0, 1]]])
        >>> clean(labels, (1.0, 1.0, 1.0), {1: Rule(largest_component=True)}).tolist()
        [[[1, 1, 0, 0]]]
    """
    active = {value: rule for value, rule in rules.items() if not rule.idle}
    if not active:
        return labels
    cleaned = labels.copy()
    for value, rule in sorted(active.items()):
        box = bounding_box(labels == value)
        if box is None:
            continue
        before = labels[box] == value
        after = _apply(rule, before, _parts(before), float(np.prod(spacing_mm)))
        part = cleaned[box]
        part[before & ~after] = 0
        part[after & ~before & (part == 0)] = value
    return cleaned


def choose_rules(
    cases: Iterable[tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]], Sequence[float]]],
    values: Sequence[int],
    *,
    ignore: int | None = None,
    gain: float = 0.001,
) -> dict[int, Choice]:
    """Find the rule of each organ that raises its mean Dice most, if one does on more cases than it harms.

    Args:
        cases: Uncleaned prediction, reference and spacing in mm of each held-out case; looked at once, one by one.
        values: The organs' label values.
        ignore: Value of voxels that were not annotated; they do not count.
        gain: The least rise of mean Dice worth a rule; of rules within it the simplest wins.

    Returns:
        A choice per value; both absent counts as Dice 1, one absent as 0.

    Paper: Isensee et al., nnU-Net, Nature Methods 18 (2021): post-processing by cross-validation.
    """
    scores: dict[int, list[list[float]]] = {value: [] for value in values}
    for prediction, reference, spacing_mm in cases:
        if prediction.shape != reference.shape:
            raise ValueError(f"a prediction has shape {prediction.shape}, its reference {reference.shape}")
        counted = None if ignore is None else reference != ignore
        for value in values:
            scores[value].append(_dice_of_candidates(prediction, reference == value, value, spacing_mm, counted))
    return {value: _choose(np.array(table), gain) for value, table in scores.items()}


def rules_to_plain(rules: Rules) -> list[dict[str, Any]]:
    """Plain data for JSON and checkpoints; idle rules are left out.

    Example:
        >>> rules_to_plain({2: Rule(minimum_mm3=30.0), 3: Rule()})
        [{'value': 2, 'largest_component': False, 'minimum_mm3': 30.0, 'fill_holes': False}]
    """
    return [{"value": value, **asdict(rule)} for value, rule in sorted(rules.items()) if not rule.idle]


def rules_from_plain(data: Iterable[Mapping[str, Any]]) -> dict[int, Rule]:
    """Rebuild what `rules_to_plain` wrote."""
    return {
        int(row["value"]): Rule(bool(row["largest_component"]), float(row["minimum_mm3"]), bool(row["fill_holes"]))
        for row in data
    }


def _candidates() -> list[Rule]:
    """From the simplest on."""
    parts = [Rule(), Rule(largest_component=True), *(Rule(minimum_mm3=least) for least in MINIMA_MM3)]
    return parts + [Rule(rule.largest_component, rule.minimum_mm3, fill_holes=True) for rule in parts]


CANDIDATES = tuple(_candidates())
"""What `choose_rules` tries."""


def _dice_of_candidates(
    prediction: NDArray[Any],
    reference: NDArray[np.bool_],
    value: int,
    spacing_mm: Sequence[float],
    counted: NDArray[np.bool_] | None,
) -> list[float]:
    mask = prediction == value
    size = int(np.count_nonzero(reference))
    box = bounding_box(mask)
    if box is None:
        return [float(size == 0)] * len(CANDIDATES)
    before, parts = mask[box], _parts(mask[box])
    free, truth = prediction[box] == 0, reference[box]
    legal = None if counted is None else counted[box]
    found = []
    for rule in CANDIDATES:
        after = _apply(rule, before, parts, float(np.prod(spacing_mm))) & (before | free)
        if legal is not None:
            after &= legal
        total = int(np.count_nonzero(after)) + size
        found.append(2 * int(np.count_nonzero(after & truth)) / total if total else 1.0)
    return found


def _choose(table: NDArray[np.float64], gain: float) -> Choice:
    """The simplest candidate (the first) within ``gain`` of the best, if it helps more cases than it harms."""
    if not table.size:
        return Choice(Rule(), 1.0, 1.0)
    means = table.mean(axis=0)
    changed = np.sign(np.round(table - table[:, :1], 9)).sum(axis=0)
    means[1:][changed[1:] <= 0] = -1.0
    best = int(np.argmax(means))
    if means[best] - means[0] < gain:
        return Choice(Rule(), float(means[0]), float(means[0]))
    chosen = int(np.flatnonzero(means >= max(means[best] - gain, means[0] + gain))[0])
    return Choice(CANDIDATES[chosen], float(means[0]), float(means[chosen]))


def _parts(mask: Bool[np.ndarray, "*space"]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The numbered components and how many voxels each has; entry 0 is the background's and 0."""
    numbered, count = connected_components(mask)
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    sizes[0] = 0
    return numbered, sizes


def _apply(
    rule: Rule, mask: NDArray[np.bool_], parts: tuple[NDArray[np.int32], NDArray[np.int64]], voxel_mm3: float
) -> NDArray[np.bool_]:
    """One organ's mask after its rule; holes filled whatever lies in them."""
    numbered, sizes = parts
    kept = sizes * voxel_mm3 >= rule.minimum_mm3
    if rule.largest_component:
        kept &= np.arange(len(sizes)) == np.argmax(sizes)
    kept[0] = False
    after: NDArray[np.bool_] = mask if kept[1:].all() else kept[numbered]
    return filled(after) if rule.fill_holes else after
