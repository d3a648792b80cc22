"""What was drawn of a case as a label map, from files of voxels or objects on their series, by one or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets.masks import read_masks
from medseg.dicom.labels import read_object
from medseg.machine.typed import fields_of
from medseg.space.labels import IGNORED, LabelValue, Numbering, values_of
from medseg.space.nifti import LabelFile
from medseg.space.reading import masks_of, objects_of, read_label_file
from medseg.space.volume import Volume


@dataclass(frozen=True)
class Meaning:
    """What the numbers and the names in label files stand for.

    Attributes:
        labels: Organ -> value or values.
        ignore: The value of voxels that count for nothing.
        others: The value that undeclared ones become; None refuses them.
        becomes: Value -> what takes its place in the dataset that this one was merged into; None where there is none.
    """

    labels: Mapping[str, LabelValue]
    ignore: int | None = None
    others: int | None = None
    becomes: Mapping[int, int] | None = None

    @cached_property
    def numbering(self) -> Numbering:
        """What becomes of the values of a file."""
        organs = {value for organ in self.labels.values() for value in values_of(organ)}
        declared = {0} | organs | ({self.ignore} if self.ignore is not None else set())
        if self.becomes is None:
            return Numbering.keeping(declared, self.others)
        others = None if self.others is None else self.becomes.get(self.others, 0)
        return Numbering({value: self.becomes.get(value, 0) for value in declared}, others)

    def merged(self, becomes: Mapping[int, int]) -> Meaning:
        """What a file says once what it said before becomes something else again."""
        before = self.numbering.table
        return replace(self, becomes={value: becomes.get(target, 0) for value, target in before.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        labels = {organ: list(value) if isinstance(value, tuple) else value for organ, value in self.labels.items()}
        told = {"labels": labels, "ignore": self.ignore, "others": self.others}
        table = None if self.becomes is None else {str(v): target for v, target in self.becomes.items() if target}
        return {key: value for key, value in {**told, "becomes": table}.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Meaning:
        """Rebuild from plain data.

        Raises:
            ValueError: It is none.
            KeyError, TypeError, AttributeError: Nor anything like it.
        """
        table = {int(value): target for value, target in data["becomes"].items()} if data.get("becomes") else None
        return cls(**fields_of(cls, {**data, "becomes": table}, "the meaning of labels"))


def read_drawn(path: Path, image: Path | None, meaning: Meaning) -> LabelFile:
    """Read a label map and say how near to whole numbers it is.

    Args:
        path: Of voxels, or of a segmentation object or structure set; or a folder with a mask per organ.
        image: What it was drawn on.
        meaning: Names the organs of an object or of masks; values of voxels are not held against it.

    Raises:
        DataError: As `medseg.space.reading.read_label_file`, `medseg.dicom.labels.read_object` or `read_masks`.
    """
    if masks := masks_of(path):
        return read_masks(masks, meaning.labels, ignore=meaning.ignore, others=meaning.others)
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
