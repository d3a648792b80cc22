"""The metrics themselves: each reads an `OrganPair`, most in a line; what they compute lies in the files beside.

`MetricRow.value` decides the organs that one side lacks, so what is divided by here is never 0.
"""

from __future__ import annotations

from medseg.metrics import overlap, surface
from medseg.metrics.table import OrganPair, metric
from medseg.space.distance import voxel_size

DEFAULT_TOLERANCE_MM = 2.0
"""Tolerance of the surface Dice where none is given for an organ."""


@metric(better="higher", best=1.0, empty="overlap", leading=True, symmetric=True)
def dice(x: OrganPair) -> float:
    """2 TP / (2 TP + FP + FN)."""
    return overlap.dice(x.counts)


@metric(better="lower", best=0.0, empty="distance", leading=True, symmetric=True)
def hd95_mm(x: OrganPair) -> float:
    """95th percentile of the surface distances, the larger of the two directions."""
    return surface.hausdorff_mm(x.surfaces, percentile=95.0)


@metric(better="higher", best=1.0, empty="overlap", leading=True, symmetric=True)
def nsd(x: OrganPair, *, tolerance_mm: float = DEFAULT_TOLERANCE_MM) -> float:
    """Share of both surfaces within a tolerance of the other (2 mm unless told otherwise, one for all or by organ)."""
    return surface.surface_dice(x.surfaces, tolerance_mm=tolerance_mm)


@metric(better="higher", best=1.0, empty="overlap", symmetric=True)
def iou(x: OrganPair) -> float:
    """TP / (TP + FP + FN)."""
    return x.counts.tp / (x.counts.tp + x.counts.fp + x.counts.fn)


@metric(better="higher", best=1.0, empty="overlap")
def precision(x: OrganPair) -> float:
    """TP / (TP + FP): the share of the prediction that is right."""
    return x.counts.tp / x.counts.predicted


@metric(better="higher", best=1.0, empty="overlap")
def recall(x: OrganPair) -> float:
    """TP / (TP + FN): the share of the reference that is found."""
    return x.counts.tp / x.counts.reference


@metric(better="lower", best=0.0, empty="distance", symmetric=True)
def hd_mm(x: OrganPair) -> float:
    """Hausdorff distance."""
    return surface.hausdorff_mm(x.surfaces)


@metric(better="lower", best=0.0, empty="distance", symmetric=True)
def assd_mm(x: OrganPair) -> float:
    """Mean distance over both surfaces."""
    return surface.average_distance_mm(x.surfaces)


@metric(better="neither", empty="computed")
def volume_ml(x: OrganPair) -> float:
    """Volume of the prediction."""
    return _ml(x, x.counts.predicted)


@metric(better="neither", empty="computed")
def reference_volume_ml(x: OrganPair) -> float:
    """Volume of the reference."""
    return _ml(x, x.counts.reference)


@metric(better="neither", best=0.0, empty="computed")
def volume_error_ml(x: OrganPair) -> float:
    """Prediction minus reference."""
    return _ml(x, x.counts.predicted - x.counts.reference)


@metric(better="higher", best=1.0, empty="overlap")
def lesion_f1(x: OrganPair) -> float:
    """F1 over connected components, matched by one shared voxel.

    2 TP / (2 TP + FP + FN), TP and FN being components of the reference, FP of the prediction: ISLES 2022, Hernandez
    Petzsche et al., Scientific Data 2022.
    """
    return 2 * x.lesions.found / (2 * x.lesions.found + x.lesions.false + x.lesions.missed)


@metric(better="neither", empty="computed")
def lesions_found(x: OrganPair) -> int:
    """Components of the reference that the prediction touches."""
    return x.lesions.found


@metric(better="lower", best=0.0, empty="computed")
def lesions_missed(x: OrganPair) -> int:
    """Components of the reference that it does not touch."""
    return x.lesions.missed


@metric(better="lower", best=0.0, empty="computed")
def lesions_false(x: OrganPair) -> int:
    """Components of the prediction that touch no reference."""
    return x.lesions.false


def _ml(x: OrganPair, voxels: int) -> float:
    return voxels * voxel_size(x.spacing_mm) / 1000.0
