"""cases.csv: a row per case and organ, the file every later comparison reads."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DataError, listed
from medseg.machine.files import write_text
from medseg.metrics.cases import OrganScores
from medseg.metrics.empty import Outcome
from medseg.metrics.table import rows

_WORDS = ("case", "organ", "outcome")


def measures() -> tuple[str, ...]:
    """Names of the numbers of a row, in the order of the columns of cases.csv: every metric of the table."""
    return tuple(rows())


def leading() -> tuple[str, ...]:
    """The measures that tables and figures show; the csv and the json hold all of `measures`."""
    return tuple(name for name, row in rows().items() if row.leading)


def columns() -> tuple[str, ...]:
    """The head of cases.csv."""
    shown = leading()
    return ("case", "organ", *shown, "outcome", *measures()[len(shown) :], "dataset")


@dataclass(frozen=True)
class CaseRow:
    """The scores of one organ in one case, and which of several merged datasets the case comes from, if any."""

    case: str
    organ: str
    scores: OrganScores
    dataset: str = ""

    def value(self, measure: str) -> float:
        """Give one of `measures`; NaN of a metric that was not asked for when the case was scored."""
        return self.scores.values.get(measure, math.nan)


def write_rows(path: Path, rows: Iterable[CaseRow]) -> None:
    """Write cases.csv; it appears whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns())
    writer.writerows(map(cells_of, rows))
    write_text(path, text.getvalue())


def read_rows(path: Path, measure: str = "", where: Mapping[str, str] | None = None) -> tuple[CaseRow, ...]:
    """Read a cases.csv back, with the columns of metrics of one's own that it has.

    Args:
        path: The file.
        measure: The one measure that is asked for, and all that is read of the table of somebody else, which lacks
            columns of ours: where it has none of our outcomes an organ counts as found.
        where: Column -> value of the rows that are meant; a table where that column is missing or empty has no others.

    Raises:
        DataError: The file is missing, lacks a column, or holds something that is no number, or none that the measure
            can be.
    """
    lines = read_table(path)
    if not lines:
        raise DataError(path, "holds no case", "Run medseg evaluate again")
    heads, foreign = [head for head in lines[0] if head], bool(measure) and not {*_OURS, *_WORDS} <= {*lines[0]}
    ours = _OURS
    if foreign:  # where it has others only, whoever asks says so
        ours = () if measure not in lines[0] and {*_OURS} & {*lines[0]} else (measure,)
    if foreign and not all(line.get("outcome") in [*Outcome] for line in lines):
        lines = [{**line, "outcome": Outcome.FOUND.value} for line in lines]
    lacking = [column for column in (*ours, *_WORDS) if column not in lines[0]]
    if lacking:
        remedy = "Give the cases.csv that medseg evaluate wrote"
        remedy += f", or a table with commas between its columns case, organ and {measure}" if measure else ""
        raise DataError(path, f"lacks the column {lacking[0]} (it has {listed(heads)})", remedy)
    lines = _meant(path, lines, where or {})
    _require_possible(path, lines, [name for name in ours if name == measure or not measure])
    further = () if foreign else _of_ones_own(lines)
    found = tuple(_row(path, line, [*ours, *further], foreign=foreign) for line in lines)
    (twice, count), *_ = Counter((row.case, row.organ) for row in found).most_common(1)
    if count > 1:
        remedy = "Run medseg evaluate again, or say which rows of a table of several programs are meant (--where)"
        raise DataError(path, f"scores {' of '.join(twice[::-1])} {count} times", remedy)
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a table as column -> cell; the columns of cases.csv are known however they are capitalised.

    Raises:
        DataError: The file is missing or no text.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))  # Excel marks its UTF-8
        reader.fieldnames = _heads(reader.fieldnames or ())
        lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(path, f"cannot be read ({reason})", "Give the cases.csv that medseg evaluate wrote") from None
    for number, line in enumerate(lines, start=2):
        if more := line.pop(None, None):
            problem = f"has more cells in row {number} than columns, the last of them {more[-1]!r}"
            raise DataError(path, problem, "Write numbers with a point, and text with commas in quotes")
    cells = ({head: (cell or "").strip() for head, cell in line.items()} for line in lines)
    return [line for line in cells if any(line.values())]


