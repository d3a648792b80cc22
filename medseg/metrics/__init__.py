"""Scores of a segmentation against its reference: functions that compute, and torchmetrics shells that remember."""

from medseg.metrics.cases import OrganScores, score_case
from medseg.metrics.detection import Lesions, match_lesions
from medseg.metrics.elements import element_distances
from medseg.metrics.empty import Outcome, image_diagonal_mm, outcome
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.metrics.overlap import Counts, Organs, count_labels, count_masks, dice
from medseg.metrics.per_organ import PerOrganDice
from medseg.metrics.surface import Surfaces, average_distance_mm, hausdorff_mm, surface_dice, surface_distances
from medseg.metrics.table import Element, OrganPair, metric

__all__ = [
    "DEFAULT_TOLERANCE_MM",
    "Counts",
    "Element",
    "Lesions",
    "OrganPair",
    "OrganScores",
    "Organs",
    "Outcome",
    "PerOrganDice",
    "Surfaces",
    "average_distance_mm",
    "count_labels",
    "count_masks",
    "dice",
    "element_distances",
    "hausdorff_mm",
    "image_diagonal_mm",
    "match_lesions",
    "metric",
    "outcome",
    "score_case",
    "surface_dice",
    "surface_distances",
]
