"""A folder of DICOM files sorted into series, of which the odd ones are named and left out."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import DataError, UsageError
from medseg.space.formats import even, is_dicom
from medseg.space.volume import Affine, Shape

_TURNED = 1e-3  # by how much a direction cosine may differ within a series
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality",
    "SeriesNumber", "SeriesDescription", "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "Rows", "Columns", "SliceThickness", "NumberOfFrames",
)  # fmt: skip

_UNREADABLE = (ValueError, AttributeError, KeyError, IndexError, TypeError, EOFError, RuntimeError, struct.error)


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series, in the order of a volume's last axis.

    Attributes:
        uid: Its Series Instance UID.
        name: For files: its number and description, such as ``"004_t1_axial"``.
        modality: ``"CT"``, ``"MR"``, ...
        frame_of_reference: Its Frame of Reference UID; "" where the scanner gave none.
        files: One per slice.
        instances: Their SOP Instance UIDs.
        affine: Indices ``(column, row, slice)`` to RAS+ mm.
        shape: Columns, rows, slices.
    """

    uid: str
    name: str
    modality: str
    frame_of_reference: str
    files: tuple[Path, ...]
    instances: tuple[str, ...]
    affine: Affine
    shape: Shape


@dataclass(frozen=True)
class OddSeries:
    """A series that is no volume, and why.

    Attributes:
        folder: Where its first slice lies.
        name: As of `Series`.
        reason: What makes it none, as a sentence with "it".
        broken: Whether it should be one, and something is wrong; a localiser is none by intent.
    """

    folder: Path
    name: str
    reason: str
    broken: bool

    def __str__(self) -> str:
        return f"{self.folder}: series {self.name} is left out: {self.reason}"


def library(path: Path, name: str = "pydicom") -> Any:
    """A library of the extra ``dicom``: pydicom, which reads it, or highdicom, which knows segmentation objects.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import pydicom

        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # scanners write what it would warn of
        if name == "pydicom":
            return pydicom
        import highdicom
    except ImportError:
        raise UsageError(f"{path} is DICOM, and {name} is not installed", "pip install 'medseg[dicom]'") from None
    return highdicom


def has_pydicom() -> bool:
    """Whether series can be sorted here."""
    return find_spec("pydicom") is not None


def sort_series(folder: Path) -> tuple[list[Series], list[OddSeries]]:
    """Read the headers of every DICOM file below a folder and sort them by series.

    Args:
        folder: Searched with its folders; files that are no DICOM are passed over, as are objects without an image
            grid (reports, segmentations, structure sets).

    Returns:
        The series that are volumes, by name; and the odd ones: localisers, slices of several directions or sizes,
        gaps, doubled slices, single slices.

    Raises:
        UsageError: pydicom is not installed.
        DataError: The folder is missing.
    """
    if not folder.is_dir():
        raise DataError(folder, "is no folder", "Give the folder of DICOM files")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole, odd = _sorted(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))
    return list(whole), list(odd)


@lru_cache(maxsize=4)
def _sorted(files: tuple[tuple[Path, int, int], ...]) -> tuple[list[Series], list[OddSeries]]:
    """As `sort_series`; files as they were are not read again for each case that lies among them."""
    groups: dict[str, list[tuple[Path, Any]]] = defaultdict(list)
    for path, header in _headers(path for path, *_ in files):
        groups[str(header.get("SeriesInstanceUID", ""))].append((path, header))
    whole: list[Series] = []
    odd: list[OddSeries] = []
    for slices in groups.values():
        if not _is_image(slices[0][1]):
            continue
        try:
            whole.append(_series(slices))
        except _OddError as reason:
            odd.append(OddSeries(slices[0][0].parent, _name(slices[0][1]), reason.told, reason.broken))
    return sorted(whole, key=lambda series: (series.name, series.uid)), sorted(odd, key=str)


def series_of(path: Path) -> Series:
    """The one series of a folder, or that which a file belongs to among those beside it.

    Raises:
        DataError: There is none or more than one, or it is no volume; with the reason.
    """
    folder = path if path.is_dir() else path.parent
    whole, odd = sort_series(folder)
    if path.is_file():
        whole = [series for series in whole if path in series.files]
        odd = odd if not whole else []
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = ", ".join(series.name for series in whole[:5])
        raise DataError(folder, f"holds {len(whole)} series ({names})", "Name one slice of the series that you mean")
    reason = odd[0].reason if odd else "no image is among its DICOM files"
    raise DataError(path, f"is no series that makes a volume: {reason}", "Export the series again")


class _OddError(Exception):
    """Why a series is no volume."""

    def __init__(self, told: str, *, broken: bool = True) -> None:
        self.told, self.broken = told, broken


def _headers(files: Iterable[Path]) -> Iterable[tuple[Path, Any]]:
    for path in filter(is_dicom, files):
        with readable(path):
            header = library(path).dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        yield path, header


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What pydicom and highdicom raise over files that are cut short, or lack what the standard asks, as a sentence."""
    own = library(path).errors
    try:
        yield
    except (*_UNREADABLE, own.BytesLengthException, own.InvalidDicomError) as error:
        told = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(path, f"is no readable DICOM object ({told})", "Export it again") from None


