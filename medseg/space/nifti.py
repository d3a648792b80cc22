"""NIfTI files in and out; every failure names the file and what to do with it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.volume import Affine, Shape, Spacing, Volume, orientation_of, spacing_of

Number = TypeVar("Number", bound=np.generic)
_ROWS = 8
NIFTI_ENDINGS = (".nii.gz", ".nii")
_UNITS_MM = {1: 1000.0, 3: 0.001}  # metre and micrometre, as xyzt_units counts them; all else means mm, as for ITK


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says of itself before its voxels are read."""

    shape: Shape
    channels: int
    affine: Affine

    @property
    def spacing_mm(self) -> Spacing:
        """Edge lengths of a voxel."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Axis codes, such as ``"RAS"``."""
        return orientation_of(self.affine)


def read_header(path: Path) -> Header:
    """Read shape, channels and affine without touching the voxels.

    Raises:
        DataError: The file is missing, not NIfTI, not three- or four-dimensional, or has a singular affine.
    """
    return _header_of(path, _open(path))


def read_volume(path: str | Path) -> Volume:
    """Read an image as float32, scaling (``scl_slope``) applied, channels first.

    Raises:
        DataError: As `read_header`, or the voxel data are truncated or corrupt.
    """
    path = Path(path)
    image = _open(path)
    header = _header_of(path, image)
    return Volume(_channels_first(_voxels(path, image), header), header.affine)


def read_labels(path: Path) -> Volume:
    """Read a label volume as int32 with one channel; float-typed files must hold whole numbers.

    Raises:
        DataError: As `read_volume`, or the file has several channels, NaN or fractional values.
    """
    image = _open(path)
    header = _header_of(path, image)
    if header.channels != 1:
        raise DataError(
            path, f"has {header.channels} channels, expected a label volume with one", "Merge them into one map"
        )
    voxels = _voxels(path, image, None if _holds_integers(image) else np.float64)
    return Volume(whole_numbers(path, _channels_first(voxels, header)), header.affine)


def _holds_integers(image: Any) -> bool:
    """Whether the file's numbers are integers, and mean what they say: no scaling stands between."""
    slope, inter = image.dataobj.slope, image.dataobj.inter
    return bool(np.issubdtype(image.get_data_dtype(), np.integer)) and (slope, inter) == (1, 0)


def whole_numbers(path: Path, voxels: NDArray[Any]) -> NDArray[np.int32]:
    """The same numbers, in int32.

    Raises:
        DataError: They cannot be labels; says why.
    """
    if np.can_cast(voxels.dtype, np.int32):
        return voxels.astype(np.int32)
    with np.errstate(invalid="ignore"):  # NaN and what is too large become numbers that differ
        labels = voxels.astype(np.int32)
    if not np.array_equal(labels, voxels):
        finite = voxels[np.isfinite(voxels)]
        if np.array_equal(np.rint(finite), finite) and finite.size == voxels.size:
            raise DataError(path, f"holds values up to {np.abs(finite).max():.6g}, too large for labels", "Renumber it")
        raise DataError(path, "holds values that are not whole numbers", "Resample labels with nearest neighbour")
    return labels


def require_finite(path: Path, volume: Volume) -> None:
    """Refuse NaN and infinite voxels.

    Raises:
        DataError: With the number of such voxels.
    """
    if not np.isfinite(volume.array.sum(dtype=np.float64)):
        count = int(np.count_nonzero(~np.isfinite(volume.array)))
        raise DataError(path, f"holds {count} voxels that are NaN or infinite", "Replace them, for CT by -1024")


def write_labels(path: Path, labels: NDArray[Any], *, like: Path) -> None:
    """Write integer labels on exactly the grid of the image ``like``: affine, qform, sform, units, NIfTI version.

    The file appears whole or not at all: it is written under a temporary name and renamed.

    Args:
        path: Target, ending in ``.nii.gz`` or ``.nii``.
        labels: ``(i, j, k)`` with the spatial shape of ``like``.
        like: The image that was segmented.
    """
    source = _open(like)
    if tuple(labels.shape) != tuple(source.shape[:3]):
        raise ValueError(f"labels have shape {labels.shape}, the image {like} has {source.shape[:3]}")
    _write(path, source, labels.astype(np.min_scalar_type(int(labels.max(initial=0)))))


