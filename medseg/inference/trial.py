"""Which rule of cleaning raises an organ's Dice on held-out cases and harms none of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Integer
from numpy.typing import NDArray

from medseg.errors import listed
from medseg.inference.clean import applied, clean, moved, parts_of
from medseg.metrics.overlap import Counts, count_labels, dice
from medseg.plan.cleaning import Rule
from medseg.plan.plan import Plan
from medseg.space.distance import bounding_box

MINIMA_MM3 = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""The least volumes that `choose_rules` tries."""

_PARTS = (Rule(), Rule(largest_component=True), *(Rule(minimum_mm3=least) for least in MINIMA_MM3))
CANDIDATES = _PARTS + tuple(replace(rule, fill_holes=True) for rule in _PARTS)
"""What `choose_rules` tries, from the simplest on."""

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Example:
    """A held-out case.

    Attributes:
        case: Its name.
        prediction: Uncleaned label values.
        reference: True ones.
        voxel_mm3: Volume of a voxel.
        annotated: The organs that the reference covers; None means all.
    """

    case: str
    prediction: Integer[np.ndarray, "i j k"]
    reference: Integer[np.ndarray, "i j k"]
    voxel_mm3: float
    annotated: Collection[str] | None = None

    def counts(self, plan: Plan, labels: Integer[np.ndarray, "i j k"]) -> dict[str, Counts]:
        """Voxels of each organ that the reference covers, where these are the labels."""
        predicted, true = (torch.from_numpy(np.ascontiguousarray(part)) for part in (labels, self.reference))
        organs = {o: values for o, values in plan.labels.items() if self.annotated is None or o in self.annotated}
        return count_labels(predicted, true, organs, ignore=plan.ignore)


@dataclass(frozen=True)
class Choice:
    """What a rule is worth on the cases it was chosen on.

    Attributes:
        rule: The chosen one; idle where none raised Dice.
        before: Mean Dice without any rule.
        after: Mean Dice with the rules of all organs.
        cases: Case -> Dice without and with them, of the cases whose Dice they change.
        seen: The number of all cases.
    """

    rule: Rule
    before: float
    after: float
    cases: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seen: int = 0

    @property
    def sentence(self) -> str:
        """For a table; cases that lose come first.

        Example:
            >>> Choice(Rule(largest_component=True), 0.9, 0.95, {"a": (0.8, 0.9)}, 2).sentence
            'keep the largest part: Dice 0.9000 -> 0.9500, changed in 1 of 2 cases (a 0.8000 -> 0.9000)'
        """
        if self.rule.idle and not self.cases:
            return f"left alone: Dice {self.before:.4f}, no rule raises it and harms no case"
        told = f"{self.rule}: Dice {self.before:.4f} -> {self.after:.4f}, "
        changes = sorted(self.cases.items(), key=lambda change: change[1][1] - change[1][0])
        named = listed(f"{case} {before:.4f} -> {after:.4f}" for case, (before, after) in changes)
        return f"{told}changed in {len(changes)} of {self.seen} cases" + (f" ({named})" if changes else "")

    def as_json(self) -> dict[str, Any]:
        """For machines: the rule, in words, and the Dice of each case that it changes, before and after.

        Example:
            >>> Choice(Rule(), 0.9, 0.9, seen=2).as_json()
            {'rule': 'left alone', 'dice': [0.9, 0.9], 'cases': 2, 'changed': {}}
        """
        changed = {case: [*dices] for case, dices in sorted(self.cases.items())}
        return {"rule": str(self.rule), "dice": [self.before, self.after], "cases": self.seen, "changed": changed}


def choose_rules(examples: Iterable[Example], plan: Plan, *, gain: float = 0.001) -> dict[str, Choice]:
    """Find the rule of each organ that raises its mean Dice most and does no harm.

    A rule helps more cases than it hurts; in no case does an organ that is there lose all that was found of it, or all
    that was predicted; it removes nothing as large as the smallest part of any reference; and no other region's mean
    Dice falls. All chosen rules are tried together once more; while they harm then, the weakest of them is left out.

    Args:
        examples: Held-out cases, looked at one by one, several times.
        plan: Names organs and values.
        gain: The least rise of mean Dice worth a rule; of rules within it the simplest wins.

    Returns:
        A choice per organ; both absent counts as Dice 1, one absent as 0.

    Paper: Isensee et al., nnU-Net, Nature Methods 18 (2021): post-processing by cross-validation.
    """
    trials = {organ: _Trial() for organ in plan.organs}
    for example in examples:
        before = example.counts(plan, example.prediction)
        for organ in before:
            trials[organ].add(_outcomes(example, organ, before, plan), _smallest_mm3(example, organ, plan), organ)
    found = {organ: trial.best(gain) for organ, trial in trials.items()}
    rules = {organ: CANDIDATES[index] for organ, (index, _) in found.items() if index}
    while True:
        choices, harmless = _together(examples, rules, plan)
        if harmless or len(rules) < 2:
            return choices
        del rules[min(rules, key=lambda organ: found[organ][1])]


_Outcomes = list[dict[str, Counts]]
"""Per candidate, the voxels of each organ that it may change."""