def _is_image(header: Any) -> bool:
    return "Rows" in header and str(header.get("Modality", "")) not in ("SEG", "RTSTRUCT", "RTDOSE", "SR", "PR", "KO")


def _name(header: Any) -> str:
    """Number and description of a series in letters that any file system takes."""
    number, description = header.get("SeriesNumber"), str(header.get("SeriesDescription", "") or "series")
    plain = "".join(letter if letter.isalnum() else "_" for letter in description).strip("_") or "series"
    return f"{int(number or 0):03d}_{plain}"


def _series(slices: Sequence[tuple[Path, Any]]) -> Series:
    first = slices[0][1]
    if "LOCALIZER" in [str(kind).upper() for kind in first.get("ImageType", ())]:
        raise _OddError("it is a localiser", broken=False)
    if int(first.get("NumberOfFrames", 1) or 1) > 1:
        raise _OddError("it is multi-frame; convert it to one file per slice or to NIfTI")
    if any(key not in header for _, header in slices for key in ("ImagePositionPatient", "ImageOrientationPatient")):
        raise _OddError("its slices do not say where they lie")
    if len({(int(header.Rows), int(header.Columns)) for _, header in slices}) > 1:
        raise _OddError("its slices differ in size")
    turns = np.array([[float(x) for x in header.ImageOrientationPatient] for _, header in slices])
    if np.abs(turns - turns[0]).max() > _TURNED:
        raise _OddError("its slices have several directions, such as a localiser's", broken=False)
    if len(slices) == 1:
        raise _OddError("it has one slice", broken=False)
    along_row, along_column = turns[0][:3], turns[0][3:]
    normal = np.cross(along_row, along_column)
    positions = np.array([[float(x) for x in header.ImagePositionPatient] for _, header in slices])
    order = np.argsort(positions @ normal, kind="stable")
    gaps = np.diff(positions[order] @ normal)
    if gaps.min() < 1e-3:
        raise _OddError("two of its slices lie at the same place")
    if not even(gaps):
        raise _OddError(f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm between its slices: some are missing")
    between_rows, between_columns = (float(x) for x in first.PixelSpacing)
    affine = np.eye(4)
    step = (positions[order[-1]] - positions[order[0]]) / (len(slices) - 1)
    affine[:3, :3] = np.stack([along_row * between_columns, along_column * between_rows, step], axis=1)
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1  # from LPS+ to RAS+
    return Series(
        uid=str(first.SeriesInstanceUID),
        name=_name(first),
        modality=str(first.get("Modality", "")),
        frame_of_reference=str(first.get("FrameOfReferenceUID", "")),
        files=tuple(slices[index][0] for index in order),
        instances=tuple(str(slices[index][1].SOPInstanceUID) for index in order),
        affine=affine,
        shape=(int(first.Columns), int(first.Rows), len(slices)),
    )
