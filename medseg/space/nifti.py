"""NIfTI files in and out; every failure names the file and what to do with it."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseg.errors import DataError, explained
from medseg.machine.files import whole
from medseg.space.labels import WholeNumbers, integer_type, whole_numbers
from medseg.space.volume import Affine, Shape, Spacing, Volume, orientation_of, spacing_of

Number = TypeVar("Number", bound=np.generic)
_ROWS = 8
_FINE = 0.1  # a scale of steps this short was made for other numbers than those it holds; coarser ones are meant
NEARLY = 0.01  # numbers of a label file no further than this from whole ones are those, badly kept
_QUATERNION_ROUNDING = 1e-3
NIFTI_ENDINGS = (".nii.gz", ".nii")
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # by xyzt_units; all else means mm, as for ITK


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says of itself before its voxels are read.

    Attributes:
        shape: Voxels along i, j and k.
        channels: 1 for a volume of three axes.
        affine: Voxel indices to RAS+ mm, whatever unit the file counts in.
        unit: That unit; where the file is silent, mm.
        unit_mm: Its length.
    """

    shape: Shape
    channels: int
    affine: Affine
    unit: str = "mm"
    unit_mm: float = 1.0

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
    return _header_of(path, open_nifti(path))


def read_volume(path: str | Path) -> Volume:
    """Read an image as float32, scaling (``scl_slope``) applied, channels first.

    Raises:
        DataError: As `read_header`, or the voxel data are truncated or corrupt.
    """
    path = Path(path)
    image = open_nifti(path)
    header = _header_of(path, image)
    return Volume(_channels_first(_voxels(path, image), header), header.affine)


@dataclass(frozen=True, eq=False)
class LabelFile:
    """A label volume as its file has it, whatever is wrong with its numbers.

    Attributes:
        path: The file.
        volume: The nearest whole numbers in int32 or, where that is too narrow, int64; one channel.
        stored: How the file holds them, such as ``"uint8"`` or ``"int16 scaled by 0.5"``.
        gap: How far a number is from a whole one; infinite where it is NaN.
        exact: Whether that is rounding; only then are they labels.
        lacks: Organs of which it has not even an empty segment, where it is an object that names its segments.
    """

    path: Path
    volume: Volume
    stored: str
    gap: float
    exact: bool
    lacks: tuple[str, ...] = ()

    def require_labels(self) -> Volume:
        """The volume, where its numbers are labels.

        Raises:
            DataError: The file holds NaN or fractions.
        """
        if not self.exact:
            far = f", up to {self.gap:.2g} away" if self.gap < NEARLY else ""
            remedy = "Let medseg verify --fix round them" if far else "Resample labels with nearest neighbour"
            raise DataError(self.path, f"holds values that are not whole numbers{far}", remedy)
        return self.volume


def read_labels(path: Path) -> Volume:
    """Read a label volume with one channel, exactly: integers of every type, scaled ones and floats of whole numbers.

    Raises:
        DataError: As `read_label_file`, or the file holds NaN or fractions.
    """
    return read_label_file(path).require_labels()


def read_label_file(path: Path) -> LabelFile:
    """Read a label volume and say how near to whole numbers it is.

    Raises:
        DataError: As `read_volume`, or the file has several channels or values that no integer of 64 bits holds.
    """
    image = open_nifti(path)
    header = _header_of(path, image)
    if header.channels != 1:
        raise DataError(
            path, f"has {header.channels} channels, expected a label volume with one", "Merge them into one map"
        )
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    integers = bool(np.issubdtype(image.get_data_dtype(), np.integer))
    stored = str(image.get_data_dtype().newbyteorder("=")) + (
        "" if (slope, inter) == (1, 0) else f" scaled by {slope:.4g}"
    )
    whole_steps = integers and slope.is_integer() and inter.is_integer()
    try:
        voxels = _voxels(path, image, None if whole_steps else np.float64, raw=whole_steps)
        found = whole_numbers(voxels, step=abs(slope) if integers and abs(slope) < _FINE else 0.0)
        if whole_steps and (slope, inter) != (1, 0):
            found = _stretched(found, int(slope), int(inter))
    except ValueError as error:
        raise DataError(path, f"holds {error}, too large for labels", "Renumber it") from None
    volume = Volume(_channels_first(found.array, header), header.affine)
    return LabelFile(path, volume, stored, found.gap, found.exact)


def _stretched(found: WholeNumbers, slope: int, inter: int) -> WholeNumbers:
    """What whole numbers mean where the file's scale is one of whole numbers: no rounding, whatever their size."""
    array = found.array
    ends = [int(end) * slope + inter for end in (array.min(initial=0), array.max(initial=0))]
    if max(map(abs, ends)) >= 2**63:
        raise ValueError(f"values up to {max(map(abs, ends)):.6g}")
    return whole_numbers(array.astype(np.int64) * slope + inter)


def require_finite(path: Path, volume: Volume) -> None:
    """Refuse NaN and infinite voxels.

    Raises:
        DataError: With the number of such voxels.
    """
    with np.errstate(invalid="ignore"):  # of infinite ones of both signs
        total = volume.array.sum(dtype=np.float64)
    if not np.isfinite(total):
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
    source = open_nifti(like)
    shape = (*source.shape, 1)[:3]
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels have shape {labels.shape}, the image {like} has {shape}")
    _write(path, source, labels.astype(integer_type(labels)).reshape(source.shape[:3]))