@dataclass
class _Trial:
    """What all candidates do to one organ, and by it to others, over the cases seen so far."""

    dices: list[list[float]] = field(default_factory=list)
    others: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    harmful: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(len(CANDIDATES), dtype=bool))
    smallest_mm3: float = np.inf

    def add(self, outcomes: _Outcomes, smallest_mm3: float, own: str) -> None:
        self.smallest_mm3 = min(self.smallest_mm3, smallest_mm3)
        self.dices.append([dice(counts[own]) for counts in outcomes])
        self.harmful |= [any(_lost(outcomes[0][organ], now) for organ, now in one.items()) for one in outcomes]
        for organ in outcomes[0].keys() - {own}:
            change = np.array([dice(counts[organ]) - dice(outcomes[0][organ]) for counts in outcomes])
            self.others[organ] = self.others.get(organ, 0.0) + change

    def best(self, gain: float) -> tuple[int, float]:
        """The simplest candidate (the first) within ``gain`` of the best that does no harm, and what it gains."""
        table = np.array(self.dices)
        if not table.size or np.isinf(self.smallest_mm3):  # what no reference has cannot be told from what is stray
            return 0, 0.0
        means = table.mean(axis=0) - table[:, 0].mean()
        helped = np.sign(np.round(table - table[:, :1], 9)).sum(axis=0) > 0
        minima = np.array([rule.minimum_mm3 for rule in CANDIDATES])
        legal = helped & ~self.harmful & (minima <= self.smallest_mm3 * (1 + _ROUNDING))
        for change in self.others.values():
            legal &= change > -_ROUNDING
        means[~legal] = -1.0
        best = float(means.max())
        chosen = int(np.flatnonzero(means >= max(best - gain, gain))[0]) if best >= gain else 0
        return chosen, float(means[chosen])


def _lost(before: Counts, after: Counts) -> bool:
    """Whether an organ that is there has lost all that was found of it, or all that was predicted."""
    gone = (before.tp and not after.tp) or (before.predicted and not after.predicted)
    return bool(before.reference and gone)


def _outcomes(example: Example, organ: str, before: Mapping[str, Counts], plan: Plan) -> _Outcomes:
    """What each candidate makes of a case, counted by the voxels that it changes."""
    index = plan.organs.index(organ)
    affected = {organ: before[organ]} if plan.exclusive else dict(before)
    mask = np.isin(example.prediction, plan.values[index])
    box = bounding_box(mask)
    if box is None:
        return [affected] * len(CANDIDATES)
    mask, labels, truth = mask[box], example.prediction[box], example.reference[box]
    parts, found = parts_of(mask), []
    for rule in CANDIDATES:
        after = applied(rule, mask, parts, example.voxel_mm3)
        changed = after != mask
        if plan.ignore is not None:
            changed &= truth != plan.ignore
        old = labels[changed]
        new = moved(old, after[changed], index, plan.painting)
        found.append({o: _recounted(counts, old, new, truth[changed], plan, o) for o, counts in affected.items()})
    return found


def _recounted(
    counts: Counts,
    old: Integer[np.ndarray, " n"],
    new: Integer[np.ndarray, " n"],
    truth: Integer[np.ndarray, " n"],
    plan: Plan,
    organ: str,
) -> Counts:
    """The counts of an organ after some voxels have changed."""
    values = plan.values[plan.organs.index(organ)]
    was, now, there = (np.isin(part, values) for part in (old, new, truth))
    tp = counts.tp + np.count_nonzero(now & there) - np.count_nonzero(was & there)
    fp = counts.fp + np.count_nonzero(now & ~there) - np.count_nonzero(was & ~there)
    return Counts(int(tp), int(fp), counts.reference - int(tp))


def _smallest_mm3(example: Example, organ: str, plan: Plan) -> float:
    """The volume of the smallest part that the reference has; infinite where it has none."""
    mask: Bool[np.ndarray, "i j k"] = np.isin(example.reference, plan.values[plan.organs.index(organ)])
    box = bounding_box(mask)
    return np.inf if box is None else float(parts_of(mask[box])[1][1:].min()) * example.voxel_mm3


def _together(examples: Iterable[Example], rules: Mapping[str, Rule], plan: Plan) -> tuple[dict[str, Choice], bool]:
    """What all rules do to each case, and whether that harms nobody."""
    scores: dict[str, dict[str, tuple[float, float]]] = {organ: {} for organ in plan.organs}
    harmless = True
    for example in examples:
        before = example.counts(plan, example.prediction)
        after = example.counts(plan, clean(example.prediction, example.voxel_mm3, rules, plan))
        for organ, counts in before.items():
            scores[organ][example.case] = dice(counts), dice(after[organ])
            harmless &= not _lost(counts, after[organ])
    choices = {}
    for organ, cases in scores.items():
        means: Float64[np.ndarray, "2"] = np.array([*cases.values()] or [(1.0, 1.0)]).mean(axis=0)
        harmless &= bool(means[1] >= means[0] - _ROUNDING)
        changed = {case: two for case, two in cases.items() if abs(two[1] - two[0]) > _ROUNDING}
        choices[organ] = Choice(rules.get(organ, Rule()), float(means[0]), float(means[1]), changed, len(cases))
    return choices, harmless
