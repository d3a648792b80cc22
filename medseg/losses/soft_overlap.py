"""Overlaps that are metrics: their only minimum is p = g, for labels that are fractions as for those that are not."""

from __future__ import annotations

from medseg.losses.comparison import Comparison
from medseg.losses.table import loss
from medseg.losses.tversky import overlap_loss
from medseg.types import PerClass


@loss(
    family="region",
    paper="Wang et al. 2023, Dice semimetric losses: optimizing the Dice score with soft labels, arXiv 2303.16296 "
    "(compatible Tversky loss)",
    batch=False,
    soft=True,
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def compatible_tversky(x: Comparison, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1e-5) -> PerClass:
    """Tversky for labels that are fractions: averaged annotators, a teacher's probabilities, resampled masks.

    Equation:
        1 - (TP + s) / (TP + α FP + β FN + s),
        TP = (Σp + Σg - Σ|p - g|) / 2 = Σ min(p, g),  FP = Σp - TP,  FN = Σg - TP

    Use: Soft labels. With hard ones it is tversky; α = β = 1/2 is dice(soft_target=True), α = β = 1 jaccard_metric.

    Known trouble: As tversky.

    Public code: The authors' JDTLoss agrees; with its defaults it sums over the batch (here batch=True) and leaves out
    absent classes if labels are hard (here absent="ignore").

    Args:
        alpha: Price of a false positive.
        beta: Price of a false negative.
    """
    excess = x.sum_p - x.sum_g
    fp, fn = ((x.sum_abs + sign * excess).clamp_min(0) / 2 for sign in (1, -1))
    return overlap_loss(x.sum_p - fp, fp, fn, alpha=alpha, beta=beta, smooth=smooth)


@loss(
    family="region",
    paper="Wang et al. 2023, Jaccard metric losses: optimizing the Jaccard index with soft labels, arXiv 2302.05666",
    batch=False,
    soft=True,
    handles=("imbalance", "missing"),
    range="[0, 1]",
)
def jaccard_metric(x: Comparison, *, smooth: float = 1e-5) -> PerClass:
    """Jaccard for labels that are fractions: a true distance between prediction and target.

    Equation:
        1 - (TP + s) / (TP + FP + FN + s), the sums of compatible_tversky: (Σp + Σg - Σ|p-g|) / (Σp + Σg + Σ|p-g|)

    Use: Soft labels, where the score of record is the IoU. With hard ones it is jaccard.

    Known trouble: As jaccard.

    Public code: The authors' JDTLoss agrees; see compatible_tversky.
    """
    return compatible_tversky(x, alpha=1.0, beta=1.0, smooth=smooth)