def with_integers(path: Path, labels: NDArray[Any]) -> None:
    """Store the labels of a file anew, as integers and unscaled; the rest of its header stays as it is.

    Args:
        path: A label file with one channel.
        labels: ``(i, j, k)``, of the type to store them in.
    """
    source = open_nifti(path)
    header = source.header.copy()
    header.set_data_dtype(labels.dtype)
    image = type(source)(labels.reshape(source.shape), None, header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
        image.header[field] = source.header[field]
    with whole(path) as partial:
        nib.save(image, partial)


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


def open_nifti(path: Path) -> Any:
    """Open a file as nibabel's image, its voxels unread.

    Raises:
        DataError: As `read_header`.
    """
    try:
        with path.open("rb"):  # what the system refuses, it says more clearly than nibabel
            pass
    except OSError as error:
        raise explained(error, path) from None
    try:
        image = _load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        if misnamed := _true_name(path):
            raise DataError(path, f"holds what a {misnamed} holds, which its name hides", "Rename it") from None
        raise DataError(path, f"is not a readable NIfTI file ({error})", "Re-export or download it again") from None
    if not isinstance(image, (nib.Nifti1Image, nib.Nifti2Image)):
        raise DataError(path, f"is {type(image).__name__}, not a NIfTI file of one piece", "Convert it to .nii.gz")
    return image


class _Forgiving:
    """A header whose quaternion may be a little longer than 1: rounding, which ITK forgives too."""

    def get_qform_quaternion(self) -> NDArray[np.float64]:
        """The unit quaternion that is meant."""
        turn = np.array([self[f"quatern_{letter}"] for letter in "bcd"], dtype=np.float64)  # type: ignore[index]
        length = float(np.linalg.norm(turn))
        if not 1 <= length < 1 + _QUATERNION_ROUNDING:
            return super().get_qform_quaternion()  # type: ignore[misc, no-any-return]
        return np.append(0.0, turn / length)


_FORGIVING: list[Any] = [
    type(image.__name__, (image,), {"header_class": type(header.__name__, (_Forgiving, header), {})})
    for image, header in ((nib.Nifti1Image, nib.Nifti1Header), (nib.Nifti2Image, nib.Nifti2Header))
]


def _load(path: Path) -> Any:
    try:
        return nib.load(path)
    except (HeaderDataError, ValueError) as error:
        if "w2 should be positive" not in str(error):
            raise
    for kind in _FORGIVING[:-1]:
        with suppress(ImageFileError, HeaderDataError):
            return kind.from_filename(path)
    return _FORGIVING[-1].from_filename(path)


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
    shape = (*shape, 1) if len(shape) == 2 else shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:  # NIfTI vectors keep their time axis empty
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(path, f"has shape {tuple(image.shape)}, expected two axes to four", "Export a 2D or 3D volume")
    kind = image.get_data_dtype()
    if kind.fields is not None:
        raise DataError(
            path, "holds colours, not one number per voxel", "Convert it to grey, or to one 4D channel each"
        )
    if np.issubdtype(kind, np.complexfloating):
        raise DataError(path, "holds complex numbers", "Export their magnitude")
    affine = own_affine(image)
    unit, length_mm = _UNITS.get(int(image.header["xyzt_units"]) & 7, ("mm", 1.0))
    affine = np.diag([length_mm] * 3 + [1.0]) @ affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(spacing_of(affine)):
        raise DataError(path, "has a singular affine: its voxels have no volume", "Repair the sform or qform")
    return Header((shape[0], shape[1], shape[2]), shape[3] if len(shape) == 4 else 1, affine, unit, length_mm)


def own_affine(image: Any) -> Affine:
    """Voxel indices to RAS+ in the file's own unit; the third axis, where a file has but two, is upright on them."""
    affine = np.array(image.affine, dtype=np.float64)
    if len(image.shape) == 2 and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    return affine


def _voxels(
    path: Path, image: Any, kind: type[np.floating[Any]] | None = np.float32, *, raw: bool = False
) -> NDArray[Any]:
    """The numbers that the file means, in a type of ours or, with None, in the file's own; raw ones are not scaled."""
    try:
        proxy = image.dataobj
        slope, inter = (1, 0) if raw else (proxy.slope, proxy.inter)
        layout = (proxy.shape, proxy.dtype, proxy.offset, slope, inter)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused by whom it disturbs
            if path.suffix == ".gz":
                return _unpacked(path, layout, kind)
            return np.asarray(ArrayProxy(proxy.file_like, layout), dtype=kind)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(path, f"is truncated or corrupt ({error})", "Re-export or download it again") from None
    except MemoryError:
        extent = " x ".join(map(str, image.shape))
        raise DataError(
            path, f"has {extent} voxels, if its header is right: memory ran out", "Crop it, or export it again"
        ) from None


def _unpacked(path: Path, layout: tuple[Any, ...], kind: type[np.floating[Any]] | None) -> NDArray[Any]:
    """What nibabel reads, and then on to the checksum at the end, before which nibabel stops."""
    with gzip.open(path) as file:
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
