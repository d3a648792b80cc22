"""Several results of the same cases held against each other, organ by organ: who is best, and who is as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from medseg.experiments.results import Result
from medseg.metrics.empty import Outcome
from medseg.report.compare import SIGNIFICANT, holm, signed_rank_p
from medseg.report.rows import LEADING, CaseRow, organs_of
from medseg.report.summary import bootstrap_means

MEAN = "mean of organs"
"""What stands for an organ where a case's organs are averaged."""

_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class _Cell:
    """One case: the leading measures of an organ or their means over organs, and how many were missed or invented."""

    case: str
    values: tuple[float, ...]
    missed: int
    false: int


@dataclass(frozen=True)
class Entry:
    """One job in the table of one organ.

    Attributes:
        title: The job's.
        rank: 1 for the highest mean Dice; equal ones share the better rank.
        cases: Number of scored cases.
        mean: Measure -> mean over cases, for Dice, HD95 and NSD.
        std: Measure -> sample standard deviation.
        ci95: Measure -> percentile bootstrap interval of the mean.
        missed: Organs that were there and not found.
        false: Organs that were found and not there.
        median_change: Median over cases of its Dice minus the reference job's; None for that job itself.
        higher: Cases with a higher Dice than the reference job.
        lower: Cases with a lower one.
        p: Two-sided p of the paired Wilcoxon signed-rank test of Dice against the reference job; None for that job.
        p_holm: The same, corrected for every test of the comparison.
    """

    title: str
    rank: int
    cases: int
    mean: Mapping[str, float]
    std: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    missed: int
    false: int
    median_change: float | None = None
    higher: int = 0
    lower: int = 0
    p: float | None = None
    p_holm: float | None = None

    @property
    def differs(self) -> bool:
        """Whether its Dice differs from the reference job's, the chance of any false claim being 5 %."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Ranking:
    """The jobs by one organ.

    Attributes:
        organ: Its name, or `MEAN`.
        reference: Title of the job that the others are tested against.
        entries: Best first.
    """

    organ: str
    reference: str
    entries: tuple[Entry, ...]


def rank_results(results: Sequence[Result], *, baseline: str | None = None) -> tuple[Ranking, ...]:
    """Rank jobs by mean Dice: over all organs first, then for each organ.

    Each job is tested against the best of that organ, or against the baseline, by the paired Wilcoxon signed-rank test
    over the cases that both scored. Holm's procedure corrects the tests of all organs together, those of the mean for
    themselves, since they ask another question of the same cases.

    Args:
        results: Of the same held-out cases.
        baseline: Title of the job to test against; None takes the best of each organ.
    """
    rows = {result.job.title: result.rows for result in results}
    organs = list(dict.fromkeys(organ for some in rows.values() for organ in organs_of(some)))
    mean = _rank(MEAN, {title: _by_case(some) for title, some in rows.items()}, baseline)
    each = [
        _rank(
            organ,
            {title: [_cell([row]) for row in some if row.organ == organ] for title, some in rows.items()},
            baseline,
        )
        for organ in organs
    ]
    return (*_corrected([mean]), *_corrected(each))


def _rank(organ: str, cells: Mapping[str, Sequence[_Cell]], baseline: str | None) -> Ranking:
    entries = sorted((_entry(title, some) for title, some in cells.items() if some), key=lambda one: -one.mean["dice"])
    ranks = rankdata([-entry.mean["dice"] for entry in entries], method="min")
    reference = baseline or entries[0].title
    dice = {title: {cell.case: cell.values[0] for cell in some} for title, some in cells.items()}
    tested = [_against(entry, dice[entry.title], dice.get(reference, {}), reference) for entry in entries]
    ranked = tuple(replace(entry, rank=int(rank)) for entry, rank in zip(tested, ranks, strict=True))
    return Ranking(organ, reference, ranked)


def _entry(title: str, cells: Sequence[_Cell]) -> Entry:
    values = np.array([cell.values for cell in cells])
    bounds = np.percentile(bootstrap_means(values), _INTERVAL, axis=0)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(LEADING))
    return Entry(
        title=title,
        rank=0,
        cases=len(values),
        mean=_named(values.mean(axis=0)),
        std=_named(spread),
        ci95={name: (float(low), float(high)) for name, low, high in zip(LEADING, *bounds, strict=True)},
        missed=sum(cell.missed for cell in cells),
        false=sum(cell.false for cell in cells),
    )


def _named(values: Float64[np.ndarray, " measures"]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(LEADING, values, strict=True)}


def _against(entry: Entry, ours: Mapping[str, float], theirs: Mapping[str, float], reference: str) -> Entry:
    """Test the Dice of one job against the reference job's, case by case."""
    common = [case for case in ours if case in theirs]
    if entry.title == reference or not common:
        return entry
    changes = np.array([ours[case] - theirs[case] for case in common])
    return replace(
        entry,
        median_change=float(np.median(changes)),
        higher=int((changes > 0).sum()),
        lower=int((changes < 0).sum()),
        p=signed_rank_p(changes),
    )


def _corrected(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Holm's correction over all tests of some rankings."""
    raw = [entry.p for ranking in rankings for entry in ranking.entries if entry.p is not None]
    corrected = iter(holm(raw))
    return [
        replace(
            ranking,
            entries=tuple(
                entry if entry.p is None else replace(entry, p_holm=next(corrected)) for entry in ranking.entries
            ),
        )
        for ranking in rankings
    ]


def _by_case(rows: Sequence[CaseRow]) -> list[_Cell]:
    cases: dict[str, list[CaseRow]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return [_cell(some) for some in cases.values()]


def _cell(rows: Sequence[CaseRow]) -> _Cell:
    """One or several organs of one case."""
    outcomes = [row.scores.outcome for row in rows]
    values = tuple(sum(row.value(measure) for row in rows) / len(rows) for measure in LEADING)
    return _Cell(rows[0].case, values, outcomes.count(Outcome.MISSED), outcomes.count(Outcome.FALSE))
