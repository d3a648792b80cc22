"""Predictions as the clinic's objects, which refer to the series that they segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.organs import Organ
from medseg.dicom.segmentation import Algorithm, headers_of, write_segmentation
from medseg.dicom.series import Series, series_of
from medseg.dicom.structures import write_structures
from medseg.errors import DataError, UsageError
from medseg.pictures.panels import colour
from medseg.plan.plan import Plan
from medseg.space.labels import values_of
from medseg.space.reading import is_series

FORMS = {"dicom-seg": write_segmentation, "rtstruct": write_structures}
"""Kinds of objects that a prediction can be written as."""

OBJECT_ENDINGS = {"dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}


def require_series(cases: Mapping[str, tuple[Path, ...]], form: str) -> None:
    """Refuse to write an object for an image that is no series.

    Raises:
        UsageError: Naming the image.
    """
    for images in cases.values():
        if not is_series(images[0]):
            problem = f"--format {form} refers to a DICOM series, and {images[0]} is none"
            raise UsageError(problem, "Give the folder of a series as --input, or leave --format out")


def write_object(form: str, target: Path, labels: NDArray[Any], image: Path, plan: Plan, version: str) -> None:
    """Write label values as an object that refers to the series that they were predicted from.

    Args:
        form: Of `FORMS`.
        target: Ends in what `OBJECT_ENDINGS` says.
        labels: ``(i, j, k)``, on the grid of the series: column, row, slice.
        image: What the series is read from.
        plan: Names the organs and their values.
        version: What tells the network from others.

    Raises:
        UsageError: highdicom is not installed.
        DataError: The series lacks what an object must refer to.
    """
    series = series_of(image)
    _require_reference(image, series)
    organs = [Organ(name, colour(number)) for number, name in enumerate(plan.organs, start=1)]
    algorithm = Algorithm(f"medseg {plan.name}"[:64], version[:64])
    FORMS[form](target, _ByOrgan(labels, plan), organs, series, algorithm, like=headers_of(series))


class _ByOrgan(Mapping[str, NDArray[np.bool_]]):
    """A mask of each organ, made when it is asked for: a hundred of them are more than most memories hold."""

    def __init__(self, labels: NDArray[Any], plan: Plan) -> None:
        self.labels, self.plan = labels, plan

    def __getitem__(self, organ: str) -> NDArray[np.bool_]:
        return np.isin(self.labels, values_of(self.plan.labels[organ]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.labels)

    def __len__(self) -> int:
        return len(self.plan.labels)


def _require_reference(image: Path, series: Series) -> None:
    if not series.frame_of_reference:
        problem = f"has no frame of reference in series {series.name}, to which an object could refer"
        raise DataError(image, problem, "Leave --format out to get label files")
