"""What was drawn of a case as a label map, from a file of voxels or from an object of DICOM on its series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.dicom.labels import read_object
from medseg.space.labels import LabelValue
from medseg.space.nifti import LabelFile
from medseg.space.reading import objects_of, read_label_file


@dataclass(frozen=True)
class Meaning:
    """What the numbers and the names in label files stand for.

    Attributes:
        labels: Organ -> value or values.
        ignore: The value of voxels that count for nothing.
        others: The value that undeclared ones become; None refuses them.
    """

    labels: Mapping[str, LabelValue]
    ignore: int | None = None
    others: int | None = None


def read_drawn(path: Path, image: Path | None, meaning: Meaning) -> LabelFile:
    """Read a label map and say how near to whole numbers it is.

    Args:
        path: Of voxels, or of a segmentation object or structure set.
        image: What it was drawn on.
        meaning: Names the organs of an object; values of voxels are not held against it.

    Raises:
        DataError: As `medseg.space.reading.read_label_file` or `medseg.dicom.labels.read_object`.
    """
    if objects_of(path):
        return read_object(path, image, meaning.labels, ignore=meaning.ignore, others=meaning.others)
    return read_label_file(path)
