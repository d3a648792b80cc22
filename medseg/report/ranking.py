"""Several runs over the same cases held against each other, organ by organ: who is best, and who is as good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata, wilcoxon

from medseg.metrics.empty import Outcome
from medseg.report.rows import CaseRow, by_case, leading, organs_of
from medseg.report.summary import Statistic, statistics

MEAN = "mean of organs"
"""What stands for an organ where a case's organs are averaged."""

SIGNIFICANT = 0.05

_Scores = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Entry:
    """One run in the table of one organ.

    Attributes:
        title: The run's.
        rank: 1 for the highest mean of the first measure; equal ones share the better rank.
        cases: Number of scored cases.
        measures: Measure -> mean, spread and interval over cases.
        missed: Organs that were there and not found.
        false: Organs that were found and not there.
        change: Of the first measure minus the reference run's, over the cases of both; None for that run itself.
        higher: Cases with a higher value than in the reference run.
        lower: Cases with a lower one.
        p: Two-sided p of the paired Wilcoxon signed-rank test against the reference run; None for that run.
        p_holm: The same, corrected for every test of its kind.
    """

    title: str
    rank: int
    cases: int
    measures: Mapping[str, Statistic]
    missed: int
    false: int
    change: Statistic | None = None
    higher: int = 0
    lower: int = 0
    p: float | None = None
    p_holm: float | None = None

    @property
    def median_change(self) -> float | None:
        """The median over cases of what changed against the reference run."""
        return self.change.median if self.change else None

    @property
    def differs(self) -> bool:
        """Whether it differs from the reference run, the chance of any false claim being 5 %."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Ranking:
    """The runs by one organ or by the `MEAN`, best first; the others are tested against ``reference``."""

    organ: str
    reference: str
    entries: tuple[Entry, ...]

    def entry(self, title: str) -> Entry:
        """Of one run."""
        return next(entry for entry in self.entries if entry.title == title)


def rank_runs(
    runs: Mapping[str, Sequence[CaseRow]], *, baseline: str | None = None, measures: Sequence[str] = ()
) -> tuple[Ranking, ...]:
    """Rank runs by the mean of a measure: over all organs first, then for each organ.

    Each run is tested against the best of that organ, or against the baseline, by the paired Wilcoxon signed-rank test
    over the cases that both scored: are the changes symmetric about zero? Holm's step-down procedure, which keeps the
    chance of any false claim at 5 %, corrects the tests of all organs together, those of the mean for themselves, since
    they ask another question of the same cases.

    Args:
        runs: Title -> rows of the same cases.
        baseline: Title of the run to test against; None takes the best of each organ.
        measures: What to average, by default what tables show; runs are ranked and tested by the first, of which more
            is better.

    References:
        Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945; Holm, "A simple sequentially
        rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    measures = measures or leading()
    organs = dict.fromkeys(organ for rows in runs.values() for organ in organs_of(rows))
    each = [
        _rank(organ, {title: [r for r in rows if r.organ == organ] for title, rows in runs.items()}, baseline, measures)
        for organ in organs
    ]
    return (*_corrected([_rank(MEAN, runs, baseline, measures)]), *_corrected(each))


def signed_rank_p(differences: Float64[np.ndarray, " cases"]) -> float:
    """Give the two-sided p of Wilcoxon's signed-rank test; 1 where nothing changed.

    Example:
        >>> signed_rank_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
        0.0625
    """
    meant = np.round(differences, 9)  # 0.9 - 0.8 and 0.8 - 0.7 are one rank, though not one float
    if not np.any(meant):
        return 1.0
    return float(wilcoxon(meant).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down procedure.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def _rank(organ: str, runs: Mapping[str, Sequence[CaseRow]], baseline: str | None, measures: Sequence[str]) -> Ranking:
    scores = {title: _by_case(rows, measures) for title, rows in runs.items() if rows}
    untested = [_entry(title, runs[title], some, measures) for title, some in scores.items()]
    untested.sort(key=lambda entry: -entry.measures[measures[0]].mean)
    ranks = rankdata([-entry.measures[measures[0]].mean for entry in untested], method="min")
    reference = baseline or untested[0].title
    entries = (
        replace(_tested(entry, scores[entry.title], scores.get(reference, {}), reference), rank=int(rank))
        for entry, rank in zip(untested, ranks, strict=True)
    )
    return Ranking(organ, reference, tuple(entries))


def _by_case(rows: Sequence[CaseRow], measures: Sequence[str]) -> _Scores:
    """Case -> measures, averaged over its organs."""
    return {
        case: tuple(sum(row.value(measure) for row in some) / len(some) for measure in measures)
        for case, some in by_case(rows).items()
    }


def _entry(title: str, rows: Sequence[CaseRow], scores: _Scores, measures: Sequence[str]) -> Entry:
    values, outcomes = np.array(list(scores.values())), Counter(row.scores.outcome for row in rows)
    means = statistics(values, measures, np.ones(len(values), dtype=bool))
    return Entry(title, 0, len(values), means, outcomes[Outcome.MISSED], outcomes[Outcome.FALSE])


def _tested(entry: Entry, ours: _Scores, theirs: _Scores, reference: str) -> Entry:
    """Test the first measure of one run against the reference run's, case by case."""
    changes = np.array([ours[case][0] - theirs[case][0] for case in ours if case in theirs])
    if entry.title == reference or not changes.size:
        return entry
    higher, lower = int((changes > 0).sum()), int((changes < 0).sum())
    (change,) = statistics(changes[:, None], ["change"], np.ones(len(changes), dtype=bool)).values()
    return replace(entry, change=change, higher=higher, lower=lower, p=signed_rank_p(changes))


def _corrected(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Holm's correction over all tests of some rankings."""
    corrected = iter(holm([entry.p for one in rankings for entry in one.entries if entry.p is not None]))
    return [
        replace(one, entries=tuple(e if e.p is None else replace(e, p_holm=next(corrected)) for e in one.entries))
        for one in rankings
    ]
