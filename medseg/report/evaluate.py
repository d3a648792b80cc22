"""Predictions held against references: summary.json, cases.csv and report.html, with every bad case named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from medseg import __version__
from medseg.errors import DataError
from medseg.metrics.cases import DEFAULT_TOLERANCE_MM, score_case
from medseg.metrics.overlap import Organs, values_of
from medseg.report.matching import Failure, Pair, References, match, read_references
from medseg.report.rows import CaseRow, write_rows, write_text
from medseg.report.summary import Summary, summarise
from medseg.space.nifti import read_header, read_labels, read_volume
from medseg.space.volume import Volume, same_place

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        organs: Organ name -> label value or values.
        rows: A row per case and organ, by case name.
        summary: The same, in few numbers.
        failures: Cases that could not be scored.
        not_predicted: References of a dataset that were not predicted.
        pairs: The files of the scored cases.
        images: Case name -> image files, where known, for pictures.
        tolerance_mm: Tolerance of the surface Dice by organ name, or one for all.
        ignore: Reference value of voxels that count for nothing.
        output: Folder of summary.json, cases.csv and report.html.
    """

    organs: Organs
    rows: tuple[CaseRow, ...]
    summary: Summary
    failures: tuple[Failure, ...]
    not_predicted: int
    pairs: tuple[Pair, ...]
    images: Mapping[str, Path]
    tolerance_mm: float | Mapping[str, float]
    ignore: int | None
    output: Path

    @property
    def exit_status(self) -> int:
        """0 if every case was scored, 1 if one failed."""
        return 1 if self.failures else 0


def evaluate(
    predictions: Path,
    references: Path | References,
    *,
    output: Path,
    organs: Organs | None = None,
    ignore: int | None = None,
    cases: Sequence[str] | None = None,
    tolerance_mm: float | Mapping[str, float] = DEFAULT_TOLERANCE_MM,
    workers: int | None = None,
    images: Mapping[str, Path] | None = None,
) -> Evaluation:
    """Score a folder of predictions, write summary.json and cases.csv, and return what was found.

    Files are matched by case name. A case that cannot be scored (a file without its partner, another shape or affine,
    an undeclared label value, a truncated file) is listed among the failures and the rest is done.

    Args:
        predictions: Folder of label maps, or of 4D files with one mask per organ in the order of ``organs``.
        references: Folder of label maps, each of which must be predicted, or a dataset (folder with a ``dataset.json``,
            or that file), of which any part may be predicted; or such a list already made.
        output: Folder to write to.
        organs: Organ name -> value or values; None takes the dataset's, else every value seen as ``label 1`` and so on.
        ignore: Reference value of voxels that count for nothing; None takes the dataset's.
        cases: The cases that count, such as one fold; None for all.
        tolerance_mm: Tolerance of the surface Dice, one for all or by organ name.
        workers: Cases in work at once; None takes one per processor, at most 8.
        images: Case name -> image, for the pictures of the report.

    Returns:
        The evaluation; its ``exit_status`` is 1 if a case failed.

    Raises:
        DataError: A folder is missing or holds no NIfTI file, or the dataset's description is at fault.
        ValueError: A tolerance names no organ.
    """
    pool = references if isinstance(references, References) else read_references(references)
    ignore = pool.ignore if ignore is None else ignore
    matched = match(predictions, pool.labels, cases=cases, all_expected=pool.all_expected)
    workers = workers or min(8, os.cpu_count() or 1)
    named = organs or pool.organs or _organs_seen(matched.pairs, ignore, workers)
    rows, failed = _score_pairs(matched.pairs, named, ignore, tolerance_mm, workers)
    rows = tuple(row for row in rows if row.organ in pool.annotated.get(row.case, named))
    failures = (*matched.failures, *failed)
    scored = {row.case for row in rows}
    evaluation = Evaluation(
        organs=dict(named),
        rows=rows,
        summary=summarise(rows),
        failures=tuple(sorted(failures, key=lambda failure: failure.case)),
        not_predicted=matched.not_predicted,
        pairs=tuple(pair for pair in matched.pairs if pair.case in scored),
        images={**pool.images, **(images or {})},
        tolerance_mm=tolerance_mm,
        ignore=ignore,
        output=output,
    )
    write_rows(output / "cases.csv", rows)
    write_text(output / "summary.json", json.dumps(_summary_json(evaluation), indent=1, allow_nan=False) + "\n")
    return evaluation