def _write(path: Path, source: Any, voxels: NDArray[Any]) -> None:
    header = source.header.copy()
    header.set_data_dtype(np.float32 if voxels.dtype == np.float16 else voxels.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_max"], header["cal_min"] = 0, 0
    header["intent_code"], header["descrip"] = 0, b""
    header.extensions.clear()  # the image's own remarks are not true of its segmentation
    image = type(source)(voxels, None, header)
    image.header["qform_code"], image.header["sform_code"] = source.header["qform_code"], source.header["sform_code"]
    with whole(path) as partial:
        nib.save(image, partial)


def _open(path: Path) -> Any:
    try:
        image = nib.load(path)
    except FileNotFoundError:
        raise DataError(path, "does not exist", "Check the path, or the entry of dataset.json that names it") from None
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        if misnamed := _true_name(path):
            raise DataError(path, f"holds what a {misnamed} holds, which its name hides", "Rename it") from None
        raise DataError(path, f"is not a readable NIfTI file ({error})", "Re-export or download it again") from None
    if not isinstance(image, (nib.Nifti1Image, nib.Nifti2Image)):
        raise DataError(path, f"is {type(image).__name__}, not a NIfTI file of one piece", "Convert it to .nii.gz")
    return image


def _true_name(path: Path) -> str:
    """The ending that the content of an unreadable file asks for, where it is not the one it has."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return ""
    if start[:2] == b"\x1f\x8b":
        return "" if path.name.endswith(".gz") else ".nii.gz"
    header_sizes = {size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")}
    return ".nii" if path.name.endswith(".gz") and start in header_sizes else ""


def _header_of(path: Path, image: Any) -> Header:
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:  # NIfTI vectors keep their time axis empty
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(path, f"has shape {tuple(image.shape)}, expected three axes or four", "Export a 3D volume")
    kind = image.get_data_dtype()
    if kind.fields is not None:
        raise DataError(
            path, "holds colours, not one number per voxel", "Convert it to grey, or to one 4D channel each"
        )
    if np.issubdtype(kind, np.complexfloating):
        raise DataError(path, "holds complex numbers", "Export their magnitude")
    affine = np.asarray(image.affine, dtype=np.float64)
    affine = np.diag([_UNITS_MM.get(int(image.header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0]) @ affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(spacing_of(affine)):
        raise DataError(path, "has a singular affine: its voxels have no volume", "Repair the sform or qform")
    return Header((shape[0], shape[1], shape[2]), shape[3] if len(shape) == 4 else 1, affine)


def _voxels(path: Path, image: Any, kind: type[np.floating[Any]] | None = np.float32) -> NDArray[Any]:
    """The numbers that the file means, in a type of ours or, with None, in the file's own."""
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused by whom it disturbs
            return _unpacked(path, image.dataobj, kind) if path.suffix == ".gz" else np.asarray(image.dataobj, kind)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(path, f"is truncated or corrupt ({error})", "Re-export or download it again") from None
    except MemoryError:
        extent = " x ".join(map(str, image.shape))
        raise DataError(
            path, f"has {extent} voxels, if its header is right: memory ran out", "Crop it, or export it again"
        ) from None


def _unpacked(path: Path, proxy: Any, kind: type[np.floating[Any]] | None) -> NDArray[Any]:
    """What nibabel reads, and then on to the checksum at the end, before which nibabel stops."""
    with gzip.open(path) as file:
        layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        voxels: NDArray[Any] = np.asarray(ArrayProxy(file, layout), dtype=kind)
        try:
            while file.read(2**20):
                continue
        except gzip.BadGzipFile as error:
            if not str(error).startswith("Not a gzipped file"):  # what follows the checksum harms nobody
                raise
    return voxels


def _channels_first(voxels: NDArray[Number], header: Header) -> NDArray[Number]:
    stacked = np.moveaxis(voxels.reshape(*header.shape, header.channels), -1, 0)
    if stacked.flags.c_contiguous:
        return stacked
    turned: NDArray[Number] = np.empty(stacked.shape, stacked.dtype)
    for start in range(0, header.shape[1], _ROWS):  # files count i fastest; turned in parts that fit into the cache
        turned[:, :, start : start + _ROWS] = np.ascontiguousarray(stacked[:, :, start : start + _ROWS])
    return turned
