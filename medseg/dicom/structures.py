"""DICOM structure sets (RTSTRUCT): an organ as outlines on the slices of a series, in and out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

import medseg
from medseg.dicom.organs import Organ, codes_of
from medseg.dicom.outlines import Polygon, filled, outlines
from medseg.dicom.segmentation import Algorithm, Masks
from medseg.dicom.series import Series, library, readable
from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.formats import STRUCTURES
from medseg.space.painter import Segments

_STUDY = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, by which structure sets refer to their study
_OF_SOURCE = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_BETWEEN = 0.5  # of the distance between slices: an outline farther than this from every slice is on none


def write_structures(
    path: Path, masks: Masks, organs: Sequence[Organ], series: Series, algorithm: Algorithm, *, like: Sequence[Any]
) -> None:
    """Write the masks as one structure set that refers to every slice of its series; whole or not at all.

    Outlines run half way between voxels; a hole is joined to the outline around it, see `medseg.dicom.outlines`.

    Args:
        path: Target, ending in ``.dcm``.
        masks: Organ -> voxels ``(column, row, slice)``; an organ without any keeps its name, without an outline.
        organs: In the order of the regions of interest.
        series: Where they lie.
        algorithm: Who drew them.
        like: The headers of the slices, see `medseg.dicom.segmentation.headers_of`.
    """
    lib = library(path)
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    now = datetime.datetime.now()
    written = lib.Dataset()
    written.SpecificCharacterSet = "ISO_IR 192"
    written.SOPClassUID, written.SOPInstanceUID = STRUCTURES, generate_uid()
    for key in _OF_SOURCE:
        setattr(written, key, like[0].get(key, ""))
    written.Modality, written.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    written.SeriesNumber = int(like[0].get("SeriesNumber", 0) or 0) * 100 + 2
    written.SeriesDescription = f"{series.name} segmented"[:64]
    written.Manufacturer, written.ManufacturerModelName = "medseg", algorithm.name[:64]
    written.SoftwareVersions, written.DeviceSerialNumber = medseg.__version__, algorithm.version[:64]
    written.OperatorsName, written.InstanceNumber = "", 1
    written.FrameOfReferenceUID, written.PositionReferenceIndicator = series.frame_of_reference, ""
    written.StructureSetLabel, written.StructureSetDescription = "medseg", f"By {algorithm.name}"[:1024]
    written.StructureSetDate = written.SeriesDate = written.InstanceCreationDate = now.strftime("%Y%m%d")
    written.StructureSetTime = written.SeriesTime = written.InstanceCreationTime = now.strftime("%H%M%S")
    written.ReferencedFrameOfReferenceSequence = [_frame_of_reference(lib, series, like)]
    written.StructureSetROISequence = []
    written.ROIContourSequence = []
    written.RTROIObservationsSequence = []
    for number, organ in enumerate(organs, start=1):
        written.StructureSetROISequence.append(_region(lib, number, organ, series, algorithm))
        written.ROIContourSequence.append(_contours(lib, number, organ, masks[organ.name], series, like))
        written.RTROIObservationsSequence.append(_observation(lib, number, organ))
    written.ApprovalStatus = "UNAPPROVED"
    written.file_meta = lib.dataset.FileMetaDataset()
    written.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with whole(path) as unfinished:
        lib.dcmwrite(unfinished, written, enforce_file_format=True)


def read_structures(path: Path, series: Series) -> Segments:
    """Find the regions of a structure set, each of which is read as a mask on the grid of the series it was drawn on.

    Outlines of one organ on one slice are taken by turns (even-odd): one inside another is a hole.

    Raises:
        DataError: It is no structure set, was drawn in another frame of reference or on another series; and when a
            region is read, it has outlines that are not closed and flat on a slice, or lie beyond the series.
    """
    with readable(path):
        read = library(path).dcmread(path)
        outlined: dict[int, list[Any]] = {}
        for region in read.get("ROIContourSequence") or ():
            outlined.setdefault(int(region.ReferencedROINumber), []).extend(region.get("ContourSequence") or ())
        names, frames = {}, dict[int, str]()
        for roi in read.get("StructureSetROISequence") or ():
            names[int(roi.ROINumber)] = str(roi.ROIName)
            frames[int(roi.ROINumber)] = str(roi.get("ReferencedFrameOfReferenceUID", ""))
        kind = str(read.get("SOPClassUID", ""))
    if kind != STRUCTURES:
        raise DataError(path, "is no DICOM structure set", "Give an RTSTRUCT file")
    if "RTROIObservationsSequence" not in read:  # which the standard demands; it comes after all outlines
        raise DataError(path, "ends after its outlines or within them: it is cut short", "Export it again")
    with readable(path):
        _require_series(path, read, series)
    if nameless := sorted(set(outlined) - set(names)):
        raise DataError(path, f"has outlines of region {nameless[0]}, which it does not name", "Export it again")
    return [
        (name, partial(_region_mask, path, name, outlined.get(n, ()), series, frames[n])) for n, name in names.items()
    ]


def _region_mask(
    path: Path, name: str, contours: Sequence[Any], series: Series, frame: str
) -> Bool[np.ndarray, "i j k"]:
    """The voxels within the outlines of a region; points and open lines are marks, not organs."""
    if contours and frame and series.frame_of_reference and frame != series.frame_of_reference:
        problem = f"has outlines of {name} in another frame of reference than series {series.name}"
        raise DataError(path, problem, "Give the series it was drawn on")
    to_index = np.linalg.inv(series.affine)
    planes: dict[tuple[int, float], list[Polygon]] = {}  # a slice may hold outlines of several depths within it
    with readable(path):
        for contour in contours:
            if str(contour.get("ContourGeometricType", "")) not in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"):
                depth, polygon = _on_slice(path, name, contour, to_index, series)
                planes.setdefault((round(depth), round(depth, 1)), []).append(polygon)
    mask = np.zeros(series.shape, dtype=bool)
    for (index, _), polygons in planes.items():
        mask[:, :, index] |= filled(polygons, series.shape[:2])
    return mask


def _on_slice(path: Path, name: str, contour: Any, to_index: Any, series: Series) -> tuple[float, Polygon]:
    """How many slices deep an outline lies, and its corners in columns and rows."""
    numbers = np.array([float(x) for x in contour.get("ContourData") or ()])
    if not np.isfinite(numbers).all() or len(numbers) % 3 or len(numbers) < 9:
        problem = f"has an outline of {name} with {len(numbers)} numbers, not 3 finite ones a point"
        raise DataError(path, problem, "Export it again")
    points = numbers.reshape(-1, 3) * [-1, -1, 1]  # LPS+ to RAS+
    indices = points @ to_index[:3, :3].T + to_index[:3, 3]
    depth = indices[:, 2]
    index = round(float(depth.mean()))
    if np.ptp(depth) > _BETWEEN:
        raise DataError(
            path, f"has an outline of {name} that is not flat on a slice of {series.name}", "Draw it on the slices"
        )
    outside = (indices[:, :2] < -0.5 - 1e-3).any() or (indices[:, :2] > np.array(series.shape[:2]) - 0.5 + 1e-3).any()
    if not 0 <= index < series.shape[2] or outside:
        raise DataError(
            path, f"has an outline of {name} beyond series {series.name}", "Give the series it was drawn on"
        )
    return float(depth.mean()), indices[:, :2]


def _require_series(path: Path, read: Any, series: Series) -> None:
    frames = list(read.get("ReferencedFrameOfReferenceSequence") or ())
    known = {str(frame.get("FrameOfReferenceUID", "")) for frame in frames} - {""}
    if known and series.frame_of_reference and series.frame_of_reference not in known:
        raise DataError(
            path, f"has another frame of reference than series {series.name}", "Give the series it was drawn on"
        )
    drawn_on = {
        str(one.SeriesInstanceUID)
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for one in study.get("RTReferencedSeriesSequence") or ()
    }
    if drawn_on and series.uid not in drawn_on:
        raise DataError(path, f"was drawn on another series than {series.name}", "Give the series it was drawn on")


def _frame_of_reference(library: Any, series: Series, like: Sequence[Any]) -> Any:
    one = library.Dataset()
    one.SeriesInstanceUID = series.uid
    one.ContourImageSequence = [_image(library, header) for header in like]
    study = library.Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY, like[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [one]
    frame = library.Dataset()
    frame.FrameOfReferenceUID = series.frame_of_reference
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(library: Any, header: Any) -> Any:
    image = library.Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return image


def _region(library: Any, number: int, organ: Organ, series: Series, algorithm: Algorithm) -> Any:
    region = library.Dataset()
    region.ROINumber, region.ROIName = number, organ.name[:64]
    region.ReferencedFrameOfReferenceUID = series.frame_of_reference
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = f"{algorithm.name} {algorithm.version}"[:64]
    return region


def _contours(library: Any, number: int, organ: Organ, mask: Any, series: Series, like: Sequence[Any]) -> Any:
    region = library.Dataset()
    region.ReferencedROINumber, region.ROIDisplayColor = number, list(organ.rgb)
    contours: list[Any] = []
    for index in map(int, np.flatnonzero(mask.any(axis=(0, 1)))):
        for polygon in outlines(mask[:, :, index]):
            contour = library.Dataset()
            contour.ContourImageSequence = [_image(library, like[index])]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
            contour.ContourNumber = len(contours) + 1
            contour.ContourData = [f"{x:.10g}"[:16] for x in _in_mm(polygon, index, series).ravel()]
            contours.append(contour)
    if contours:
        region.ContourSequence = contours
    return region


def _in_mm(polygon: Polygon, index: int, series: Series) -> Float[np.ndarray, "points 3"]:
    """Corners in the LPS+ mm of DICOM."""
    indices = np.column_stack([polygon, np.full(len(polygon), float(index))])
    points: Float[np.ndarray, "points 3"] = (indices @ series.affine[:3, :3].T + series.affine[:3, 3]) * [-1, -1, 1]
    return points


def _observation(library: Any, number: int, organ: Organ) -> Any:
    observation = library.Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.ROIObservationLabel = organ.name[:16]
    observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
    kind = codes_of(organ.name).kind
    code = library.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = kind.value, kind.scheme_designator, kind.meaning
    observation.RTROIIdentificationCodeSequence = [code]
    return observation
