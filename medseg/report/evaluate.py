"""Predictions held against references: summary.json and cases.csv, with every bad case named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from medseg import __version__
from medseg.checkpoints.run import Scores
from medseg.datasets.case import counted
from medseg.datasets.matching import Failure, Pair, References, match, read_references
from medseg.errors import DataError, UsageError, explaining, listed
from medseg.machine.files import require_writable, write_json
from medseg.machine.hardware import usable_cores
from medseg.machine.progress import progress
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.metrics.overlap import Organs
from medseg.metrics.table import Element
from medseg.report.rows import CaseRow, write_rows
from medseg.report.scoring import ScoredCase, Scoring, score_pair, values_seen
from medseg.report.summary import Summary, summarise

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        scoring: What the cases were scored by.
        rows: A row per case and organ, by case name.
        summary: The same, in few numbers.
        failures: Cases that could not be scored.
        not_predicted: References of a dataset that were not predicted.
        pairs: The files of the cases.
        images: Case name -> image files, where known, for pictures.
        output: Folder of summary.json, cases.csv and report.html.
        digests: Case name -> digest of the reference it was scored against.
        about: What else summary.json is to say, such as a ``note`` that cases were trained on.
    """

    scoring: Scoring
    rows: tuple[CaseRow, ...]
    summary: Summary
    failures: tuple[Failure, ...]
    not_predicted: int
    pairs: tuple[Pair, ...]
    images: Mapping[str, Path]
    output: Path
    digests: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def organs(self) -> Organs:
        """Organ name -> label value or values."""
        return self.scoring.organs

    @property
    def exit_status(self) -> int:
        """0 if every case was scored, 1 if one failed."""
        return 1 if self.failures else 0


