"""What was drawn of a case as a label map, from files of voxels or objects on their series, by one or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.dicom.labels import read_object
from medseg.space.labels import IGNORED, LabelValue
from medseg.space.nifti import LabelFile
from medseg.space.reading import objects_of, read_label_file
from medseg.space.volume import Volume


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


def agreed(maps: Sequence[Volume], ignore: int | None) -> Volume:
    """The value that most raters gave a voxel; what counts for nothing where two values share the first place.

    A voxel that a rater ignores has no vote of that rater.

    Args:
        maps: Of one grid, a rater each.
        ignore: The value of voxels that count for nothing; None takes `IGNORED`.

    Example:
        >>> one, two, three = (Volume(np.array([[[row]]]), np.eye(4)) for row in ([1, 1, 0], [1, 2, 5], [0, 3, 5]))
        >>> agreed([one, two, three], None).array.tolist()
        [[[[1, -1, 5]]]]
    """
    if len(maps) == 1:
        return maps[0]
    ignore = IGNORED if ignore is None else ignore
    best, votes = np.full(maps[0].array.shape, ignore, dtype=np.int64), np.zeros(maps[0].array.shape, dtype=np.uint8)
    for one in maps:
        own = np.sum([one.array == other.array for other in maps], axis=0, dtype=np.uint8) * (one.array != ignore)
        best = np.where(own > votes, one.array, np.where((own == votes) & (one.array != best), ignore, best))
        votes = np.maximum(votes, own)
    return Volume(best, maps[0].affine)
