"""Region losses: ratios of sums over a structure, from Dice to Matthews; all of them read streamed statistics."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Share
from medseg.losses.reduction import power, ratio, reduced
from medseg.losses.table import Reduced, loss
from medseg.types import PerClass


@loss(
    family="region",
    paper="Drozdzal et al. 2016, The importance of skip connections in biomedical image segmentation, arXiv 1608.04117",
    batch=False,
    soft="soft_target",
    handles=("imbalance", "missing"),
    range="[0, 1]",
)
def dice(
    x: Comparison,
    *,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared: bool = False,
    soft_target: bool = False,
) -> PerClass:
    """One minus twice the overlap over the sum of the sizes: the score papers report, made differentiable.

    Equation:
        1 - (2 Σ p g + s) / (Σ p + Σ g + s)

    Use: The first choice for organs of any size, together with a voxel loss (`dice_ce`) that gives it a gradient while
    the prediction is still far off.

    Known trouble: A class absent from the patch costs about 1 whatever the network does; absent="ignore" leaves it
    out. Fractional targets have their minimum at p = 1, not at p = g: set soft_target=True or use dice_squared.

    Public code: MONAI and nnU-Net agree (nnU-Net reports the value minus 1). Summing in fp16 overflows (smp #463).

    Args:
        squared: Sum squares in the denominator, as dice_squared does.
        soft_target: Count the overlap as (Σp + Σg - Σ|p - g|) / 2, whose minimum is p = g for fractions too.
    """
    tp, p, g = (x.tp_with_squares, x.sum_p2, x.sum_g2) if squared else (x.tp, x.sum_p, x.sum_g)
    if soft_target:
        tp = (x.sum_p + x.sum_g - x.sum_abs) / 2
    return 1 - (2 * tp + smooth_nr) / (p + g + smooth_dr)


@loss(
    family="region",
    paper="Milletari et al. 2016, V-Net, arXiv 1606.04797",
    batch=False,
    soft=True,
    handles=("imbalance", "missing"),
    range="[0, 1]",
)
def dice_squared(x: Comparison, *, smooth_nr: float = 1e-5, smooth_dr: float = 1e-5) -> PerClass:
    """Dice with squares in the denominator, which pulls less on voxels that are nearly right.

    Equation:
        1 - (2 Σ p g + s) / (Σ p² + Σ g² + s)

    Use: Where targets are fractions (resampled or averaged labels): the minimum is at p = g.

    Known trouble: As dice.

    Public code: MONAI squared_pred agrees. SegLossOdyssey's square=True squares the products tp, fp and fn instead.
    """
    return dice(x, smooth_nr=smooth_nr, smooth_dr=smooth_dr, squared=True)


@loss(
    family="region",
    paper="Kodym et al. 2018, Segmentation of head and neck organs at risk using CNN with batch Dice loss, "
    "arXiv 1812.02427",
    parts=(dice,),
    soft="soft_target",
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def batch_dice(x: Comparison, *, batch: bool = True, **knobs: Any) -> Reduced:
    """Dice of the whole batch taken as one volume, over all ranks, so a patch without the organ does no harm.

    Equation:
        1 - (2 Σ_n Σ p g + s) / (Σ_n Σ p + Σ_n Σ g + s)

    Use: Patch-wise training where many patches miss an organ.

    Known trouble: The value depends on the batch size; with one sample on one GPU it is dice.

    Public code: MONAI batch=True agrees on one process. nnU-Net once gathered the sums of the ranks without adding
    them (#1354).

    Args:
        batch: Whether it is what its name says, or dice.
    """
    return reduced(dice, x, {**knobs, "batch": batch})


@loss(
    family="region",
    paper="Rahman and Wang 2016, Optimizing intersection-over-union in deep neural networks, ISVC",
    batch=False,
    handles=("imbalance", "missing"),
    range="[0, 1]",
)
def jaccard(x: Comparison, *, smooth_nr: float = 1e-5, smooth_dr: float = 1e-5) -> PerClass:
    """One minus intersection over union: dice that punishes a poor overlap harder.

    Equation:
        1 - (TP + s) / (TP + FP + FN + s)

    Use: Where the score of record is the IoU.

    Known trouble: As dice, whose monotone function it is: J = D / (2 - D).

    Public code: MONAI jaccard=True agrees when given s / 2.
    """
    return 1 - (x.tp + smooth_nr) / (x.tp + x.fp + x.fn + smooth_dr)


@loss(
    family="region",
    paper="Jadon 2020, A survey of loss functions for semantic segmentation, arXiv 2006.14822, Eq. 32",
    parts=(dice,),
    handles=("imbalance", "missing"),
    range="[0, log cosh 1 ≈ 0.4338]",
)
def log_cosh_dice(x: Comparison, *, per_class: bool = False, **knobs: Any) -> Reduced:
    """Dice bent to be flat near its minimum.

    Equation:
        log cosh(dice)

    Use: Where plain dice oscillates late in training.

    Known trouble: Its gradient vanishes with the loss (about L²/2): slow to finish.

    Public code: The survey lists it twice; its code takes the log cosh of the averaged loss, as here. per_class=True
    bends every class's loss first, which is ours.

    Args:
        per_class: Bend each class before averaging.
    """
    return reduced(dice, x, knobs, bend=log_cosh) if per_class else log_cosh(reduced(dice, x, knobs))


def log_cosh(values: Tensor) -> Tensor:
    """Take log cosh x for x of at least 0 without overflow, as x + softplus(-2x) - log 2."""
    return values + torch.nn.functional.softplus(-2 * values) - math.log(2)


@loss(
    family="region",
    paper="Brosch et al. 2015, Deep convolutional encoder networks for multiple sclerosis lesion segmentation, MICCAI",
    batch=False,
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def sensitivity_specificity(x: Comparison, *, r: Share = 0.05, smooth: float = 1e-5) -> PerClass:
    """Squared errors on the structure and beside it, each averaged over its own voxels, then weighed.

    Equation:
        r Σ (g - p)² g / (Σ g + s) + (1 - r) Σ (g - p)² (1 - g) / (Σ (1 - g) + s)

    Use: Small lesions; the authors found r from 0.01 to 0.1 alike.

    Known trouble: For an absent class only false positives cost. The small default r asks for few false positives.

    Public code: SegLossOdyssey agrees. Jadon's survey prints the score r SE + (1 - r) SP, which descends the wrong
    way.

    Args:
        r: Share of the error on the structure (sensitivity).
        smooth: Added to both denominators.
    """
    inside = ratio(x.error_inside, x.sum_g + smooth)
    outside = ratio(x.error_outside, x.voxels - x.sum_g + smooth)
    return r * inside + (1 - r) * outside


@loss(
    family="region",
    paper="Abhishek and Hamarneh 2021, Matthews correlation coefficient loss for deep convolutional networks, "
    "arXiv 2010.13454, Eq. 3-5",
    batch=False,
    handles=("imbalance", "missing"),
    range="[0, 2]",
)
def mcc(x: Comparison, *, eps: float = 1e-5) -> PerClass:
    """One minus Matthews' correlation: the only overlap here that also counts true negatives.

    Equation:
        1 - (TP TN - FP FN) / √((TP + FP) (TP + FN) (TN + FP) (TN + FN) + ε)

    Use: Where the background matters as much as the structure, as in skin lesions that fill the image.

    Known trouble: An absent class costs 1 with a weak gradient, unless nothing at all is predicted.

    Public code: The author's code and MONAI agree; there the product of four sums overflows single precision above
    3e9.

    Args:
        eps: Added under the root.
    """
    tp, fp, fn, tn = x.sums("overlap")
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    # a factor is 0 only where the numerator is: 1 / √ε would blow its rounding up to a gradient
    root = torch.where(product > 0, power(product.clamp_min(0) + eps, 0.5), 0)
    correlation = ratio(tp * tn - fp * fn, root)
    return torch.where((fp == 0) & (fn == 0), 0 * correlation, 1 - correlation)
