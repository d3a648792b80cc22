"""The Tversky family: overlaps that price false positives and false negatives apart, and their powers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Share
from medseg.losses.reduction import power, reduced
from medseg.losses.table import Reduced, loss
from medseg.types import PerClass


@loss(
    family="region",
    paper="Salehi et al. 2017, Tversky loss function for image segmentation using 3D fully convolutional deep "
    "networks, arXiv 1706.05721",
    batch=False,
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def tversky(x: Comparison, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1e-5) -> PerClass:
    """Dice in which a false negative may cost more than a false positive.

    Equation:
        1 - (TP + s) / (TP + α FP + β FN + s)

    Use: Small structures that the network tends to miss; raise beta.

    Known trouble: Over-segmentation if beta is large. Never sum over softmax classes first: there Σ FP = Σ FN and the
    two knobs cancel.

    Public code: MONAI and SegLossOdyssey agree. kornia's micro average removes the asymmetry; Jadon's survey swaps the
    roles; tversky(0.5, 0.5, s) is dice with 2s.

    Args:
        alpha: Price of a false positive.
        beta: Price of a false negative.
    """
    return overlap_loss(x.tp, x.fp, x.fn, alpha=alpha, beta=beta, smooth=smooth)


def overlap_loss(tp: Tensor, fp: Tensor, fn: Tensor, *, alpha: float, beta: float, smooth: float) -> Tensor:
    """One minus the Tversky index, written so that a perfect prediction gives exactly 0 and never less."""
    errors = alpha * fp.clamp_min(0) + beta * fn.clamp_min(0)
    return errors / (tp + errors + smooth)


@loss(
    family="region",
    paper="Hashemi et al. 2018, Asymmetric loss functions and deep densely connected networks for highly imbalanced "
    "medical image segmentation, arXiv 1803.11078",
    batch=False,
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def asymmetric_similarity(x: Comparison, *, beta: float = 1.5, smooth: float = 1e-5) -> PerClass:
    """The F-beta score as a loss: a missed voxel costs β² times a superfluous one.

    Equation:
        1 - (1 + β²) TP / ((1 + β²) TP + β² FN + FP)

    Use: As tversky, with one knob in the language of the F-score.

    Known trouble: As tversky, which it is with α = 1 / (1 + β²) and β² / (1 + β²).

    Public code: SegLossOdyssey agrees.

    Args:
        beta: Weight of recall against precision; 1 is dice.
    """
    share = beta**2 / (1 + beta**2)
    return tversky(x, alpha=1 - share, beta=share, smooth=smooth)


@loss(
    family="region",
    paper="Abraham and Khan 2019, A novel focal Tversky loss function with improved attention U-Net for lesion "
    "segmentation, arXiv 1810.07842, Eq. 4",
    parts=(tversky,),
    handles=("imbalance", "small", "missing"),
    range="[0, 1], or [0, C] with class_reduction='sum'",
)
def focal_tversky(
    x: Comparison,
    *,
    gamma: float = 4 / 3,
    class_reduction: Literal["mean", "sum"] = "mean",
    **knobs: Any,
) -> Reduced:
    """Tversky to a power per class, which keeps hard classes pulling when the easy ones are done.

    Equation:
        mean_c (1 - TI_c)^(1/γ)

    Use: Small lesions among large organs.

    Known trouble: Three conventions of gamma are about: here (the paper's) the exponent is 1/γ, Yeung's is 1 - γ, and
    some ports write the exponent itself. γ = 4/3 here is 0.75 there and 0.25 for Yeung.

    Public code: The author's Keras code agrees. SegLossOdyssey and smp take the power after averaging the classes (smp
    #734).

    Args:
        gamma: The inverse of the exponent; 1 is tversky.
        class_reduction: mean, or sum as the paper has it.
    """
    if gamma <= 0:
        raise ValueError(f"focal_tversky's gamma must be above 0 (the exponent is 1 / gamma), got {gamma}")
    return reduced(tversky, x, knobs, bend=lambda values: power(values, 1 / gamma), class_reduction=class_reduction)


YEUNG = (
    "Yeung et al. 2022, Unified Focal loss: generalising Dice and cross entropy-based losses to handle class "
    "imbalanced medical image segmentation, arXiv 2102.04525"
)


@loss(family="region", paper=YEUNG, batch=False, handles=("imbalance", "small", "missing"), range="[0, 1]")
def symmetric_focal_tversky(x: Comparison, *, delta: Share = 0.6, gamma: float = 0.5, smooth: float = 1e-7) -> PerClass:
    """Yeung's focal Tversky with background and structures treated alike.

    Equation:
        mean_c (1 - mTI_c)^(1-γ),  mTI = (TP + s) / (TP + δ FN + (1-δ) FP + s)

    Use: As the region half of symmetric_unified_focal.

    Known trouble: The sigmoid modes average a channel with its complement, the paper's two classes.

    Public code: The author's code agrees, but clamps p at its smoothing, so that a perfectly predicted absent class
    costs 1; MONAI inherited this.

    Args:
        delta: Price of a false negative, 1 - delta that of a false positive.
        gamma: In [0, 1); 0 leaves the exponent at 1.
        smooth: Added to TP in both places; with absent classes 1e-5 or more is calmer.
    """
    return _focal_tversky(x, delta, gamma, smooth, background_gamma=gamma)


@loss(family="region", paper=YEUNG, batch=False, handles=("imbalance", "small", "missing"), range="[0, 1]")
def asymmetric_focal_tversky(
    x: Comparison, *, delta: Share = 0.6, gamma: float = 0.5, smooth: float = 1e-7
) -> PerClass:
    """Yeung's focal Tversky where only the structures, not the background, take the power.

    Equation:
        mean over classes of 1 - mTI_0 and (1 - mTI_c)^(1-γ)

    Use: As the region half of asymmetric_unified_focal.

    Known trouble: As symmetric_focal_tversky, which it is for γ = 0.

    Public code: The author's code agrees; MONAI does in its binary form.

    Args:
        delta: Price of a false negative, 1 - delta that of a false positive.
        gamma: In [0, 1); 0 leaves the exponent at 1.
        smooth: Added to TP in both places; with absent classes 1e-5 or more is calmer.
    """
    return _focal_tversky(x, delta, gamma, smooth, background_gamma=0.0)


def _focal_tversky(x: Comparison, delta: float, gamma: float, smooth: float, background_gamma: float) -> Tensor:
    """Powers of 1 - mTI; in the sigmoid modes the mean of a channel and its complement."""
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be at least 0 and less than 1 (the exponent is 1 - gamma), got {gamma}")
    values = overlap_loss(x.tp, x.fp, x.fn, alpha=1 - delta, beta=delta, smooth=smooth)
    if x.mode == "multiclass":
        return torch.cat([power(values[:, :1], 1 - background_gamma), power(values[:, 1:], 1 - gamma)], 1)
    background = overlap_loss(x.tn, x.fn, x.fp, alpha=1 - delta, beta=delta, smooth=smooth)
    return (power(background, 1 - background_gamma) + power(values, 1 - gamma)) / 2
