"""Every measure of every organ of one case, cropped to the organ and threaded over organs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from medseg.errors import listed
from medseg.metrics.detection import lesion_f1, match_lesions, volume_ml
from medseg.metrics.elements import element_distances
from medseg.metrics.empty import Outcome, distance_without_surfaces_mm, image_diagonal_mm, overlap_score
from medseg.metrics.overlap import Counts, Organs, dice, iou, precision, recall, values_of
from medseg.metrics.surface import Surfaces, average_distance_mm, hausdorff_mm, surface_dice, surface_distances
from medseg.space.distance import Box, bounding_box

Element = Literal["voxels", "areas"]
"""What a surface is made of: boundary voxels that count alike (MONAI), or faces that count by area (deepmind)."""

DEFAULT_TOLERANCE_MM = 2.0
"""Tolerance of the surface Dice where none is given for an organ."""


@dataclass(frozen=True)
class OrganScores:
    """The measures of one organ in one case; higher is better unless the name ends in ``_mm`` or ``_ml``.

    Attributes:
        outcome: Whether the organ was found, missed, invented or rightly absent.
        dice: Dice coefficient.
        hd95_mm: 95th percentile Hausdorff distance.
        nsd: Surface Dice at the organ's tolerance.
        iou: Intersection over union.
        precision: Share of the prediction that is right.
        recall: Share of the reference that is found.
        hd_mm: Hausdorff distance.
        assd_mm: Average symmetric surface distance.
        volume_ml: Volume of the prediction.
        reference_volume_ml: Volume of the reference.
        volume_error_ml: Prediction minus reference.
        lesion_f1: F1 over connected components.
        lesions_found: Components of the reference that the prediction touches.
        lesions_missed: Components of the reference that it does not touch.
        lesions_false: Components of the prediction that touch no reference.
    """

    outcome: Outcome
    dice: float
    hd95_mm: float
    nsd: float
    iou: float
    precision: float
    recall: float
    hd_mm: float
    assd_mm: float
    volume_ml: float
    reference_volume_ml: float
    volume_error_ml: float
    lesion_f1: float
    lesions_found: int
    lesions_missed: int
    lesions_false: int


_DISTANCES: dict[str, Callable[..., Surfaces]] = {"voxels": surface_distances, "areas": element_distances}


@dataclass(frozen=True)
class _Pair:
    """Prediction and reference of one organ, cut to the box that holds both."""

    prediction: Bool[np.ndarray, "*space"] = field(repr=False)
    reference: Bool[np.ndarray, "*space"] = field(repr=False)


def score_case(
    prediction: Integer[np.ndarray, "*space"] | Bool[np.ndarray, "c *space"],
    reference: Integer[np.ndarray, "*reference_space"] | Bool[np.ndarray, "c *reference_space"],
    organs: Organs,
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float | Mapping[str, float] = DEFAULT_TOLERANCE_MM,
    element: Element = "voxels",
    ignore: int | None = None,
    workers: int = 1,
) -> dict[str, OrganScores]:
    """Score every organ of one case.

    No one-hot volume is made: each organ is cut out of the label maps by its own box, so beside the two volumes the
    memory is that of the organs in work.

    Args:
        prediction: Label values, or one mask per organ in the order of ``organs``.
        reference: Label values in the same vocabulary, or one mask per organ.
        organs: Organ name -> value or values.
        spacing_mm: Distance between voxel centres along each axis.
        tolerance_mm: Tolerance of the surface Dice, one for all or by name (others have the default, 2 mm).
        element: ``voxels`` measures surfaces as MONAI does, ``areas`` as deepmind's surface-distance does.
        ignore: Reference value of voxels that count for nothing; they are outside of both masks.
        workers: Threads, shared out over the organs.

    Raises:
        ValueError: Shapes, number of masks or spacing do not fit, or a tolerance names no organ.

    Example:
        >>> labels = np.zeros((4, 4, 4), dtype=np.uint8)
        >>> labels[1:3] = 1
        >>> scores = score_case(labels, labels, {"liver": 1}, spacing_mm=(5.0, 5.0, 5.0))["liver"]
        >>> scores.dice, scores.hd95_mm, scores.volume_ml
        (1.0, 0.0, 4.0)
    """
    space = _space_of(prediction, reference, organs, spacing_mm)
    tolerances = _tolerances_of(tolerance_mm, organs)
    if ignore is not None:
        prediction = np.where(reference == ignore, False if prediction.dtype == bool else 0, prediction)
        reference = np.where(reference == ignore, 0, reference)
    boxes = zip(_boxes(prediction, organs), _boxes(reference, organs), strict=True)
    worst_mm = image_diagonal_mm(space, spacing_mm)
    measure = partial(_DISTANCES[element], spacing_mm=spacing_mm)
    score = partial(_score_organ, prediction, reference, spacing_mm=spacing_mm, worst_mm=worst_mm, measure=measure)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as threads:
        jobs = [
            threads.submit(score, index, values_of(values), _union(mine, true), tolerance_mm=tolerances[name])
            for index, ((name, values), (mine, true)) in enumerate(zip(organs.items(), boxes, strict=True))
        ]
        return {name: job.result() for name, job in zip(organs, jobs, strict=True)}


def _space_of(
    prediction: np.ndarray, reference: np.ndarray, organs: Organs, spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    spaces = []
    for role, array in (("prediction", prediction), ("reference", reference)):
        if array.dtype == bool and len(array) != len(organs):
            raise ValueError(
                f"expected {len(organs)} {role} masks, one per organ, got {len(array)}; give one per organ"
            )
        spaces.append(array.shape[1:] if array.dtype == bool else array.shape)
    if spaces[0] != spaces[1] or len(spaces[1]) != len(spacing_mm):
        raise ValueError(
            f"expected a prediction of shape {spaces[1]} like the reference and a spacing per axis, got {spaces[0]} "
            f"and {len(spacing_mm)} spacings; resample the prediction to the reference"
        )
    return tuple(spaces[1])


def _tolerances_of(tolerance_mm: float | Mapping[str, float], organs: Organs) -> dict[str, float]:
    if not isinstance(tolerance_mm, Mapping):
        return dict.fromkeys(organs, float(tolerance_mm))
    unknown = [name for name in tolerance_mm if name not in organs]
    if unknown:
        raise ValueError(f"expected tolerances for {listed(organs)}, got one for {listed(unknown)}; correct the name")
    return {name: float(tolerance_mm.get(name, DEFAULT_TOLERANCE_MM)) for name in organs}


def _boxes(labels: np.ndarray, organs: Organs) -> Iterator[Box | None]:
    """Yield the box around each organ, None where it has no voxel; one pass over a label map serves all organs."""
    if labels.dtype == bool:
        for mask in labels:
            yield bounding_box(mask)
        return
    found = ndimage.find_objects(labels)
    for values in organs.values():
        box: Box | None = None
        for value in values_of(values):
            box = _union(box, found[value - 1] if 0 < value <= len(found) else None)
        yield box


def _union(one: Box | None, other: Box | None) -> Box | None:
    if one is None or other is None:
        return one or other
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _cut(labels: np.ndarray, index: int, values: tuple[int, ...], box: Box) -> np.ndarray:
    if labels.dtype == bool:
        mask: np.ndarray = labels[index][box]
        return mask
    inside = labels[box]
    organ: np.ndarray = inside == values[0] if len(values) == 1 else np.isin(inside, values)
    return organ


def _score_organ(
    prediction: np.ndarray,
    reference: np.ndarray,
    index: int,
    values: tuple[int, ...],
    box: Box | None,
    *,
    spacing_mm: Sequence[float],
    worst_mm: float,
    measure: Callable[..., Surfaces],
    tolerance_mm: float,
) -> OrganScores:
    if box is None:
        box = (slice(0, 0),) * len(spacing_mm)
    pair = _Pair(_cut(prediction, index, values, box), _cut(reference, index, values, box))
    tp, predicted, true = (
        int(np.count_nonzero(mask)) for mask in (pair.prediction & pair.reference, pair.prediction, pair.reference)
    )
    counts = Counts(tp, predicted - tp, true - tp)
    lesions = match_lesions(pair.prediction, pair.reference)
    return OrganScores(
        outcome=counts.outcome,
        dice=dice(counts),
        iou=iou(counts),
        precision=precision(counts),
        recall=recall(counts),
        **_surface_scores(pair, counts, worst_mm, measure, tolerance_mm),
        volume_ml=volume_ml(counts.predicted, spacing_mm),
        reference_volume_ml=volume_ml(counts.reference, spacing_mm),
        volume_error_ml=volume_ml(counts.predicted - counts.reference, spacing_mm),
        lesion_f1=lesion_f1(lesions),
        lesions_found=lesions.found,
        lesions_missed=lesions.missed,
        lesions_false=lesions.false,
    )


def _surface_scores(
    pair: _Pair, counts: Counts, worst_mm: float, measure: Callable[..., Surfaces], tolerance_mm: float
) -> dict[str, float]:
    if counts.outcome is not Outcome.FOUND:
        distance_mm = distance_without_surfaces_mm(counts.outcome, worst_mm)
        nsd = overlap_score(0, 0, counts.outcome)
        return {"hd_mm": distance_mm, "hd95_mm": distance_mm, "assd_mm": distance_mm, "nsd": nsd}
    surfaces = measure(pair.prediction, pair.reference)
    return {
        "hd_mm": hausdorff_mm(surfaces),
        "hd95_mm": hausdorff_mm(surfaces, percentile=95.0),
        "assd_mm": average_distance_mm(surfaces),
        "nsd": surface_dice(surfaces, tolerance_mm=tolerance_mm),
    }