def evaluate(
    predictions: str | Path,
    references: str | Path | References,
    *,
    output: str | Path,
    organs: Organs | None = None,
    ignore: int | None = None,
    cases: Sequence[str] | None = None,
    tolerance_mm: float | Mapping[str, float] = DEFAULT_TOLERANCE_MM,
    element: Element = "voxels",
    workers: int | None = None,
    images: Mapping[str, Path] | None = None,
    about: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Score a folder of predictions and write summary.json and cases.csv; ``exit_status`` is 1 if a case failed.

    A case that cannot be scored (no partner of its name, another grid, an undeclared value) is listed as a failure.

    Args:
        predictions: Folder of label maps, or of 4D files with one mask per organ in the order of ``organs``.
        references: Folder of label maps, all of which must be predicted, or a dataset or list, of which a part may be.
        output: Folder to write to.
        organs: Organ name -> value or values; None takes the dataset's, else every value seen as ``label 1`` and so on.
        ignore: Reference value of voxels that count for nothing; None takes the dataset's.
        cases: The cases that count, such as one fold; None for all.
        tolerance_mm: As in `medseg.report.scoring.Scoring`.
        element: As there.
        workers: Threads; None takes one per processor, at most 8.
        images: Case name -> image, for the pictures of the report.
        about: See `Evaluation`.
        console: Where to show progress; None shows none.

    Raises:
        DataError: A folder lacks NIfTI files, a dataset.json is at fault, it cannot be written, or there are no organs.
        UsageError: A tolerance is no length.
    """
    require_lengths(tolerance_mm)
    pool = references if isinstance(references, References) else read_references(Path(references))
    ignore = pool.ignore if ignore is None else ignore
    matched = match(Path(predictions), pool, cases=cases)
    require_writable(output := Path(output))
    workers = workers or min(8, usable_cores())
    named, pairs, unread = _named(organs or pool.organs, matched.pairs, ignore, workers)
    scoring = Scoring(dict(named), ignore, tolerance_mm, element, pool.others)
    scored, failed = _score_all(pairs, scoring, workers, console)
    rows = _covered(scored, pool, scoring.organs)
    evaluation = Evaluation(
        scoring=scoring,
        rows=rows,
        summary=summarise(rows),
        failures=tuple(sorted((*matched.failures, *unread, *failed), key=lambda failure: failure.case)),
        not_predicted=matched.not_predicted,
        pairs=matched.pairs,
        images={**pool.images, **(images or {})},
        output=output,
        digests={case: one.reference for case, one in scored.items()},
        about=about or {},
    )
    return write_evaluation(evaluation)


def _covered(scored: Mapping[str, ScoredCase], pool: References, organs: Organs) -> tuple[CaseRow, ...]:
    """The rows of the organs that a case's reference covers, with the dataset that the case comes from.

    Raises:
        DataError: There are none of any case.
    """
    drawn = pool.covered(organs)
    rows = ((case, row) for case, one in scored.items() for row in one.rows)
    found = [(case, row) for case, row in rows if case not in drawn or row.organ in drawn[case]]
    if scored and not found:
        problem = f"is called annotated in {counted(len(scored), 'case')}, but with none of {listed(organs)}"
        raise DataError(next(iter(pool.labels.values())).parent, problem, "Name the organs that are, with --labels")
    return tuple(replace(row, dataset=pool.datasets.get(case, "")) for case, row in found)


def _score_all(
    pairs: Sequence[Pair], scoring: Scoring, workers: int, console: Console | None
) -> tuple[dict[str, ScoredCase], list[Failure]]:
    """Score every case, side by side; of few large cases, the organs too."""
    score = partial(score_pair, scoring=scoring, workers=max(1, workers // max(1, len(pairs))))
    done = _each_case(score, pairs, workers, console)
    scored = {pair.case: one for pair, one in zip(pairs, done, strict=True) if isinstance(one, ScoredCase)}
    return scored, [one for one in done if isinstance(one, Failure)]


def _named(
    organs: Organs, pairs: tuple[Pair, ...], ignore: int | None, workers: int
) -> tuple[Organs, tuple[Pair, ...], list[Failure]]:
    """The organs, named by their values where nobody named them, the pairs that can be read, and why others cannot."""
    if organs:
        return organs, pairs, []
    seen, unread = _organs_seen(pairs, ignore, workers)
    bad = {failure.case for failure in unread}
    return seen, tuple(pair for pair in pairs if pair.case not in bad), unread


def _organs_seen(pairs: Sequence[Pair], ignore: int | None, workers: int) -> tuple[dict[str, int], list[Failure]]:
    """A name for every value of the cases that can be read, and why the others cannot."""
    done = _each_case(values_seen, pairs, workers, None)
    found = [one for one in done if not isinstance(one, Failure)]
    values = [value for value in sorted(set().union(*found) - {0, ignore}) if value > 0]
    if found and not values:
        raise DataError(pairs[0].reference.parent, "holds no label, and no prediction does", "Name them with --labels")
    return {f"label {value}": value for value in values}, [one for one in done if isinstance(one, Failure)]


def require_lengths(tolerance_mm: float | Mapping[str, float]) -> None:
    """Refuse tolerances below 0, infinite or NaN.

    Raises:
        UsageError: One is no length.
    """
    for length in tolerance_mm.values() if isinstance(tolerance_mm, Mapping) else (tolerance_mm,):
        if not 0 <= length < math.inf:
            raise UsageError(f"a tolerance of {length:g} mm is no length", "Give 0 or more")


def _each_case(
    work: Callable[[Pair], _Result], pairs: Sequence[Pair], workers: int, console: Console | None
) -> list[_Result | Failure]:
    """Do the same to every case; a file at fault fails its own case only."""

    def guarded(pair: Pair) -> _Result | Failure:
        try:
            with explaining():
                return work(pair)
        except DataError as error:
            return Failure(pair.case, str(error).removesuffix("."))
        except MemoryError:
            return Failure(pair.case, "needs more memory than there is. Use fewer workers, or crop it")

    with ThreadPoolExecutor(max_workers=workers) as threads:
        results = threads.map(guarded, pairs)
        if console is None:
            return list(results)
        done: list[_Result | Failure] = []
        with progress("scoring", len(pairs), console) as advance:
            for pair, result in zip(pairs, results, strict=True):
                done.append(result)
                advance(pair.case)
        return done


def write_evaluation(evaluation: Evaluation) -> Evaluation:
    """Write summary.json and cases.csv to its folder, each whole or not at all; the same evaluation."""
    summary = {
        **evaluation.summary.as_json(),
        "tolerance_mm": evaluation.scoring.tolerance_mm,
        "surface_element": evaluation.scoring.element,
        "failures": [{"case": failure.case, "reason": failure.reason} for failure in evaluation.failures],
        "not_predicted": evaluation.not_predicted,
        **evaluation.about,
        "references": dict(evaluation.digests),
        "medseg": __version__,
    }
    folder = Scores(evaluation.output)
    write_rows(folder.cases, evaluation.rows)
    write_json(folder.summary, summary)
    return evaluation
