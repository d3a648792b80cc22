"""One case: read its two files, hold their grids and values against what is expected, score it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.drawn import Meaning, agreed, read_drawn
from medseg.datasets.grids import require_same_grid
from medseg.datasets.matching import Pair
from medseg.errors import DataError
from medseg.metrics.cases import score_case
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.metrics.overlap import Organs
from medseg.metrics.table import Element
from medseg.report.rows import CaseRow
from medseg.space.labels import integer_type, looks_like_scan, value_counts
from medseg.space.reading import objects_of, read_header, read_volume
from medseg.space.volume import Volume, same_place


@dataclass(frozen=True)
class Scoring:
    """What every case of an evaluation is scored by.

    Attributes:
        organs: Organ name -> label value or values.
        ignore: Reference value of voxels that count for nothing.
        others: Reference value that undeclared ones count as, None where they are refused; in predictions they are 0.
        tolerance_mm: Tolerance of the surface Dice, one for all or by organ name.
        element: What surfaces are made of, see `medseg.metrics.cases.score_case`.
    """

    organs: Organs
    ignore: int | None = None
    tolerance_mm: float | Mapping[str, float] = DEFAULT_TOLERANCE_MM
    element: Element = "voxels"
    others: int | None = None

    @property
    def of_references(self) -> Meaning:
        """What references say."""
        return Meaning(self.organs, self.ignore, self.others)

    @property
    def of_predictions(self) -> Meaning:
        """What predictions say, of which every voxel counts."""
        return Meaning(self.organs, None, None if self.others is None else 0)


@dataclass(frozen=True)
class ScoredCase:
    """A row per organ of one case, and the digest of its reference."""

    rows: tuple[CaseRow, ...]
    reference: str


def score_pair(pair: Pair, scoring: Scoring, *, workers: int = 1) -> ScoredCase:
    """Score every organ of one case.

    Raises:
        DataError: As `read_pair`, a file holds a value that no organ declares, or `score_case` knows no way.
    """
    prediction, reference = read_pair(pair, scoring)
    prediction = _settled(pair.prediction, prediction, scoring.of_predictions)
    reference = _settled(pair.reference, reference, scoring.of_references)
    try:
        scores = score_case(
            _labels_or_masks(prediction),
            _labels_or_masks(reference),
            scoring.organs,
            spacing_mm=reference.steps_mm,
            tolerance_mm=scoring.tolerance_mm,
            element=scoring.element,
            ignore=scoring.ignore,
            workers=workers,
        )
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise DataError(pair.reference, f"cannot be scored: {problem}", remedy.capitalize() or "Mend it") from None
    return ScoredCase(
        tuple(CaseRow(pair.case, organ, score) for organ, score in scores.items()), _digest(pair.case, reference)
    )


def _digest(case: str, reference: Volume) -> str:
    """Letters that change with what is labelled and with the size of a voxel, not with how a file is packed."""
    grid = (case, reference.shape, reference.array.dtype.str, [round(edge, 3) for edge in reference.spacing_mm])
    digest = hashlib.sha256(repr(grid).encode())
    digest.update(np.ascontiguousarray(reference.array).data)
    return digest.hexdigest()[:16]


def read_pair(pair: Pair, scoring: Scoring) -> tuple[Volume, Volume]:
    """Read prediction and reference of a case and hold their grids against each other.

    Raises:
        DataError: A file cannot be read, or shape, affine or channels do not fit.
    """
    prediction = _read(pair.prediction, pair.image, scoring.of_predictions)
    meaning = pair.meaning or scoring.of_references
    reference, *others = (_read(path, pair.image, meaning) for path in (pair.reference, *pair.raters))
    for path, other in zip(pair.raters, others, strict=True):
        require_same_grid(path, other, pair.reference, reference)
    if others or pair.meaning:
        paths = (pair.reference, *pair.raters)
        maps = [_settled(path, one, meaning) for path, one in zip(paths, (reference, *others), strict=True)]
        reference = agreed(maps, scoring.ignore)
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


def values_seen(pair: Pair) -> set[int]:
    """Collect the label values of both files of a case.

    Raises:
        DataError: A file cannot be read or is no label map.
    """
    seen: set[int] = set()
    for path in (pair.prediction, pair.reference):
        labels = read_drawn(path, pair.image, Meaning({})).require_labels().array[0]
        counts = value_counts(labels)
        if looks_like_scan(labels, counts):
            problem = f"holds {len(counts)} different values as noise has them: a scan, not a label map"
            raise DataError(path, problem, "Give the folder of the label maps")
        seen |= set(counts)
    return seen


def _read(path: Path, image: Path | None, meaning: Meaning) -> Volume:
    if path.is_dir() or objects_of(path) or read_header(path).channels == 1:
        labels = read_drawn(path, image, meaning).require_labels()
        return Volume(labels.array.astype(integer_type(labels.array)), labels.affine)
    organ_count = len(meaning.labels)
    volume = read_volume(path)
    if volume.array.shape[0] != organ_count or not ((volume.array == 0) | (volume.array == 1)).all():
        raise DataError(
            path,
            f"has {volume.array.shape[0]} channels, expected one label map or {organ_count} masks of 0 and 1",
            "Save one mask per organ, or a label map",
        )
    return Volume(volume.array.astype(bool), volume.affine)


def _labels_or_masks(volume: Volume) -> NDArray[Any]:
    array: NDArray[Any] = volume.array if volume.array.dtype == bool else volume.array[0]
    return array


def _settled(path: Path, volume: Volume, meaning: Meaning) -> Volume:
    """Label values as they are meant; masks mean what they mean.

    Raises:
        DataError: There are some of which nothing is said.
    """
    if volume.array.dtype == bool:
        return volume
    if problem := meaning.numbering.strangers(volume.array[0]):
        raise DataError(path, problem, "Name the value in the labels, or remap the file")
    labels = meaning.numbering.settled(volume.array)
    return Volume(labels.astype(integer_type(labels)) if labels is not volume.array else labels, volume.affine)
