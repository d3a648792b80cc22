"""Segmentation objects and structure sets as label maps: each voxel gets the value of the organs it is drawn in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medseg.dicom.segmentation import read_segmentation
from medseg.dicom.series import series_of
from medseg.dicom.structures import read_structures
from medseg.errors import DataError, listed
from medseg.space.formats import STRUCTURES, storage_class
from medseg.space.labels import LabelValue
from medseg.space.nifti import LabelFile
from medseg.space.painter import Painter
from medseg.space.reading import is_series, objects_of


def read_object(
    path: Path, image: Path | None, labels: Mapping[str, LabelValue], *, ignore: int | None, others: int | None
) -> LabelFile:
    """Read what was drawn on a series as a label map on its grid.

    Its segments become values as `medseg.space.painter.Painter` says.

    Args:
        path: The object, or the folder of it alone or among slices.
        image: The series that it was drawn on: its folder, or one of its slices.
        labels: Organ -> value or values.
        ignore: The value of voxels that count for nothing.
        others: The value that other segments become, where no organ is; None refuses them.

    Raises:
        DataError: The image is no series, or not that of the object; or it has a segment that is no organ, or voxels of
            several organs that no value stands for.
        UsageError: The libraries are not installed.
    """
    file, *more = objects_of(path)
    if more:
        told = listed(one.name for one in (file, *more))
        raise DataError(
            path, f"holds {len(more) + 1} segmentation objects: {told}", "Name the file of one as the label"
        )
    if image is None or not is_series(image):
        there = "no dataset says which" if image is None else f"{image} is none"
        raise DataError(file, f"was drawn on a DICOM series, and {there}", "Name the folder of its series as its image")
    series = series_of(image)
    read = read_structures if storage_class(file) == STRUCTURES else read_segmentation
    return Painter(file, labels, ignore, others).paint(read(file, series), series.shape, series.affine)