def _heads(found: Sequence[str]) -> list[str]:
    known = {name.casefold(): name for name in columns()}
    meant = [known.get(head.strip().casefold(), head) for head in found]
    return [one if meant.count(one) == 1 else head for one, head in zip(meant, found, strict=True)]


def _require_possible(path: Path, lines: Sequence[dict[str, str]], measures: Sequence[str]) -> None:
    """Refuse percentages, and numbers that stand for a case without a score; what is no number is told later."""
    for measure in measures:
        least, most = rows()[measure].range
        for line in lines:
            with suppress(TypeError, ValueError):
                if (score := float(line[measure])) < least or score > most:
                    problem = f"holds a {measure} of {score:g} ({line['organ']} of {line['case']})"
                    remedy = "Divide percentages by 100" if score > most else "Leave out what has no score"
                    expected = f"{least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
                    raise DataError(path, f"{problem}, expected {expected}", remedy)


def _meant(path: Path, lines: Sequence[dict[str, str]], where: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows with these values."""
    found, asked = list(lines), ""
    for column, value in where.items():
        values = dict.fromkeys(line[column] for line in found if line.get(column))
        if values and value not in values:
            problem = f"has no row whose {column} is {value!r}{asked}"
            raise DataError(path, problem, f"Choose one of {', '.join(values)}")
        found = [line for line in found if not values or line[column] == value]
        asked += f" and whose {column} is {value!r}" if values else ""
    return found


def organs_of(rows: Sequence[CaseRow]) -> tuple[str, ...]:
    """Name the organs of some rows in their first order."""
    return tuple(dict.fromkeys(row.organ for row in rows))


def by_case(rows: Iterable[CaseRow]) -> dict[str, list[CaseRow]]:
    """The rows of each case, in their first order."""
    cases: dict[str, list[CaseRow]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return cases


def by_dataset(rows: Iterable[CaseRow]) -> dict[str, list[CaseRow]]:
    """The rows of each of several merged datasets by name; empty where the cases come from one."""
    parts: dict[str, list[CaseRow]] = {}
    for row in rows:
        parts.setdefault(row.dataset, []).append(row)
    return dict(sorted(parts.items())) if len(parts) > 1 else {}


def cells_of(row: CaseRow) -> list[str]:
    """Its cells under `columns`."""
    named = {"case": row.case, "organ": row.organ, "outcome": row.scores.outcome.value, "dataset": row.dataset}
    return [named[column] if column in named else f"{row.value(column):.6g}" for column in columns()]


def _finite(cell: str) -> float:
    number = float(cell)
    if not math.isfinite(number):
        raise ValueError(f"{cell} is no score")
    return number


_OURS = tuple(name for name, row in rows().items() if row.function.__module__.startswith("medseg."))


def _of_ones_own(lines: Sequence[dict[str, str]]) -> list[str]:
    """The other columns that hold numbers throughout."""

    def number(cell: str | None) -> bool:
        try:
            return cell is not None and math.isfinite(float(cell))
        except ValueError:
            return False

    others = [name for name in lines[0] if name not in (None, *_WORDS, *_OURS, "dataset")]
    return [name for name in others if all(number(line[name]) for line in lines)]


def _row(path: Path, line: dict[str, str], measures: Sequence[str], *, foreign: bool) -> CaseRow:
    try:
        numbers = {measure: _finite(line[measure]) for measure in measures}
        scores = OrganScores(Outcome(line["outcome"]), numbers)
    except ValueError as error:
        problem = f"holds a bad cell for {line['organ'] or 'no organ'} of {line['case'] or 'no case'} ({error})"
        raise DataError(path, problem, "Correct it" if foreign else "Run medseg evaluate again") from None
    return CaseRow(line["case"], line["organ"], scores, line.get("dataset") or "")
