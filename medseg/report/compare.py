"""Two evaluations of the same cases held against each other: is the difference real, and where is it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import wilcoxon

from medseg.checkpoints.run import Scores
from medseg.errors import DataError, UsageError, nearest
from medseg.report.rows import MEASURES, read_rows

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class OrganComparison:
    """One organ in two runs, over the cases that both scored.

    Attributes:
        organ: Its name.
        cases: Number of common cases.
        mean_a: Mean of the first run.
        mean_b: Mean of the second run.
        median_change: Median over cases of second minus first.
        higher: Cases in which the second run's value is higher.
        lower: Cases in which it is lower.
        p: Two-sided p of the paired Wilcoxon signed-rank test.
        p_holm: The same, corrected for the number of organs.
    """

    organ: str
    cases: int
    mean_a: float
    mean_b: float
    median_change: float
    higher: int
    lower: int
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Change:
    """One organ of one case in both runs."""

    case: str
    organ: str
    a: float
    b: float


@dataclass(frozen=True)
class RunComparison:
    """What two runs have in common and where they differ.

    Attributes:
        measure: The compared column of cases.csv.
        organs: A comparison per organ.
        changes: Every common case and organ, largest change first.
        only_a: Cases that only the first run scored.
        only_b: Cases that only the second run scored.
        organs_a: Organs that only the first run scored.
        organs_b: Organs that only the second run scored.
    """

    measure: str
    organs: tuple[OrganComparison, ...]
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    organs_a: tuple[str, ...] = ()
    organs_b: tuple[str, ...] = ()


def compare_runs(a: Path, b: Path, *, measure: str = "dice") -> RunComparison:
    """Compare two evaluations case by case, organ by organ.

    The paired Wilcoxon signed-rank test asks whether the changes of an organ are symmetric about zero; Holm's step-down
    procedure keeps the chance of any false claim over all organs at 5 %.

    Args:
        a: A cases.csv, or the folder that holds it.
        b: The same of the other run.
        measure: A column of cases.csv.

    Raises:
        DataError: A file cannot be read, or the two share no case.
        UsageError: The measure is unknown.

    References:
        Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945; Holm, "A simple sequentially
        rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    if measure not in MEASURES:
        guess = nearest(measure, list(MEASURES)) or MEASURES[0]
        raise UsageError(f"{measure!r} is no column of cases.csv", f"Did you mean {guess}")
    first, second = (_values(path, measure) for path in (a, b))
    common = [key for key in first if key in second]
    if not common:
        raise DataError(b, f"shares no case and organ with {a}", "Evaluate both runs on the same cases")
    changes = [Change(*key, first[key], second[key]) for key in common]
    by_organ: dict[str, list[Change]] = {}
    for change in changes:
        by_organ.setdefault(change.organ, []).append(change)
    raw = [signed_rank_p(np.array([change.b - change.a for change in some])) for some in by_organ.values()]
    (cases_a, cases_b), (organs_a, organs_b) = (
        [{key[place] for key in values} for values in (first, second)] for place in (0, 1)
    )
    return RunComparison(
        measure,
        tuple(
            _compare_organ(organ, some, p, corrected)
            for (organ, some), p, corrected in zip(by_organ.items(), raw, holm(raw), strict=True)
        ),
        tuple(sorted(changes, key=lambda change: (-abs(change.b - change.a), change.case, change.organ))),
        tuple(sorted(cases_a - cases_b)),
        tuple(sorted(cases_b - cases_a)),
        tuple(sorted(organs_a - organs_b)),
        tuple(sorted(organs_b - organs_a)),
    )


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


def print_comparison(comparison: RunComparison, console: Console | None = None, *, most_changed: int = 10) -> None:
    """Print the organs, then the cases that changed most, then the cases that only one run has."""
    console = console or Console()
    console.print(comparison_table(comparison))
    if any(change.a != change.b for change in comparison.changes):
        console.print(changes_table(comparison, most_changed=most_changed))
    else:
        console.print("No case changed.")
    only = (
        ("first run", comparison.only_a),
        ("second run", comparison.only_b),
        ("first run, organs", comparison.organs_a),
        ("second run, organs", comparison.organs_b),
    )
    for name, missed in only:
        if missed:
            console.print(f"Only in the {name}: {escape(', '.join(missed))}", soft_wrap=True, highlight=False)


def comparison_table(comparison: RunComparison) -> Table:
    """Lay out a row per organ; an asterisk marks a corrected p below 0.05."""
    table = Table(title=f"{comparison.measure}, second run against first", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("organ", overflow="fold", min_width=10)
    for heading in ("cases", "first", "second", "median change", "higher", "lower", "p (Holm)"):
        table.add_column(heading, justify="right")
    for organ in comparison.organs:
        table.add_row(
            escape(organ.organ),
            str(organ.cases),
            f"{organ.mean_a:.3f}",
            f"{organ.mean_b:.3f}",
            f"{organ.median_change:+.4f}",
            str(organ.higher),
            str(organ.lower),
            f"{organ.p_holm:.2g}{' *' if organ.significant else ''}",
        )
    return table


def changes_table(comparison: RunComparison, *, most_changed: int = 10) -> Table:
    """Lay out the cases and organs whose value changed most."""
    table = Table(title="Changed most", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("case", overflow="fold", min_width=10)
    table.add_column("organ", overflow="fold")
    for heading in ("first", "second", "change"):
        table.add_column(heading, justify="right")
    for change in (change for change in comparison.changes[:most_changed] if change.a != change.b):
        table.add_row(
            escape(change.case),
            escape(change.organ),
            f"{change.a:.3f}",
            f"{change.b:.3f}",
            f"{change.b - change.a:+.3f}",
        )
    return table


def _values(path: Path, measure: str) -> dict[tuple[str, str], float]:
    rows = read_rows(Scores(path).cases if path.is_dir() else path)
    return {(row.case, row.organ): row.value(measure) for row in rows}


def _compare_organ(organ: str, changes: Sequence[Change], p: float, p_holm: float) -> OrganComparison:
    a, b = (np.array([getattr(change, side) for change in changes]) for side in ("a", "b"))
    return OrganComparison(
        organ,
        len(changes),
        float(a.mean()),
        float(b.mean()),
        float(np.median(b - a)),
        int((b > a).sum()),
        int((b < a).sum()),
        p,
        p_holm,
    )
