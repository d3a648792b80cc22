"""Masks with names as label maps: each voxel gets the value of the organs it is drawn in."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from medseg.errors import DataError, listed, meant
from medseg.space.labels import LabelValue, Painting, integer_type, paint_order, values_of
from medseg.space.nifti import LabelFile
from medseg.space.volume import Affine, Shape, Volume

Segments = Sequence[tuple[str, Callable[[], Bool[np.ndarray, "i j k"]]]]
"""Names of masks and what reads each, for all masks of a hundred organs are more than memory holds."""

_NAME = 64  # letters of a segment's name that DICOM keeps


class Painter:
    """Turns masks with names into values, one mask at a time.

    Segments are organs by their names; capitals count only where two organs differ in nothing else. A segment called
    ``ignore`` marks what counts for nothing. Voxels of several organs get the value that all of them share.

    Args:
        file: Where they were drawn, for messages.
        labels: Organ -> value or values.
        ignore: The value of voxels that count for nothing.
        others: The value that other segments become, where no organ is; None refuses them.
    """

    def __init__(self, file: Path, labels: Mapping[str, LabelValue], ignore: int | None, others: int | None) -> None:
        self.file, self.organs, self.ignore, self.others = file, list(labels), ignore, others
        regions = tuple(values_of(value) for value in labels.values())
        self.known = {(): 0} | Painting(regions, paint_order(regions)).sets
        alike = Counter(_spelt(organ).casefold() for organ in labels)
        self.names = {name: organ for organ in labels if alike[name := _spelt(organ).casefold()] == 1}
        self.names |= {_spelt(organ): organ for organ in labels}

    def paint(self, segments: Segments, shape: Shape, affine: Affine) -> LabelFile:
        """The label map ``(1, i, j, k)``, and the organs that have no segment.

        Raises:
            DataError: There is a segment that is no organ, or voxels of several organs that no value stands for.
        """
        sets: list[tuple[int, ...]] = [()]  # of organs by number; a voxel holds the place of its set in this list
        places = np.zeros(shape, dtype=np.int32)
        ignored, strange, drawn = np.zeros((2, *shape), dtype=bool), [], set()
        for name, read in segments:
            organ = self._organ(name)
            if organ is not None:
                drawn.add(organ)
                _join(places, sets, self.organs.index(organ), read())
            elif name.strip().casefold() == "ignore" and self.ignore is not None:
                ignored[0] |= read()
            elif self.others is None:
                strange.append(name)
            elif self.others != 0:
                ignored[1] |= read()
        self._require_organs(strange)
        values = np.array([self.known.get(members, 0) for members in sets])[places]
        self._require_values(places, sets)
        if self.others:
            values[ignored[1] & (values == 0)] = self.others
        if self.ignore is not None:
            values[ignored[0]] = self.ignore
        array = values.astype(integer_type(values))[None]
        lacks = tuple(organ for organ in self.organs if organ not in drawn)
        return LabelFile(self.file, Volume(array, affine), array.dtype.name, 0.0, exact=True, lacks=lacks)

    def _organ(self, segment: str) -> str | None:
        name = _spelt(segment)
        return self.names.get(name) or self.names.get(name.casefold())

    def _require_organs(self, strange: list[str]) -> None:
        if strange:
            problem = f"has {'a segment' if len(strange) == 1 else 'segments'} that no label names: {listed(strange)}"
            remedy = (
                'Name them under "labels" in dataset.json, or say what becomes of all others: "others": "background"'
            )
            raise DataError(self.file, problem + meant(strange[0], self.organs), remedy)

    def _require_values(self, places: NDArray[np.int32], sets: list[tuple[int, ...]]) -> None:
        counts = np.bincount(places.ravel(), minlength=len(sets))
        for members, voxels in zip(sets, counts.tolist(), strict=True):
            if voxels and members not in self.known:
                names = " and ".join(self.organs[index] for index in members)
                names += " at once" if len(members) > 1 else " and nothing else"
                problem = f"has {voxels} voxels that are {names}, for which no label has a value"
                remedy = 'Declare what overlaps as regions that share a value, such as "liver": [1, 2], "tumour": [2]'
                raise DataError(self.file, problem, remedy)


def _join(places: NDArray[np.int32], sets: list[tuple[int, ...]], organ: int, mask: NDArray[np.bool_]) -> None:
    """Add an organ to the set of each of its voxels."""
    inside = places[mask]
    table = np.arange(len(sets), dtype=np.int32)
    for place in np.unique(inside).tolist():
        members = tuple(sorted({*sets[place], organ}))
        if members not in sets:
            sets.append(members)
        table[place] = sets.index(members)
    places[mask] = table[inside]


def _spelt(name: str) -> str:
    """A name as an object can hold it, in the form in which names are compared."""
    return unicodedata.normalize("NFC", name)[:_NAME].strip()
