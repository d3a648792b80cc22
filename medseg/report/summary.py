"""Many cases in few numbers: mean, spread, median and a bootstrap interval per organ, and how often it was missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from medseg.metrics.empty import Outcome
from medseg.report.rows import MEASURES, CaseRow, by_case, organs_of

RESAMPLES = 10_000
SEED = 20_240_229  # any fixed number: two evaluations of the same files must print the same interval
_INTERVAL = (2.5, 97.5)


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


@dataclass(frozen=True)
class OrganSummary:
    """All measures of one organ, and in how many cases it was found, missed, invented or rightly absent."""

    measures: dict[str, Statistic]
    found: int
    missed: int
    false: int
    absent: int

    @property
    def spread(self) -> bool:
        """Whether there is one: a single case has neither deviation nor interval."""
        return self.found + self.missed + self.false + self.absent > 1


@dataclass(frozen=True)
class Summary:
    """What summary.json says.

    Attributes:
        organs: By organ name.
        cases: Number of cases that were scored.
        mean_dice: Mean over organs of their mean Dice; None without a case.
        mean_dice_ci95: Its bootstrap interval; None without a case.
    """

    organs: dict[str, OrganSummary]
    cases: int
    mean_dice: float | None
    mean_dice_ci95: tuple[float, float] | None

    @property
    def counted(self) -> str:
        """Say how many cases there are.

        Example:
            >>> Summary({}, 1, None, None).counted
            '1 case'
        """
        return f"{self.cases} case{'s' * (self.cases != 1)}"

    def as_json(self) -> dict[str, Any]:
        """Give plain data for `json.dumps`, free of NaN."""
        organs = {
            name: {
                **{measure: asdict(statistic) for measure, statistic in organ.measures.items()},
                **{key: getattr(organ, key) for key in ("found", "missed", "false", "absent")},
            }
            for name, organ in self.organs.items()
        }
        return {
            "organs": organs,
            "mean_dice": self.mean_dice,
            "mean_dice_ci95": self.mean_dice_ci95,
            "cases": self.cases,
        }


def summarise(rows: Sequence[CaseRow]) -> Summary:
    """Summarise the rows of cases.csv; an organ that a case's reference does not cover has no row there.

    Every organ is resampled with the same draws of cases (one seed), so the interval of the mean Dice respects that the
    organs of one case belong together.
    """
    organs, cases = organs_of(rows), tuple(by_case(rows))
    if not cases:
        return Summary({}, 0, None, None)
    values = np.full((len(cases), len(organs), len(MEASURES)), np.nan)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in organs}
    at_case, at_organ = ({name: index for index, name in enumerate(names)} for names in (cases, organs))
    for row in rows:
        values[at_case[row.case], at_organ[row.organ]] = [row.value(measure) for measure in MEASURES]
        outcomes[row.organ].append(row.scores.outcome)
    summaries, mean_dices = {}, []
    for index, name in enumerate(organs):  # one by one, since the resampled means of 100 organs would fill gigabytes
        means = bootstrap_means(values[:, index])
        mean_dices.append(means[:, MEASURES.index("dice")])
        intervals = np.nanpercentile(means, _INTERVAL, axis=0)
        summaries[name] = _summarise_organ(values[:, index], outcomes[name], intervals)
    low, high = np.nanpercentile(np.nanmean(mean_dices, axis=0), _INTERVAL)
    mean_dice = sum(organ.measures["dice"].mean for organ in summaries.values()) / len(summaries)
    return Summary(summaries, len(cases), mean_dice, (float(low), float(high)))


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
    draws = _draws(len(values), resamples, seed)
    valid = ~np.isnan(values)
    sums = draws @ np.where(valid, values, 0.0)
    weights = draws @ valid.astype(np.float64)
    means: np.ndarray = np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)
    return means


def interval_of_mean(values: Float64[np.ndarray, "cases columns"]) -> Float64[np.ndarray, "2 columns"]:
    """The 95 % percentile bootstrap interval of each column's mean."""
    bounds: np.ndarray = np.percentile(bootstrap_means(values), _INTERVAL, axis=0)
    return bounds


@lru_cache(maxsize=1)
def _draws(cases: int, resamples: int, seed: int) -> Float64[np.ndarray, "resamples cases"]:
    """How often each case is drawn; drawn once for all organs."""
    return np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(np.float64)


def _summarise_organ(
    values: Float64[np.ndarray, "cases measures"],
    outcomes: Sequence[Outcome],
    intervals: Float64[np.ndarray, "2 measures"],
) -> OrganSummary:
    covered = values[~np.isnan(values[:, 0])]
    present = np.array([outcome in (Outcome.FOUND, Outcome.MISSED) for outcome in outcomes])
    measures = {
        measure: Statistic(
            mean=float(column.mean()),
            std=float(column.std(ddof=1)) if len(column) > 1 else 0.0,
            median=float(np.median(column)),
            ci95=(float(low), float(high)),
            mean_where_present=float(column[present].mean()) if present.any() else None,
        )
        for measure, column, low, high in zip(MEASURES, covered.T, *intervals, strict=True)
    }
    counts = Counter(outcomes)
    return OrganSummary(measures, *(counts[outcome] for outcome in Outcome))
