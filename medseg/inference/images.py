"""Which images there are to segment, and how each is read, whatever its format."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path

from medseg.datasets.case import counted, read_dataset, read_image
from medseg.datasets.names import by_channel, volumes
from medseg.dicom.series import OddSeries, has_pydicom, sort_series
from medseg.errors import DataError, listed
from medseg.plan.grid import foreign_unit
from medseg.plan.plan import Plan
from medseg.space.formats import is_dicom, is_dicom_folder
from medseg.space.reading import ENDINGS, case_name, read_header
from medseg.space.volume import Volume

_log = logging.getLogger(__name__)

_MOST_UNLIKE = 1e5
"""Ratio of the volumes of two voxels beyond which one of them cannot be meant; a wrong unit is a factor of 1e9."""


Cases = dict[str, tuple[Path, ...]]
"""Case name -> its image files."""


def list_cases(source: Path, plan: Plan) -> Cases:
    """The cases of `find_cases`, where nothing is wrong with any.

    Raises:
        DataError: As `find_cases`, or the first of its failures.
    """
    cases, failures = find_cases(source, plan)
    if failures:
        raise failures[0]
    return cases


def find_cases(source: Path, plan: Plan, *, training_too: bool = False) -> tuple[Cases, tuple[DataError, ...]]:
    """The cases of a dataset, of a folder of images, or the one that an image belongs to; and why others are left out.

    Of a dataset these are its test cases. Files are told by their endings; a folder of DICOM slices is an image,
    whether it is the source or lies in it. A folder of several series, as a scanner or an archive exports them, is
    sorted by series, where the network knows one modality; localisers and the like are left out with a word. Images
    that share their case name, ``a.nii`` beside ``a.nii.gz`` or ``a.mha``, would overwrite each other's prediction:
    they are left out.

    Args:
        source: The dataset, the folder or the image.
        plan: Names the channels.
        training_too: Of a dataset, take its training cases, too.

    Raises:
        DataError: The source is missing, holds no image, or is a dataset of other modalities.
    """
    if source.suffix == ".json" or (source / "dataset.json").is_file():
        return _of_dataset(source, plan, training_too=training_too)
    if training_too:
        raise DataError(source, "is no dataset, of which all cases could be taken", "Leave --all out")
    if is_dicom(source):
        raise DataError(source, "is one slice of a DICOM series", "Give the folder of its series as --input")
    if source.is_file():
        return _case_of(source, plan), ()
    if not source.is_dir():
        raise DataError(source, "does not exist", "Give an image file or a folder of images as --input")
    if several := _several_series(source, plan):
        return several
    if is_dicom_folder(source):
        return {source.resolve().name: (source,)}, ()
    named = by_channel(volumes(source), plan.modalities)
    if not named:
        raise _no_image(source)
    doubles = {
        case: next((files for files in sorted(channels.values(), key=len) if len(files) > 1), None)
        for case, channels in named.items()
    }
    cases = {case: _in_order(channels) for case, channels in named.items() if doubles[case] is None}
    return cases, tuple(_double(files[1], files[0].name) for files in doubles.values() if files)


def _several_series(source: Path, plan: Plan) -> tuple[Cases, tuple[DataError, ...]] | None:
    """The series below a folder that holds nothing but DICOM, and what is broken; None where there is one, or none.

    A series alone in its folder is named by it, from the source on, and stands for itself by that folder; among others
    it is named by its number and description, too, and stands for itself by its first slice.
    """
    inner = [path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")]
    only_dicom = is_dicom_folder(source) or all(is_dicom_folder(path) for path in volumes(source))
    if len(plan.modalities) > 1 or not only_dicom or not (inner or is_dicom_folder(source)) or not has_pydicom():
        return None
    series, odd = sort_series(source)
    if len(series) + len(odd) < 2:
        return None
    alone = Counter([*(one.files[0].parent for one in series), *(one.folder for one in odd)])
    cases: Cases = {}
    for one in series:
        place = one.files[0].parent
        parts = [*place.relative_to(source).parts, *([one.name] if alone[place] > 1 else [])] or [source.resolve().name]
        name = "_".join(parts)
        cases[name if name not in cases else f"{name}_{one.uid}"] = (place if alone[place] == 1 else one.files[0],)
    for left_out in odd:
        if not left_out.broken:
            _log.warning("%s", left_out)
    return dict(sorted(cases.items())), tuple(_broken(one) for one in odd if one.broken)


def _broken(one: OddSeries) -> DataError:
    problem = f"has a series {one.name} that is left out: {one.reason}"
    return DataError(one.folder, problem, "Export the series again, or move it away")


def _of_dataset(source: Path, plan: Plan, *, training_too: bool) -> tuple[Cases, tuple[DataError, ...]]:
    dataset = read_dataset(source, missing_ok=True)
    if dataset.modalities != plan.modalities:
        problem = f"has images of {', '.join(dataset.modalities)}, the network knows {', '.join(plan.modalities)}"
        raise DataError(source, problem, "Give a folder of images, or a dataset with these modalities in this order")
    cases = (*dataset.cases, *dataset.test) if training_too else dataset.test
    if not cases:
        raise DataError(source, "lists no test cases", "Take its training cases with --all, or give a folder of images")
    lacking = {case.id: path for case in cases for path in case.images if not path.exists()}
    gone = tuple(DataError(path, f"is missing, the image of case {case!r}", "Add it") for case, path in lacking.items())
    return {case.id: case.images for case in cases if case.id not in lacking}, gone


def _no_image(folder: Path) -> DataError:
    """Says what the folder holds in place of images."""
    inner = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and volumes(path)]
    if not inner:
        problem = f"holds no image ({', '.join(ENDINGS)} or a folder of DICOM slices)"
        return DataError(folder, problem, "Give an image file or a folder of images as --input")
    return DataError(
        folder,
        f"holds no image itself, but {counted(len(inner), 'folder')} with images: {listed(inner)}",
        "Give the folder of each case one after the other, or a dataset, whose dataset.json says how files are called",
    )


def _in_order(channels: dict[int, list[Path]]) -> tuple[Path, ...]:
    return tuple(channels[number][0] for number in sorted(channels))


def _case_of(file: Path, plan: Plan) -> Cases:
    """The case that one file belongs to, with its other channels."""
    if file.name.endswith(ENDINGS):
        for case, channels in by_channel(volumes(file.parent), plan.modalities).items():
            if file in _in_order(channels) and all(len(files) == 1 for files in channels.values()):
                return {case: _in_order(channels)}
    return {case_name(file): (file,)}


def _double(path: Path, other: str) -> DataError:
    return DataError(path, f"has the case name of an image beside it, {other}", "Rename or move one of the two")


def read_case_image(files: tuple[Path, ...], plan: Plan) -> Volume:
    """Read the files of one examination as one volume with a channel per modality of the plan.

    Raises:
        DataError: A file is unreadable or holds NaN, the files do not share a grid, the channels are not the plan's, or
            the voxels are so unlike the plan's that their unit must be another.
    """
    image = read_image(files, plan.modalities)
    _require_plausible(files[0], image, plan)
    remark_on_units(files[0], image, plan)
    return image


def remark_on_units(name: object, image: Volume, plan: Plan) -> None:
    """Log a warning where a CT cannot be in the unit of the training; it is segmented all the same.

    Args:
        name: What to call the image.
        image: A channel per modality of the plan.
        plan: Has the range of the organs' intensities.
    """
    if told := foreign_unit(image, plan):
        _log.warning("%s %s. Look at its intensities before you trust its labels.", name, told)


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
