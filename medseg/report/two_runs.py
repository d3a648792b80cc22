"""Two evaluations of the same cases held against each other: is the difference real, and where is it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from medseg.errors import DataError, UsageError, listed, meant
from medseg.report.ranking import Ranking, rank_runs
from medseg.report.rows import CaseRow, read_table
from medseg.report.scores import doubts, read_scores, require_same_references, table_of
from medseg.report.tables import console_table, print_table, tell

FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class CaseChange:
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
        mean: A ranking by the mean over the organs of each case.
        organs: One per organ of the `FIRST` and the `SECOND` run, which is tested against the first.
        changes: Every common case and organ, largest change first.
        only: What only one run scored: in words, whose and what -> names.
        doubts: What cannot be known of it, a sentence each.
    """

    measure: str
    mean: Ranking
    organs: tuple[Ranking, ...]
    changes: tuple[CaseChange, ...]
    only: Mapping[str, Sequence[str]]
    doubts: Sequence[str]


def compare_runs(a: Path, b: Path, *, measure: str = "dice", where: Mapping[str, str] | None = None) -> RunComparison:
    """Compare two evaluations, each a cases.csv or its folder, case by case and organ by organ over what both scored.

    Args:
        a: The first. A table that others published will do, too, with the columns case, organ and the measure.
        b: The second.
        measure: The column to compare.
        where: Of a table with rows of several programs, those that are meant: column -> value.

    Raises:
        DataError: A file cannot be read, the two share no case or no organ, or scored one against different labels.
        UsageError: The measure is unknown, or a column that no table has is to tell rows apart.
    """
    _require_columns(where or {}, (a, b))
    scores = [read_scores(path, measure, where) for path in (a, b)]
    for one in scores:
        if measure not in (known := list(one.rows[0].scores.values)):
            problem = f"{measure!r} is no column of {one.path}{meant(measure, known)}"
            raise UsageError(problem, f"Choose one of {', '.join(known)}")
    first, second = ({(row.case, row.organ): row for row in one.rows} for one in scores)
    common = [key for key in first if key in second]
    if not common:
        raise _nothing_shared(a, b, first, second)
    require_same_references(scores)
    rows = {FIRST: [first[key] for key in common], SECOND: [second[key] for key in common]}
    mean, *organs = rank_runs(rows, baseline=FIRST, measures=(measure,))
    changes = (CaseChange(*key, first[key].value(measure), second[key].value(measure)) for key in common)
    largest = sorted(changes, key=lambda change: (-abs(change.b - change.a), change.case, change.organ))
    return RunComparison(measure, mean, tuple(organs), tuple(largest), _only(first, second), doubts(scores))


def _require_columns(where: Mapping[str, str], paths: Sequence[Path]) -> None:
    """A word that no table has as a column would mean every row."""
    if where:
        heads = dict.fromkeys(
            head for path in paths for line in read_table(table_of(path))[:1] for head in line if head
        )
        for column in where:
            if column not in heads:
                problem = f"--where: {column!r} is no column of {listed(paths)}{meant(column, heads)}"
                raise UsageError(problem, f"Choose one of {', '.join(heads)}")


def _nothing_shared(
    a: Path, b: Path, first: Mapping[tuple[str, str], CaseRow], second: Mapping[tuple[str, str], CaseRow]
) -> DataError:
    (cases, organs), (their_cases, their_organs) = (
        [dict.fromkeys(key[place] for key in run) for place in (0, 1)] for run in (first, second)
    )
    if cases.keys() & their_cases.keys():
        problem = f"scores other organs than {a}: {listed(their_organs)}, there {listed(organs)}"
        return DataError(b, problem, "Call them alike in both, if they are the same")
    return DataError(b, f"shares no case with {a}", "Evaluate both runs on the same cases")


def _only(first: Mapping[tuple[str, str], CaseRow], second: Mapping[tuple[str, str], CaseRow]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for place, what in enumerate(("", ", organs")):
        ours, theirs = ({key[place] for key in run} for run in (first, second))
        found |= {f"{FIRST} run{what}": sorted(ours - theirs), f"{SECOND} run{what}": sorted(theirs - ours)}
    return found


def print_comparison(comparison: RunComparison, console: Console | None = None, *, most_changed: int = 10) -> None:
    """Print the organs, then the cases that changed most, then what only one run has and what cannot be known.

    An asterisk marks a corrected p below 0.05.
    """
    console = console or Console()
    heads = ("organ", "cases", FIRST, SECOND, "change [95 %]", "median", "higher", "lower", "p (Holm)")
    rankings = (*([comparison.mean] if len(comparison.organs) > 1 else []), *comparison.organs)
    rows = (_cells(ranking, comparison.measure) for ranking in rankings)
    print_table(console, console_table(heads, rows, title=f"{comparison.measure}, second run against first"))
    changed = [
        (change.case, change.organ, f"{change.a:.3f}", f"{change.b:.3f}", f"{change.b - change.a:+.3f}")
        for change in comparison.changes[:most_changed]
        if change.a != change.b
    ]
    if changed:
        named = ("case", "organ", FIRST, SECOND, "change")
        print_table(console, console_table(named, changed, title="Changed most", names=2))
    told = [f"Only in the {whose}: {listed(names, most=20)}" for whose, names in comparison.only.items() if names]
    tell(console, *([] if changed else ["No case changed."]), *told, *comparison.doubts)


def _cells(ranking: Ranking, measure: str) -> list[str]:
    first, second = (ranking.entry(title) for title in (FIRST, SECOND))
    means = (f"{entry.measures[measure].mean:.3f}" for entry in (first, second))
    tested = f"{second.p_holm:.2g}{' *' * second.differs}"
    changed = second.change
    if changed is None:
        raise AssertionError("the second run is tested against the first")
    low, high = changed.ci95
    interval = f"{changed.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return [
        *(ranking.organ, str(second.cases), *means, interval, f"{changed.median:+.4f}"),
        *(str(second.higher), str(second.lower), tested),
    ]
