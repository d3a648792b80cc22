"""Which images there are to segment, and how each is read, whatever its format."""

from __future__ import annotations

import math
from pathlib import Path

from medseg.datasets.case import read_image
from medseg.datasets.layout import channel_of, images_by_name
from medseg.errors import DataError
from medseg.plan.plan import Plan
from medseg.space.formats import is_dicom, is_dicom_folder
from medseg.space.reading import ENDINGS, case_name, images_in, read_header
from medseg.space.volume import Volume

_MOST_UNLIKE = 1e5
"""Ratio of the volumes of two voxels beyond which one of them cannot be meant; a wrong unit is a factor of 1e9."""


def list_cases(source: Path, plan: Plan) -> dict[str, tuple[Path, ...]]:
    """Case name -> its image files, as `find_cases`, where no two images may share a case.

    Raises:
        DataError: As `find_cases`, or two images would be one case.
    """
    cases, doubles = find_cases(source, plan)
    if doubles:
        raise doubles[0]
    return cases


def find_cases(source: Path, plan: Plan) -> tuple[dict[str, tuple[Path, ...]], tuple[DataError, ...]]:
    """Case name -> its image files, for a folder or for the case that one file belongs to; and what is ambiguous.

    Files are told by their endings; a folder of DICOM slices is an image, whether it is the source or lies in it.
    Images that share their case name, ``a.nii`` beside ``a.nii.gz`` or ``a.mha``, would overwrite each other's
    prediction: they are left out and told.

    Raises:
        DataError: The source is missing or holds no image.
    """
    if is_dicom(source):
        raise DataError(source, "is one slice of a DICOM series", "Give the folder of its series as --input")
    if source.is_file():
        return _case_of(source, plan), ()
    if not source.is_dir():
        raise DataError(source, "does not exist", "Give an image file or a folder of images as --input")
    if is_dicom_folder(source):
        return {source.resolve().name: (source,)}, ()
    doubles = _doubles(source, plan)
    leave_out = {path for files in doubles.values() for path in files}
    cases = images_by_name(source, plan.modalities, leave_out=leave_out)
    told = [_double(second, first.name) for first, second, *_ in doubles.values()]
    if not cases and not told:
        raise DataError(
            source,
            f"holds no image ({', '.join(ENDINGS)} or a folder of DICOM slices)",
            "Give an image file or a folder of images as --input",
        )
    return cases, tuple(told)


def _case_of(file: Path, plan: Plan) -> dict[str, tuple[Path, ...]]:
    """The case that one file belongs to, with its other channels."""
    if not file.name.endswith(ENDINGS):
        return {case_name(file): (file,)}
    doubles = {path for files in _doubles(file.parent, plan).values() for path in files}
    others = images_by_name(file.parent, plan.modalities, leave_out=doubles)
    return {case: files for case, files in others.items() if file in files} or {case_name(file): (file,)}


def _double(path: Path, other: str) -> DataError:
    return DataError(path, f"has the case name of an image beside it, {other}", "Rename or move one of the two")


def _doubles(folder: Path, plan: Plan) -> dict[str, list[Path]]:
    """The files of the cases of which two could be the same channel, those two first."""
    named: dict[str, dict[int, list[Path]]] = {}
    for path in images_in(folder):
        case, channel = channel_of(path, plan.modalities)
        named.setdefault(case, {}).setdefault(channel, []).append(path)
    return {
        case: [path for paths in sorted(channels.values(), key=len, reverse=True) for path in paths]
        for case, channels in named.items()
        if any(len(paths) > 1 for paths in channels.values())
    }


def read_case_image(files: tuple[Path, ...], plan: Plan) -> Volume:
    """Read the files of one examination as one volume with a channel per modality of the plan.

    Raises:
        DataError: A file is unreadable or holds NaN, the files do not share a grid, the channels are not the plan's, or
            the voxels are so unlike the plan's that their unit must be another.
    """
    image = read_image(files, plan.modalities)
    _require_plausible(files[0], image, plan)
    return image


def _require_plausible(path: Path, image: Volume, plan: Plan) -> None:
    """Micrometres read as mm would fill any memory on the plan's grid, metres would be one voxel of it."""
    ratio = math.prod(image.spacing_mm) / math.prod(plan.spacing_mm)
    if 1 / _MOST_UNLIKE < ratio < _MOST_UNLIKE:
        return
    own, planned = (" x ".join(f"{edge:.3g}" for edge in spacing) for spacing in (image.spacing_mm, plan.spacing_mm))
    raise DataError(
        path,
        f"has voxels of {own} mm, those of the training are {planned} mm: its header must mean another unit",
        "Correct its spacing, or the unit that a NIfTI header names",
    )


def voxel_bytes(files: tuple[Path, ...]) -> int:
    """How large the image is in memory; 0 where that cannot be told before it is read."""
    try:
        headers = [read_header(path) for path in files]
    except DataError:  # said when it is read
        return 0
    return sum(4 * header.channels * math.prod(header.shape) for header in headers)
