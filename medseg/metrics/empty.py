"""The hard cases, decided once: an organ that is missed, invented, or rightly left out.

========== ============ ============ ========================================= =======================
outcome    reference    prediction   overlap (Dice, IoU, precision, recall,    distances (HD, HD95,
                                     NSD, lesion F1)                           ASSD) in mm
========== ============ ============ ========================================= =======================
found      has it       overlaps it  as computed; 0/0 cannot happen            as computed
missed     has it       elsewhere    as computed, which is 0 but for the NSD   as computed
missed     has it       lacks it     0                                         diagonal of the image
false      lacks it     has it       0                                         diagonal of the image
absent     lacks it     lacks it     1, it agrees                              0, it agrees
========== ============ ============ ========================================= =======================

No score is ever ``nan``, infinite or left out of a mean, so a model cannot gain by missing an organ. The diagonal of
the image is longer than any distance between two of its voxels: a missed organ ranks behind every found one. Reports
show how often each outcome occurred, and the mean over the cases whose reference has the organ beside the mean over
all cases, for organs that are mostly absent.

Peers differ: MONAI 1.6 leaves an invented organ out of its mean Dice and aggregates the HD95 of a missed organ to 0.0,
which looks perfect; deepmind's surface-distance answers a missed organ with infinity or nan, by the measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum


class Outcome(str, Enum):
    """What became of one organ in one case."""

    FOUND = "found"
    MISSED = "missed"
    FALSE = "false"
    ABSENT = "absent"


def outcome(predicted_voxels: int, reference_voxels: int, shared_voxels: int) -> Outcome:
    """Name what became of an organ from the sizes of its prediction, of its reference, and of what they share.

    Example:
        >>> outcome(0, 812, 0), outcome(700, 812, 0)
        (<Outcome.MISSED: 'missed'>, <Outcome.MISSED: 'missed'>)
    """
    if reference_voxels:
        return Outcome.FOUND if shared_voxels else Outcome.MISSED
    return Outcome.FALSE if predicted_voxels else Outcome.ABSENT


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    r"""Measure the diagonal of the image, $\sqrt{\sum_i (n_i s_i)^2}$, outer edges of the voxels included.

    Example:
        >>> image_diagonal_mm((3, 4, 1), (1.0, 1.0, 12.0))
        13.0
    """
    return math.hypot(*(count * step for count, step in zip(shape, spacing_mm, strict=True)))
