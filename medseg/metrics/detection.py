"""Was it found at all: lesions matched by touch, and volumes in millilitres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from medseg.metrics.empty import outcome, overlap_score
from medseg.space.components import connected_components
from medseg.space.distance import Steps, voxel_size


@dataclass(frozen=True)
class Lesions:
    """Connected components of one organ in one case, matched by touch.

    Attributes:
        found: Components of the reference that the prediction touches.
        missed: Components of the reference that it does not touch.
        false: Components of the prediction that touch no reference.
    """

    found: int
    missed: int
    false: int


def match_lesions(prediction: Bool[np.ndarray, "*space"], reference: Bool[np.ndarray, "*space"]) -> Lesions:
    """Match the connected components of two masks; one shared voxel is a match.

    Components are connected over faces, edges and corners.

    Example:
        >>> match_lesions(np.array([1, 1, 0, 0, 0, 1], dtype=bool), np.array([0, 1, 0, 1, 0, 0], dtype=bool))
        Lesions(found=1, missed=1, false=1)
    """
    true_labels, true_count = connected_components(reference)
    predicted_labels, predicted_count = connected_components(prediction)
    shared = prediction & reference
    found = np.unique(true_labels[shared]).size
    matched = np.unique(predicted_labels[shared]).size
    return Lesions(found, true_count - found, predicted_count - matched)


def lesion_f1(lesions: Lesions) -> float:
    r"""Lesion-wise F1: $2 TP / (2 TP + FP + FN)$ over components; empty sides as for Dice.

    TP and FN are components of the reference, FP components of the prediction, as in the ISLES challenge.

    Example:
        >>> lesion_f1(Lesions(found=1, missed=1, false=1))
        0.5

    References:
        Hernandez Petzsche et al., "ISLES 2022", Scientific Data 2022.
    """
    tp, fp, fn = lesions.found, lesions.false, lesions.missed
    return overlap_score(2 * tp, 2 * tp + fp + fn, outcome(tp + fp, tp + fn))


def volume_ml(voxels: int, spacing_mm: Steps) -> float:
    """Turn a number of voxels into millilitres.

    Example:
        >>> volume_ml(500, (1.0, 1.0, 2.0))
        1.0
    """
    return voxels * voxel_size(spacing_mm) / 1000.0
