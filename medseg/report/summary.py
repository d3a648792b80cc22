"""Many cases in few numbers: mean, spread, median and a bootstrap interval per organ, and how often it was missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt16

from medseg.datasets.case import counted
from medseg.metrics.empty import Outcome
from medseg.report.rows import CaseRow, by_case, by_dataset, measures, organs_of

RESAMPLES = 10_000
SEED = 20_240_229  # any fixed number: two evaluations of the same files must print the same interval
_INTERVAL = (2.5, 97.5)
_AT_ONCE = 500  # resamples: of ten thousand cases they take 40 MB while they are multiplied


@dataclass(frozen=True)
class Statistic:
    """One measure of one organ over all cases.

    Attributes:
        mean: Mean over all cases.
        std: Sample standard deviation (n - 1); 0 for a single case.
        median: Median over all cases.
        ci95: Percentile bootstrap interval of the mean, cases resampled.
        mean_where_present: Mean over the cases whose reference has the organ; None if there is none.
    """

    mean: float
    std: float
    median: float
    ci95: tuple[float, float]
    mean_where_present: float | None

    def text(self, form: str = ".3f", *, spread: bool = True) -> str:
        """The mean, with the deviation where there is one to show."""
        return f"{self.mean:{form}}" + (f" ± {self.std:{form.lstrip('+')}}" if spread else "")


@dataclass(frozen=True)
class OrganSummary:
    """All measures of one organ, and in how many cases it was found, missed, invented or rightly absent."""

    measures: dict[str, Statistic]
    found: int
    missed: int
    false: int
    absent: int

    @property
    def missed_of(self) -> tuple[int, int]:
        """Cases in which it was missed, out of those whose reference has it."""
        return self.missed, self.found + self.missed

    @property
    def false_of(self) -> tuple[int, int]:
        """Cases in which it was invented, out of those whose reference lacks it."""
        return self.false, self.false + self.absent

    @property
    def cases(self) -> int:
        """Those whose reference covers it."""
        return self.found + self.missed + self.false + self.absent

    @property
    def spread(self) -> bool:
        """Whether there is one: a single case has neither deviation nor interval."""
        return self.cases > 1


@dataclass(frozen=True)
class Summary:
    """What summary.json says; without a case neither a mean over organs of their Dice nor its interval.

    Attributes:
        organs: By name.
        cases: How many there are.
        mean_dice: Mean over organs.
        mean_dice_ci95: Its interval.
        datasets: The same of the cases of each of several merged datasets, by name.
    """

    organs: dict[str, OrganSummary]
    cases: int
    mean_dice: float | None
    mean_dice_ci95: tuple[float, float] | None
    datasets: dict[str, Summary] = field(default_factory=dict)

    @property
    def counted(self) -> str:
        """Say how many cases there are.

        Example:
            >>> Summary({}, 1, None, None).counted
            '1 case'
        """
        return counted(self.cases, "case")

    def as_json(self) -> dict[str, Any]:
        """Give plain data for `json.dumps`, free of NaN."""
        plain = asdict(replace(self, datasets={}))
        organs = {name: {**organ.pop("measures"), **organ} for name, organ in plain["organs"].items()}
        parts = {name: part.as_json() for name, part in self.datasets.items()}
        return {**plain, "organs": organs, "datasets": parts}


def summarise(rows: Sequence[CaseRow]) -> Summary:
    """Summarise the rows of cases.csv; an organ that a case's reference does not cover has no row there.

    Every organ is resampled with the same draws of cases (one seed), so the interval of the mean Dice respects that the
    organs of one case belong together.
    """
    organs, cases = organs_of(rows), tuple(by_case(rows))
    if not cases:
        return Summary({}, 0, None, None)
    names = measures()
    values = np.full((len(cases), len(organs), len(names)), np.nan)
    outcomes: dict[str, list[Outcome | None]] = {name: [None] * len(cases) for name in organs}
    at_case, at_organ = ({name: index for index, name in enumerate(names)} for names in (cases, organs))
    for row in rows:
        values[at_case[row.case], at_organ[row.organ]] = [row.value(measure) for measure in names]
        outcomes[row.organ][at_case[row.case]] = row.scores.outcome
    summaries = {name: _summarise_organ(values[:, index], outcomes[name]) for index, name in enumerate(organs)}
    dices = bootstrap_means(values[:, :, names.index("dice")])
    low, high = np.percentile(np.nanmean(dices, axis=1), _INTERVAL)
    mean_dice = sum(organ.measures["dice"].mean for organ in summaries.values()) / len(summaries)
    parts = {name: summarise(some) for name, some in by_dataset(rows).items()}
    return Summary(summaries, len(cases), mean_dice, (float(low), float(high)), parts)


def bootstrap_means(
    values: Float64[np.ndarray, "cases columns"], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Float64[np.ndarray, "resamples columns"]:
    """Average each column over rows drawn with replacement, once per resample; NaN marks a row to leave out.

    Example:
        >>> means = bootstrap_means(np.array([[0.8], [0.9], [1.0]]))
        >>> [round(float(bound), 2) for bound in np.percentile(means, [2.5, 97.5])]
        [0.8, 1.0]

    References:
        Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
    """
    valid = ~np.isnan(values)
    known = np.concatenate([np.where(valid, values, 0.0), valid], axis=1)
    totals = np.concatenate([some.astype(np.float64) @ known for some in _draws(len(values), resamples, seed)])
    sums, weights = np.split(totals, 2, axis=1)
    means: np.ndarray = np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)
    return means


@lru_cache(maxsize=1)
def _draws(cases: int, resamples: int, seed: int) -> tuple[UInt16[np.ndarray, "_ cases"], ...]:
    """How often each case is drawn, some resamples at a time; drawn once for all organs, and kept small."""
    rng, share = np.random.default_rng(seed), np.full(cases, 1 / cases)
    counts = [min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE)]
    return tuple(rng.multinomial(cases, share, size=count).astype(np.uint16) for count in counts)


def statistics(
    values: Float64[np.ndarray, "cases measures"], measures: Sequence[str], present: Bool[np.ndarray, " cases"]
) -> dict[str, Statistic]:
    """Each measure in few numbers, of a row per case, NaN to be left out; those that are ``present`` have the organ."""
    covered = ~np.isnan(values[:, 0])
    intervals = np.nanpercentile(bootstrap_means(values), _INTERVAL, axis=0)
    there = values[covered & present]
    return {
        measure: Statistic(
            mean=float(column.mean()),
            std=float(column.std(ddof=1)) if len(column) > 1 else 0.0,
            median=float(np.median(column)),
            ci95=(float(low), float(high)),
            mean_where_present=float(there[:, index].mean()) if len(there) else None,
        )
        for index, (measure, column, low, high) in enumerate(zip(measures, values[covered].T, *intervals, strict=True))
    }


def _summarise_organ(values: Float64[np.ndarray, "cases measures"], outcomes: Sequence[Outcome | None]) -> OrganSummary:
    present = np.array([outcome in (Outcome.FOUND, Outcome.MISSED) for outcome in outcomes])
    counts = Counter(outcomes)
    return OrganSummary(statistics(values, measures(), present), *(counts[outcome] for outcome in Outcome))