def read_pair(pair: Pair, organs: Organs) -> tuple[Volume, Volume]:
    """Read prediction and reference of a case and hold their grids against each other.

    Raises:
        DataError: A file cannot be read, or shape, affine or channels do not fit.
    """
    prediction, reference = (_read_labels_or_masks(path, len(organs)) for path in (pair.prediction, pair.reference))
    if prediction.shape != reference.shape:
        raise DataError(
            pair.prediction,
            f"has shape {prediction.shape}, its reference has {reference.shape}",
            "Export the prediction on the grid of its image",
        )
    if not same_place(prediction.affine, reference.affine, reference.shape):
        raise DataError(
            pair.prediction,
            f"has another affine than its reference {pair.reference}",
            "Export the prediction on the grid of its image, or correct the header that is wrong",
        )
    return prediction, reference


def _read_labels_or_masks(path: Path, organ_count: int) -> Volume:
    if read_header(path).channels == 1:
        labels = read_labels(path)
        smallest = (
            np.min_scalar_type(int(labels.array.max(initial=0))) if labels.array.min(initial=0) >= 0 else np.int32
        )
        return Volume(labels.array.astype(smallest), labels.affine)
    volume = read_volume(path)
    if volume.array.shape[0] != organ_count or not np.isin(volume.array, (0, 1)).all():
        raise DataError(
            path,
            f"has {volume.array.shape[0]} channels, expected one label map or {organ_count} masks of 0 and 1",
            "Save one mask per organ, or a label map",
        )
    return Volume(volume.array.astype(bool), volume.affine)


def _score_pairs(
    pairs: Sequence[Pair], organs: Organs, ignore: int | None, tolerance_mm: float | Mapping[str, float], workers: int
) -> tuple[tuple[CaseRow, ...], tuple[Failure, ...]]:
    outcomes = _each_case(lambda pair: _score_pair(pair, organs, ignore, tolerance_mm), pairs, workers)
    rows = tuple(row for one in outcomes if not isinstance(one, Failure) for row in one)
    return rows, tuple(one for one in outcomes if isinstance(one, Failure))


def _score_pair(
    pair: Pair, organs: Organs, ignore: int | None, tolerance_mm: float | Mapping[str, float]
) -> list[CaseRow]:
    prediction, reference = read_pair(pair, organs)
    for path, volume, extra in ((pair.prediction, prediction, None), (pair.reference, reference, ignore)):
        _require_declared(path, volume, organs, extra)
    scores = score_case(
        _space_first(prediction),
        _space_first(reference),
        organs,
        spacing_mm=reference.spacing_mm,
        tolerance_mm=tolerance_mm,
        ignore=ignore,
    )
    return [CaseRow(pair.case, organ, score) for organ, score in scores.items()]


def _space_first(volume: Volume) -> np.ndarray:
    array: np.ndarray = volume.array if volume.array.dtype == bool else volume.array[0]
    return array


def _require_declared(path: Path, volume: Volume, organs: Organs, ignore: int | None) -> None:
    if volume.array.dtype == bool:
        return
    declared = {0, *(value for organ in organs.values() for value in values_of(organ))}
    strange = sorted(_values_in(volume) - declared - {ignore})
    if strange:
        raise DataError(
            path,
            f"holds the label value {', '.join(map(str, strange[:5]))}, which no organ declares",
            "Name the value in the labels, or remap the file",
        )


def _values_in(volume: Volume) -> set[int]:
    array = volume.array
    if array.dtype == np.uint8:
        return set(np.flatnonzero(np.bincount(array.ravel(), minlength=1)).tolist())
    return set(np.unique(array).tolist())


def _organs_seen(pairs: Sequence[Pair], ignore: int | None, workers: int) -> dict[str, int]:
    def values(pair: Pair) -> set[int]:
        return set().union(*(_values_in(read_labels(path)) for path in (pair.prediction, pair.reference)))

    seen = set().union(*(one for one in _each_case(values, pairs, workers) if not isinstance(one, Failure)))
    return {f"label {value}": value for value in sorted(seen - {0, ignore}) if value > 0}


def _each_case(work: Callable[[Pair], _Result], pairs: Sequence[Pair], workers: int) -> list[_Result | Failure]:
    """Do the same to every case; a file at fault fails its own case only."""

    def guarded(pair: Pair) -> _Result | Failure:
        try:
            return work(pair)
        except DataError as error:
            return Failure(pair.case, str(error).removesuffix("."))

    with ThreadPoolExecutor(max_workers=workers) as threads:
        return list(threads.map(guarded, pairs))


def _summary_json(evaluation: Evaluation) -> dict[str, object]:
    return {
        **evaluation.summary.as_json(),
        "tolerance_mm": evaluation.tolerance_mm,
        "failures": [{"case": failure.case, "reason": failure.reason} for failure in evaluation.failures],
        "not_predicted": evaluation.not_predicted,
        "medseg": __version__,
    }
