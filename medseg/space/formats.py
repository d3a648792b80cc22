"""NRRD, MetaImage and folders of DICOM slices, read and written with SimpleITK where it is installed."""

from __future__ import annotations

import io
import locale
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.nifti import Header
from medseg.space.volume import Affine, Volume, spacing_of

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_POSITION = "0020|0032"  # DICOM's Image Position (Patient)
_TURN = "0020|0037"  # Image Orientation (Patient)
_UNEVEN = 0.02  # share by which the gaps between slices may differ; scanners round positions

STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # masks, and a map of labels


def is_dicom_folder(path: Path) -> bool:
    """Whether a folder holds DICOM files, told by their content, for they often have no ending."""
    return path.is_dir() and any(map(is_dicom, path.iterdir()))


def objects_in(path: Path) -> list[Path]:
    """The segmentation objects and structure sets of a folder, or the file itself if it is one; sorted."""
    return sorted(filter(is_object, path.iterdir() if path.is_dir() else [path]))


def itk_header(path: Path) -> Header:
    """What a file, or the first slices of a series, say before the voxels are read.

    Raises:
        DataError: As `read_itk`.
    """
    sitk = _simple_itk(path)
    with _explained(path):
        reader = sitk.ImageFileReader()
        slices = _slices(sitk, path) if path.is_dir() or is_dicom(path) else (str(path),)
        reader.SetFileName(slices[0])
        reader.ReadImageInformation()
        shape, channels = [*reader.GetSize(), 1][:3], reader.GetNumberOfComponents()
        affine = _affine_of(path, reader)
        if len(slices) > 1:
            shape[2], first = len(slices), np.array(reader.GetOrigin())
            reader.SetFileName(slices[-1])
            reader.ReadImageInformation()
            affine[:3, 2] = (np.array(reader.GetOrigin()) - first) * (-1, -1, 1) / (len(slices) - 1)
        elif reader.GetDimension() == 4:
            channels = reader.GetSize()[3]
    return Header((shape[0], shape[1], shape[2]), channels, affine)


def read_itk(path: Path) -> Volume:
    """Read an image in its own type, channels first, in the RAS+ millimetres of NIfTI.

    Args:
        path: A ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file, the folder of one DICOM series, or a slice of a series
            that shares its folder. A file of two axes is one slice, 1 mm thick.

    Raises:
        DataError: SimpleITK is not installed, the file is unreadable, the folder holds several series or lacks slices.
    """
    sitk = _simple_itk(path)
    if not path.is_dir() and not is_dicom(path):
        itk_header(path)  # says of a grid that cannot be what ITK does not
    with _explained(path):
        series = path.is_dir() or is_dicom(path)
        image = _read_series(sitk, path) if series else sitk.ReadImage(str(path), sitk.sitkUnknown)
        return Volume(_channels_first(path, sitk.GetArrayFromImage(image), image), _affine_of(path, image))


