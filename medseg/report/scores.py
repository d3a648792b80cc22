"""What an evaluation left on disk, read back: the scores, what failed, and which references they were held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.checkpoints.run import Scores
from medseg.datasets.matching import Failure
from medseg.errors import DataError, listed
from medseg.machine.files import read_json
from medseg.report.rows import CaseRow, read_rows


@dataclass(frozen=True)
class SavedScores:
    """A finished evaluation, as its folder tells it.

    Attributes:
        path: Its cases.csv.
        rows: A row per case and organ.
        failures: Cases that could not be scored.
        references: Case -> digest of the reference it was scored against; empty where nobody noted them.
        surfaces: How surfaces were measured, in words; empty where nobody noted it.
    """

    path: Path
    rows: tuple[CaseRow, ...]
    failures: tuple[Failure, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)
    surfaces: str = ""


def read_scores(path: Path, measure: str = "", where: Mapping[str, str] | None = None) -> SavedScores:
    """Read a cases.csv, or that of a folder, and the summary.json beside it, which may be missing.

    Args:
        path: The file or the folder.
        measure: The only measure that it must have, if it is somebody else's table.
        where: Column -> value of the rows that are meant, in a table that has such a column.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    table = table_of(path)
    rows, summary = read_rows(table, measure, where or {}), Scores(table.parent).summary
    if not summary.is_file():
        return SavedScores(table, rows)
    try:
        said: dict[str, Any] = read_json(summary)
        failures = tuple(Failure(one["case"], one["reason"]) for one in said["failures"])
        surfaces = f"{said['surface_element']} within {said['tolerance_mm']} mm" if "surface_element" in said else ""
        return SavedScores(table, rows, failures, dict(said.get("references", {})), surfaces)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(summary, f"cannot be read ({error})", "Remove it, and run the same command again") from None


def table_of(path: Path) -> Path:
    """The cases.csv of a folder; a file is it itself."""
    return Scores(path).cases if path.is_dir() else path


def require_same_references(several: Sequence[SavedScores]) -> None:
    """Refuse to hold scores against each other that were given by different references.

    Raises:
        DataError: A case was scored against one reference here and another there.
    """
    known: dict[str, tuple[str, Path]] = {}
    for scores in several:
        for case, digest in scores.references.items():
            known.setdefault(case, (digest, scores.path))
        differ = [case for case, digest in scores.references.items() if known[case][0] != digest]
        if differ:
            raise DataError(
                scores.path,
                f"was scored against other labels than {known[differ[0]][1]} ({listed(differ)})",
                "Score both against the same labels",
            )


def doubts(several: Sequence[SavedScores]) -> list[str]:
    """What cannot be known of a comparison of scores, or makes some measures unlike, a sentence each."""
    unknown = [str(scores.path) for scores in several if not scores.references]
    surfaces = {scores.surfaces for scores in several} - {""}
    told = []
    if unknown:
        told.append(f"Whether the labels were the same cannot be told: {listed(unknown)} does not note them.")
    if len(surfaces) > 1:
        told.append(f"Surfaces were measured differently, so distances and NSD differ: {'; '.join(sorted(surfaces))}.")
    return told
