"""Was it found at all: lesions matched by touch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from medseg.space.components import connected_components


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
