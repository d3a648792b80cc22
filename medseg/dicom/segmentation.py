"""DICOM segmentation objects (SEG): a segment per organ on the slices of a series, in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

import medseg
from medseg.dicom.organs import Organ, codes_of
from medseg.dicom.series import Series, library, readable
from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.painter import Segments
from medseg.space.volume import same_place

Masks = Mapping[str, Bool[np.ndarray, "i j k"]]
"""Organ -> its voxels on the grid of a series: column, row, slice. They may overlap."""


@dataclass(frozen=True)
class Algorithm:
    """Who drew the segments.

    Attributes:
        name: Such as ``"medseg unet"``.
        version: What tells it from others of the name; here the digest of the checkpoints.
    """

    name: str
    version: str


def write_segmentation(
    path: Path, masks: Masks, organs: Sequence[Organ], series: Series, algorithm: Algorithm, *, like: Sequence[Any]
) -> None:
    """Write the masks as one segmentation object that refers to every slice of its series; whole or not at all.

    Args:
        path: Target, ending in ``.dcm``.
        masks: See `Masks`; an organ that no voxel belongs to keeps its segment, without a frame.
        organs: In the order of the segments.
        series: Where they lie.
        algorithm: Who drew them.
        like: The headers of the slices, see `headers_of`.

    Raises:
        UsageError: highdicom is not installed.
    """
    hd = library(path, "highdicom")
    from pydicom.uid import generate_uid

    pixels = _pixels(masks, organs, series)
    written = hd.seg.Segmentation(
        source_images=list(like),
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(hd, n, organ, algorithm) for n, organ in enumerate(organs, start=1)],
        series_instance_uid=generate_uid(),
        series_number=_new_number(like),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="medseg",
        manufacturer_model_name=algorithm.name,
        software_versions=medseg.__version__,
        device_serial_number=algorithm.version,
        content_label="SEGMENTATION",
        content_description=f"Organs segmented by {algorithm.name}"[:64],
        series_description=f"{series.name} segmented"[:64],
        omit_empty_frames=bool(pixels.any()),
    )
    written.ContentCreatorName = ""  # which the standard wants to be there, and highdicom leaves out
    with whole(path) as unfinished:
        written.save_as(unfinished)


def _pixels(masks: Masks, organs: Sequence[Organ], series: Series) -> Any:
    """Segment numbers ``(slice, row, column)`` where no two organs overlap; else a mask for each, in a last axis."""
    numbers = np.zeros(series.shape, dtype=np.min_scalar_type(len(organs)))
    for number, organ in enumerate(organs, start=1):
        mask = masks[organ.name]
        if numbers[mask].any():
            return np.stack([masks[one.name].transpose(2, 1, 0) for one in organs], axis=-1).astype(np.uint8)
        numbers[mask] = number
    return numbers.transpose(2, 1, 0)


def headers_of(series: Series) -> list[Any]:
    """The headers of a series' slices without their voxels, in its order."""
    return [library(file).dcmread(file, stop_before_pixels=True) for file in series.files]


def read_segmentation(path: Path, series: Series) -> Segments:
    """Find the segments of a segmentation object, each of which is read as a mask on the grid of the series.

    Frames that it leaves out are empty; slices are found by their position.

    Raises:
        UsageError: highdicom is not installed.
        DataError: It is no segmentation or refers to another series; and when a segment is read, its frames lie
            between or beyond the slices.
    """
    hd = library(path, "highdicom")
    with readable(path):
        read = hd.seg.segread(path)
        names = {number: str(read.get_segment_description(number).SegmentLabel) for number in read.segment_numbers}
        _require_series(path, read, series)
    return [(name, partial(_segment_mask, path, read, number, series)) for number, name in names.items()]


def _segment_mask(path: Path, read: Any, number: int, series: Series) -> Bool[np.ndarray, "i j k"]:
    """The voxels of a segment."""
    with readable(path):
        volume = read.get_volume(segment_numbers=[number], rescale_fractional=True)
    planes = np.asarray(volume.affine) @ _to_columns_first()
    planes[:2] *= -1  # LPS+ to RAS+
    mask: Bool[np.ndarray, "i j k"] = _on_series(path, volume.array[..., 0].T >= 0.5, planes, series)
    return mask


def _to_columns_first() -> Any:
    """Indices (column, row, slice) to (slice, row, column)."""
    return np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def _on_series(path: Path, masks: Any, affine: Any, series: Series) -> Any:
    """A mask of some slices among all slices of the series.

    Raises:
        DataError: Their grid is not that of the series.
    """
    offset = np.linalg.solve(series.affine, affine)
    start = np.rint(offset[:3, 3]).astype(int)
    flipped = offset[2, 2] < 0
    if flipped:
        start[2] -= masks.shape[2] - 1
        masks = masks[:, :, ::-1]
    placed = series.affine.copy()
    placed[:3, 3] = (series.affine @ [*start, 1])[:3]
    ours = affine.copy()
    if flipped:
        ours[:3, 3] = (affine @ [0, 0, masks.shape[2] - 1, 1])[:3]
        ours[:3, 2] *= -1
    stop = start + masks.shape
    if not same_place(ours, placed, masks.shape) or (start < 0).any() or (stop > series.shape).any():
        raise DataError(
            path,
            f"does not lie on the slices of series {series.name}, which it says it segments",
            "Export it on the grid of that series",
        )
    on_series = np.zeros(series.shape, dtype=bool)
    on_series[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = masks
    return on_series


def _require_series(path: Path, read: Any, series: Series) -> None:
    frame = str(read.get("FrameOfReferenceUID", ""))
    named = {str(uid) for study in [read.get_source_image_uids()] for _, _, uid in study}
    if frame and series.frame_of_reference and frame != series.frame_of_reference:
        raise DataError(
            path, f"has another frame of reference than series {series.name}", "Give the series it segments"
        )
    if named and not named & set(series.instances):
        raise DataError(path, f"refers to none of the slices of series {series.name}", "Give the series it segments")


def _described(hd: Any, number: int, organ: Organ, algorithm: Algorithm) -> Any:
    from pydicom.sr.codedict import codes

    found = codes_of(organ.name)
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ.name[:64],
        segmented_property_category=found.category,
        segmented_property_type=found.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name, family=codes.cid7162.ArtificialIntelligence, version=algorithm.version
        ),
        tracking_uid=hd.UID(),
        tracking_id=organ.name[:64],
        anatomic_regions=[found.region] if found.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*organ.rgb),
    )
    if found.side:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(found.side)]
    return description


def _new_number(like: Sequence[Any]) -> int:
    """A series number beside that of the source, as scanners and viewers leave room for."""
    return int(like[0].get("SeriesNumber", 0) or 0) * 100 + 1
