"""Which images there are to segment, and how each is read, whatever its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.datasets.case import read_image, require_same_grid
from medseg.datasets.layout import images_by_name
from medseg.errors import DataError
from medseg.plan.plan import Plan
from medseg.space.formats import FOREIGN_ENDINGS, is_dicom_folder, is_foreign, read_foreign
from medseg.space.nifti import NIFTI_ENDINGS, case_name, read_header, require_finite
from medseg.space.volume import Volume

ENDINGS = (*NIFTI_ENDINGS, *FOREIGN_ENDINGS)


def list_cases(source: Path, plan: Plan) -> dict[str, tuple[Path, ...]]:
    """Case name -> its image files, for a folder or for the case that one file belongs to.

    NIfTI, NRRD and MetaImage files are told by their endings; a folder of DICOM slices is a case of its own, whether it
    is the source or lies in it.

    Raises:
        DataError: The source is missing or holds no image, or two of its files are one case.
    """
    if source.is_file():
        if not source.name.endswith(ENDINGS):
            return {case_name(source): (source,)}
        beside = images_by_name(source.parent, plan.modalities, endings=ENDINGS)
        return {case: files for case, files in beside.items() if source in files} or {case_name(source): (source,)}
    if not source.is_dir():
        raise DataError(source, "does not exist", "Give an image file or a folder of images as --input")
    if is_dicom_folder(source):
        return {source.resolve().name: (source,)}
    cases = images_by_name(source, plan.modalities, endings=ENDINGS)
    _require_distinct(source, cases)
    for folder in sorted(path for path in source.iterdir() if is_dicom_folder(path)):
        if folder.name in cases:
            raise DataError(folder, "has the case name of an image beside it", "Rename or move one of the two")
        cases[folder.name] = (folder,)
    if not cases:
        raise DataError(
            source,
            f"holds no image ({', '.join(ENDINGS)} or a folder of DICOM slices)",
            "Give an image file or a folder of images as --input",
        )
    return cases


def read_case_image(files: tuple[Path, ...], plan: Plan) -> Volume:
    """Read the files of one examination as one volume with a channel per modality of the plan.

    Raises:
        DataError: A file is unreadable or holds NaN, the files do not share a grid, or the channels are not the plan's.
    """
    if not any(is_foreign(path) for path in files):
        return read_image(files, plan.modalities)
    volumes = [_read(path, plan) for path in files]
    for path, volume in zip(files[1:], volumes[1:], strict=True):
        require_same_grid(path, volume, files[0], volumes[0])
    image = Volume(np.concatenate([volume.array for volume in volumes]), volumes[0].affine)
    if len(image.array) != len(plan.modalities):
        raise DataError(
            files[0],
            f"has {len(image.array)} channels, expected {len(plan.modalities)} ({', '.join(plan.modalities)})",
            "Give one file per modality, or one that holds them all in this order",
        )
    return image


def voxel_bytes(files: tuple[Path, ...]) -> int:
    """About how large the image is in memory; 0 where that cannot be told before it is read."""
    total = 0
    for path in files:
        if is_foreign(path):
            parts = path.iterdir() if path.is_dir() else (path,)
            total += 2 * sum(part.stat().st_size for part in parts)  # int16 that becomes float32
            continue
        try:
            header = read_header(path)
        except DataError:  # said when it is read
            continue
        total += 4 * header.channels * int(np.prod(header.shape))
    return total


def _read(path: Path, plan: Plan) -> Volume:
    if not is_foreign(path):
        return read_image((path,), plan.modalities[:1])
    volume = read_foreign(path)
    require_finite(path, volume)
    return volume


def _require_distinct(folder: Path, cases: dict[str, tuple[Path, ...]]) -> None:
    """Two files of one name and different endings would overwrite each other's prediction."""
    taken = {path for files in cases.values() for path in files}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(ENDINGS) and not path.name.startswith(".") and path.is_file() and path not in taken:
            raise DataError(path, "has the case name of another image beside it", "Rename or move one of the two")
