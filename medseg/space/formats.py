"""Images that are not NIfTI: NRRD, MetaImage and folders of DICOM slices, read with SimpleITK where it is installed."""

from __future__ import annotations

import locale
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.labels import integer_type
from medseg.space.volume import Affine, Volume

FOREIGN_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_POSITION = "0020|0032"  # DICOM's Image Position (Patient)
_TURN = "0020|0037"  # Image Orientation (Patient)
_UNEVEN = 0.02  # share by which the gaps between slices may differ; scanners round positions


def is_foreign(path: Path) -> bool:
    """Whether a path is for `read_foreign` rather than for `medseg.space.nifti.read_volume`.

    Example:
        >>> is_foreign(Path("ct.nrrd")), is_foreign(Path("ct.nii.gz"))
        (True, False)
    """
    return path.name.endswith(FOREIGN_ENDINGS) or is_dicom_folder(path)


def is_dicom_folder(path: Path) -> bool:
    """Whether a folder holds DICOM files, told by their content, for they often have no ending."""
    return path.is_dir() and any(is_dicom(file) for file in sorted(path.iterdir()) if file.is_file())


def read_foreign(path: Path) -> Volume:
    """Read an image that is not NIfTI as float32, channels first, in the RAS+ millimetres of NIfTI.

    Args:
        path: A ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file, or the folder of one DICOM series.

    Raises:
        DataError: SimpleITK is not installed, the file is unreadable, the folder holds several series or lacks slices.
    """
    sitk = _simple_itk(path)
    encoding = locale.setlocale(locale.LC_CTYPE)
    try:
        image = _read_series(sitk, path) if path.is_dir() else sitk.ReadImage(str(path), sitk.sitkUnknown)
        voxels = sitk.GetArrayFromImage(image)
    except RuntimeError as error:
        uneven = any(words in str(error) for words in ("Size mismatch", "does not fully contain the requested region"))
        reason = "its slices differ in size" if uneven else str(error).strip().splitlines()[-1]
        raise DataError(path, f"is not a readable image ({reason})", "Export it again, or as .nii.gz") from None
    finally:
        locale.setlocale(locale.LC_CTYPE, encoding)  # GDCM leaves the whole process in ASCII
    return Volume(_channels_first(path, voxels, image), _affine_of(image))


def write_labels_at(path: Path, labels: NDArray[Any], affine: Affine) -> None:
    """Write integer labels as NIfTI on a grid that no NIfTI file gives; whole or not at all.

    Args:
        path: Target, ending in ``.nii.gz`` or ``.nii``.
        labels: ``(i, j, k)``.
        affine: Voxel indices to RAS+ mm.
    """
    image = nib.Nifti1Image(labels.astype(integer_type(labels)), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with whole(path) as partial:
        nib.save(image, partial)


def _simple_itk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise DataError(
            path, "is not NIfTI, and what reads it is not installed", "pip install 'medseg[formats]', or convert it"
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters of it we say ourselves
    return SimpleITK


def _read_series(sitk: Any, folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(
            folder, f"holds {len(series) or 'no'} DICOM series, expected one", "Give each series a folder of its own"
        )
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
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
    if np.ptp(gaps) > _UNEVEN * np.median(gaps):
        raise DataError(
            folder,
            f"has gaps of {gaps.min():.4g} to {gaps.max():.4g} mm between its slices: some are missing or doubled",
            "Export the whole series again",
        )


def _affine_of(image: Any) -> Affine:
    """From the LPS+ millimetres of DICOM and ITK to the RAS+ of NIfTI: x and y change sign."""
    dimensions = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    affine[:2] *= -1
    return affine


def _channels_first(path: Path, voxels: NDArray[Any], image: Any) -> NDArray[np.float32]:
    if image.GetDimension() not in (3, 4) or (image.GetDimension() == 4 and image.GetNumberOfComponentsPerPixel() > 1):
        raise DataError(path, f"has {image.GetDimension()} axes, expected three or four", "Export a 3D volume")
    if image.GetDimension() == 3:
        voxels = voxels[None] if image.GetNumberOfComponentsPerPixel() == 1 else np.moveaxis(voxels, -1, 0)
    return np.ascontiguousarray(voxels.transpose(0, 3, 2, 1), dtype=np.float32)  # ITK's arrays are (k, j, i)


def is_dicom(file: Path) -> bool:
    """Whether a file is a DICOM slice, told by its content; what cannot be read is none."""
    try:
        with file.open("rb") as content:
            return content.read(132)[128:] == b"DICM"
    except OSError:
        return False