def write_itk(path: Path, labels: NDArray[Any], affine: Affine) -> None:
    """Write integer labels ``(i, j, k)`` on a grid without shear as the format that the ending names, whole or not."""
    sitk = _simple_itk(path)
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels.T))
    to_lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(to_lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(to_lps[:, 3].tolist())
    with whole(path) as partial:
        sitk.WriteImage(image, str(partial), useCompression=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What ITK stumbles over becomes a sentence; GDCM leaves the whole process in ASCII, which is undone."""
    encoding = locale.setlocale(locale.LC_CTYPE)
    try:
        yield
    except RuntimeError as error:
        uneven = any(words in str(error) for words in ("Size mismatch", "does not fully contain the requested region"))
        reason = "its slices differ in size" if uneven else str(error).strip().splitlines()[-1]
        raise DataError(path, f"is not a readable image ({reason})", "Export it again, or as .nii.gz") from None
    finally:
        locale.setlocale(locale.LC_CTYPE, encoding)


def _simple_itk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise DataError(
            path, "is not NIfTI, and what reads it is not installed", "pip install 'medseg[formats]', or convert it"
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters of it we say ourselves
    return SimpleITK


def _slices(sitk: Any, path: Path) -> tuple[str, ...]:
    """The files of the one series in a folder, or of that which a slice belongs to, in the order of their places."""
    folder, find = path if path.is_dir() else path.parent, sitk.ImageSeriesReader
    files = [find.GetGDCMSeriesFileNames(str(folder), uid) for uid in find.GetGDCMSeriesIDs(str(folder))]
    series: list[tuple[str, ...]] = [
        names for names in files if (path.is_dir() or str(path) in names) and not is_object(Path(names[0]))
    ]
    if not series and objects_in(path):
        raise DataError(objects_in(path)[0], "is a segmentation and no image", "Name it as the label of its series")
    if len(series) != 1:
        raise DataError(
            folder, f"holds {len(series) or 'no'} DICOM series, expected one", "Give each series a folder of its own"
        )
    return series[0]


def _read_series(sitk: Any, folder: Path) -> Any:
    reader, files = sitk.ImageSeriesReader(), _slices(sitk, folder)
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if image.GetSize()[2] != len(files):
        problem = f"is multi-frame DICOM, {image.GetSize()[2]} slices in {len(files)} file{'s' * (len(files) > 1)}"
        raise DataError(folder, problem, "Convert it to one file per slice, or to .nii.gz")
    if len({reader.GetMetaData(n, _TURN) for n in range(image.GetSize()[2]) if reader.HasMetaDataKey(n, _TURN)}) > 1:
        raise DataError(folder, "holds slices of several directions, such as a localiser's", "Keep those of the series")
    _require_even_slices(folder, reader, image)
    return image


def _require_even_slices(folder: Path, reader: Any, image: Any) -> None:
    """A missing slice would shift everything beyond it without a word."""
    count = image.GetSize()[2]
    if count < 3 or not all(reader.HasMetaDataKey(index, _POSITION) for index in range(count)):
        return
    positions = [[float(x) for x in reader.GetMetaData(index, _POSITION).split("\\")] for index in range(count)]
    gaps = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1)
    if not even(gaps):
        raise DataError(
            folder,
            f"has gaps of {gaps.min():.4g} to {gaps.max():.4g} mm between its slices: some are missing or doubled",
            "Export the whole series again",
        )


def _affine_of(path: Path, image: Any) -> Affine:
    """From the LPS+ millimetres of DICOM and ITK to the RAS+ of NIfTI: x and y change sign."""
    axes = image.GetDimension()
    known = min(axes, 3)
    direction = np.array(image.GetDirection()).reshape(axes, axes)[:known, :known]
    affine = np.eye(4)
    affine[:known, :known] = direction * np.array(image.GetSpacing()[:known])
    affine[:known, 3] = image.GetOrigin()[:known]
    affine[:2] *= -1
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(spacing_of(affine)):
        raise DataError(path, "has a singular affine: its voxels have no volume", "Repair its spacing and directions")
    return affine


def _channels_first(path: Path, voxels: NDArray[Any], image: Any) -> NDArray[Any]:
    axes, vectors = image.GetDimension(), image.GetNumberOfComponentsPerPixel() > 1
    if axes not in (2, 3, 4) or (axes == 4 and vectors):
        raise DataError(path, f"has {axes} axes, expected three or four", "Export a 3D volume")
    if axes < 4:
        voxels = np.moveaxis(voxels, -1, 0) if vectors else voxels[None]
    if axes == 2:
        voxels = voxels[:, None]
    return np.ascontiguousarray(voxels.transpose(0, 3, 2, 1))  # ITK's arrays are (k, j, i)


def even(gaps: NDArray[np.floating[Any]]) -> bool:
    """Whether slices follow each other at one distance; scanners round positions."""
    return bool(np.ptp(gaps) <= _UNEVEN * np.median(gaps))


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM, told by its content; what cannot be read is none."""
    return storage_class(file) is not None


def is_object(file: Path) -> bool:
    """Whether a file is a segmentation object or a structure set, which lie on a series and are none."""
    return storage_class(file) in (STRUCTURES, *SEGMENTATIONS)


def storage_class(file: Path) -> str | None:
    """What kind of DICOM a file holds, as the UID at its head says: "" where it says none, None if it is no DICOM."""
    try:
        with file.open("rb") if file.is_file() else io.BytesIO() as content:  # a pipe would be waited for
            head = content.read(1024)
    except OSError:
        return None
    if head[128:132] != b"DICM":
        return None
    place = head.find(b"\x02\0\x02\0UI", 132) + 8  # Media Storage SOP Class UID: the head is little endian always
    length = int.from_bytes(head[place - 2 : place], "little")
    return head[place : place + length].decode("ascii", "replace").rstrip(" \0") if place > 8 else ""
