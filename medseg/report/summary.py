"""Many cases in few numbers: mean, spread, median and a bootstrap interval per organ, and how often it was missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from medseg.metrics.empty import Outcome
from medseg.report.rows import MEASURES, CaseRow, cases_of, organs_of

RESAMPLES = 10_000
SEED = 20_240_229  # any fixed number: two evaluations of the same files must print the same interval
_PRESENT = (Outcome.FOUND, Outcome.MISSED)
_RESAMPLES_AT_ONCE = 500


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
    """Summarise the rows of cases.csv, where every case has every organ.

    Every organ and measure is resampled with the same draws of cases, so the interval of the mean Dice respects that
    the organs of one case belong together.
    """
    organs, cases = organs_of(rows), cases_of(rows)
    if not cases:
        return Summary({}, 0, None, None)
    table = np.array([[row.value(measure) for measure in MEASURES] for row in rows])
    values = table.reshape(len(cases), len(organs), len(MEASURES))
    outcomes = np.array([row.scores.outcome.value for row in rows]).reshape(len(cases), len(organs))
    mean_dice = values[:, :, MEASURES.index("dice")].mean(axis=1, keepdims=True)
    flat = np.concatenate([values.reshape(len(cases), -1), mean_dice], axis=1)
    low, high = bootstrap_interval(flat)
    intervals = np.stack([low[:-1], high[:-1]], axis=-1).reshape(len(organs), len(MEASURES), 2)
    return Summary(
        {
            name: _summarise_organ(values[:, index], outcomes[:, index].tolist(), intervals[index])
            for index, name in enumerate(organs)
        },
        len(cases),
        float(mean_dice.mean()),
        (float(low[-1]), float(high[-1])),
    )


def bootstrap_interval(
    values: Float64[np.ndarray, "cases columns"], *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[Float64[np.ndarray, " columns"], Float64[np.ndarray, " columns"]]:
    """Bound the mean of each column by the 2.5th and 97.5th percentile of its means over resampled rows.

    Example:
        >>> low, high = bootstrap_interval(np.array([[0.8], [0.9], [1.0]]))
        >>> bool(0.8 <= low[0] < 0.9 < high[0] <= 1.0)
        True

    References:
        Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
    """
    cases = len(values)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - start)
        draws = generator.multinomial(cases, np.full(cases, 1 / cases), size=count)
        means[start : start + count] = draws @ values / cases
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def _summarise_organ(
    values: Float64[np.ndarray, "cases measures"],
    outcomes: list[str],
    intervals: Float64[np.ndarray, "measures 2"],
) -> OrganSummary:
    present = np.isin(outcomes, [one.value for one in _PRESENT])
    measures = {
        measure: Statistic(
            mean=float(column.mean()),
            std=float(column.std(ddof=1)) if len(column) > 1 else 0.0,
            median=float(np.median(column)),
            ci95=(float(interval[0]), float(interval[1])),
            mean_where_present=float(column[present].mean()) if present.any() else None,
        )
        for measure, column, interval in zip(MEASURES, values.T, intervals, strict=True)
    }
    counts = Counter(outcomes)
    return OrganSummary(measures, *(counts[one.value] for one in Outcome))
