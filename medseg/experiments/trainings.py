"""The same training begun several times: how far the chance of a training reaches, beside that of the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as students_t

from medseg.experiments.results import Result
from medseg.report.rows import CaseRow, by_case, leading

TRAINING_HEADS = ("job", "mean Dice of each training", "their mean", "change", "95 % interval")


@dataclass(frozen=True)
class Trainings:
    """One loss or network, trained once per seed.

    Attributes:
        title: What tables and plots call it.
        dice: Seed -> mean over cases and organs.
        change: Of the mean, against the reference, over the seeds of both; None for the reference itself, or where
            they share no two seeds.
        interval: Of that change, 95 %, by Student's t over the seeds.
    """

    title: str
    dice: Mapping[str, float]
    change: float | None = None
    interval: tuple[float, float] | None = None


def by_training(results: Sequence[Result], reference: str) -> tuple[Trainings, ...]:
    """Each job's trainings, best first; empty if there is one of each.

    Args:
        results: Finished jobs.
        reference: The title of what the others are compared with.

    Sources: the paired t interval over seeds; why several trainings are needed: Bouthillier et al. 2021,
    arXiv:2103.03098.
    """
    dice: dict[str, dict[str, float]] = {}
    for result in results:
        dice.setdefault(result.job.compared, {})[result.job.facts.get("seed", "")] = _mean(result.scores.rows)
    if not any(len(seeds) > 1 for seeds in dice.values()):
        return ()
    trained = [_against(title, seeds, dice.get(reference, {}), reference) for title, seeds in dice.items()]
    return tuple(sorted(trained, key=lambda one: -fmean(one.dice.values())))


def training_rows(trained: Sequence[Trainings]) -> list[list[str]]:
    """A row per job under `TRAINING_HEADS`; a star where the interval leaves out 0."""
    rows = []
    for one in trained:
        change = "" if one.change is None else f"{one.change:+.4f}"
        interval = ""
        if one.interval is not None:
            low, high = one.interval
            interval = f"{low:+.4f} to {high:+.4f}{' *' * (low > 0 or high < 0)}"
        each = ", ".join(f"{dice:.4f}" for dice in one.dice.values())
        rows.append([one.title, each, f"{fmean(one.dice.values()):.4f}", change, interval])
    return rows


def _mean(rows: Sequence[CaseRow]) -> float:
    """As rankings have it: over the organs of each case, then over the cases."""
    measure, *_ = leading()
    return fmean(fmean(row.value(measure) for row in some) for some in by_case(rows).values())


def _against(title: str, ours: Mapping[str, float], theirs: Mapping[str, float], reference: str) -> Trainings:
    changes = [dice - theirs[seed] for seed, dice in ours.items() if seed in theirs]
    if title == reference or len(changes) < 2:
        return Trainings(title, ours)
    middle, reach = (
        fmean(changes),
        stdev(changes) / len(changes) ** 0.5 * float(students_t.ppf(0.975, len(changes) - 1)),
    )
    return Trainings(title, ours, middle, (middle - reach, middle + reach))
