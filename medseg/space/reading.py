"""The one door for images and label maps, whatever their format: NIfTI, NRRD, MetaImage, DICOM, and flat pictures."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.space import nifti
from medseg.space.flat import FLAT_ENDINGS, flat_header, read_flat, read_flat_labels
from medseg.space.formats import ITK_ENDINGS, is_dicom, is_dicom_folder, is_object, itk_header, objects_in, read_itk
from medseg.space.labels import whole_numbers
from medseg.space.nifti import NIFTI_ENDINGS, Header, LabelFile
from medseg.space.volume import Volume

ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS, *FLAT_ENDINGS)
"""Of the files that hold an image; a DICOM series is a folder, told by its content."""

_DETACHED = (".mhd", ".nhdr")  # headers that name the files of their voxels
_OF_OBJECTS = (".seg.dcm", ".rtstruct.dcm", ".dcm")


def case_name(path: Path) -> str:
    """The name of a file without the ending of its format, in Unicode's composed form, in which names are compared.

    Example:
        >>> case_name(Path("imagesTr/spleen_2.nii.gz")), case_name(Path("x/anna.seg.dcm")), case_name(Path("a.2019"))
        ('spleen_2', 'anna', 'a.2019')
    """
    ending = next((ending for ending in (*ENDINGS, *_OF_OBJECTS) if path.name.endswith(ending)), "")
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(ending)])


def is_there(path: Path) -> bool:
    """Whether there is a file, or a folder of DICOM slices."""
    return path.is_file() or is_dicom_folder(path)


def masks_of(path: Path) -> list[Path]:
    """The masks that a folder holds, one file per organ and called by it; none of what is no folder, or holds DICOM."""
    return [] if not path.is_dir() or is_dicom_folder(path) else [mask for mask in images_in(path) if mask.is_file()]


def is_drawn(path: Path) -> bool:
    """Whether there is what a label may be: a file, a folder of DICOM, a folder with a mask per organ."""
    return is_there(path) or bool(masks_of(path))


def is_image(path: Path) -> bool:
    """Whether there is what is called as an image, or holds DICOM."""
    return is_there(path) if path.name.endswith(ENDINGS) else is_dicom(path) or is_dicom_folder(path)


def images_in(folder: Path, *, objects: bool = False) -> list[Path]:
    """The images of a folder, sorted: what is hidden is somebody's own, and pictures beside volumes illustrate them.

    Args:
        folder: Where they lie.
        objects: Also name segmentation objects and structure sets, which are label maps and no images.

    Raises:
        DataError: There is no such folder, or one has capitals in its ending.
    """
    if not folder.is_dir():
        raise DataError(folder, "is no folder", "Check its path")
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in visible if path.name.lower().endswith(ENDINGS) or is_dicom_folder(path)]
    found = [path for path in found if not path.name.lower().endswith(FLAT_ENDINGS)] or found
    shouted = [path for path in found if not path.name.endswith(ENDINGS) and path.is_file()]
    if shouted:
        raise DataError(shouted[0], "has capitals in its ending, which not every program reads", "Write it small")
    return sorted(found + [path for path in set(visible) - set(found) if is_object(path)]) if objects else found


def is_nifti(path: Path) -> bool:
    """Whether a path is read as NIfTI: what has no other ending of ours, and is or holds no DICOM."""
    called = path.name.endswith(ENDINGS)  # a folder that is called as a file stands in the place of one
    other = path.name.endswith((*ITK_ENDINGS, *FLAT_ENDINGS)) or (path.is_dir() and not called)
    return not other and not (is_series(path) or objects_of(path))


def is_series(path: Path) -> bool:
    """Whether a path stands for a series of DICOM slices: their folder, or one of them."""
    files = path.iterdir() if path.is_dir() else [] if path.name.endswith(ENDINGS) else [path]
    return any(is_dicom(file) and not is_object(file) for file in files)


def objects_of(path: Path) -> list[Path]:
    """The segmentation objects or structure sets that a path stands for, among slices or alone; mostly none."""
    return [] if path.name.endswith(ENDINGS) else objects_in(path)


def is_flat(path: Path) -> bool:
    """Whether a path is a picture of two dimensions, which does not say how large its pixels are."""
    return path.name.endswith(FLAT_ENDINGS)


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files that make up an image: itself, the slices of a series, a header and the data that it names."""
    if path.is_file() and objects_of(path):
        return (path,)
    if is_series(path) or path.is_dir():
        path = path if path.is_dir() else path.parent
        return tuple(sorted(part for part in path.iterdir() if part.is_file() and not part.name.startswith(".")))
    if not path.name.endswith(_DETACHED) or not path.is_file():
        return (path,)
    lines = path.read_text(encoding="latin-1").splitlines()
    named = (re.split(r"[=:]\s*", line)[-1].strip() for line in lines)
    return (path, *(path.parent / name for name in named if 0 < len(name) < 200 and (path.parent / name).is_file()))


def read_header(path: Path) -> Header:
    """Shape, channels and affine of an image, without its voxels.

    Raises:
        DataError: As `read_volume`.
    """
    if is_flat(path):
        return flat_header(path)
    return nifti.read_header(path) if is_nifti(path) else itk_header(path)


def read_volume(path: str | Path) -> Volume:
    """Read an image as float32, channels first, in RAS+ millimetres.

    Args:
        path: A NIfTI, NRRD, MetaImage, PNG, TIFF, JPEG or BMP file, or the folder of a DICOM series. A flat picture is
            one slice, with pixels of 1 mm.

    Raises:
        DataError: It is missing, unreadable or not of three spatial axes; or needs SimpleITK, which is not installed.
    """
    path = Path(path)
    if is_nifti(path):
        return nifti.read_volume(path)
    if is_flat(path):
        return read_flat(path)
    volume = read_itk(path)
    return Volume(volume.array.astype(np.float32), volume.affine)


def read_labels(path: Path) -> Volume:
    """Read a label map, whole numbers in one channel.

    Raises:
        DataError: As `read_volume`, or the file has several channels or values that are no labels.
    """
    return read_label_file(path).require_labels()


def read_label_file(path: Path) -> LabelFile:
    """Read a label map and say how near to whole numbers it is.

    Raises:
        DataError: As `read_volume`, or the file has several channels or values that no integer of 64 bits holds.
    """
    if is_nifti(path):
        return nifti.read_label_file(path)
    volume = read_flat_labels(path) if is_flat(path) else read_itk(path)
    if len(volume.array) != 1:
        problem = f"has {len(volume.array)} channels, expected a label volume with one"
        raise DataError(path, problem, "Merge them into one map")
    try:
        found = whole_numbers(volume.array)
    except ValueError as error:
        raise DataError(path, f"holds {error}, too large for labels", "Renumber it") from None
    return LabelFile(path, Volume(found.array, volume.affine), volume.array.dtype.name, found.gap, found.exact)
