"""Compound losses: published sums under their published names; any other sum is an expression."""

from __future__ import annotations

from typing import Any, Literal

import torch

from medseg.losses.comparison import Comparison
from medseg.losses.distribution import cross_entropy, topk_cross_entropy, yes_and_no
from medseg.losses.focal import focal
from medseg.losses.generalized import generalized_dice
from medseg.losses.knobs import Share, Weights
from medseg.losses.reduction import (
    class_factor,
    class_vector,
    mean_over_classes,
    mean_over_voxels,
    power,
    ratio,
    reduced,
)
from medseg.losses.region import dice
from medseg.losses.table import Reduced, loss
from medseg.losses.tversky import tversky


@loss(
    family="compound",
    paper="Isensee et al. 2021, nnU-Net, Nature Methods 18, arXiv 1809.10486",
    parts=(dice, cross_entropy),
    soft="soft_target",
    handles=("imbalance", "missing"),
)
def dice_ce(x: Comparison, *, lambda_dice: float = 1.0, lambda_ce: float = 1.0, **knobs: Any) -> Reduced:
    """Dice plus cross-entropy: the field's default.

    Equation:
        λ_d dice + λ_c cross_entropy

    Use: First. nnU-Net's preset is dice_ce(batch=True, include_background=False).

    Known trouble: Very small structures may still be missed; see batch, focal_tversky, blob.

    Public code: nnU-Net agrees (its value is 1 less). MONAI agrees, except that with sigmoid=True and several channels
    its cross-entropy silently is a softmax one, and include_background does not reach it.
    """
    return lambda_dice * reduced(dice, x, knobs) + lambda_ce * reduced(cross_entropy, x, knobs)


@loss(
    family="compound",
    paper="MONAI's DiceFocalLoss; Zhu et al. 2019, AnatomyNet, arXiv 1808.05238",
    parts=(dice, focal),
    soft="soft_target",
    handles=("imbalance", "small", "missing"),
)
def dice_focal(x: Comparison, *, lambda_dice: float = 1.0, lambda_focal: float = 1.0, **knobs: Any) -> Reduced:
    """Dice plus focal: dice_ce that spends less on easy background.

    Equation:
        λ_d dice + λ_f focal

    Use: Small organs.

    Known trouble: As focal.

    Public code: MONAI agrees with sigmoids; with softmax=True its focal part is still sigmoid (#8242).
    """
    return lambda_dice * reduced(dice, x, knobs) + lambda_focal * reduced(focal, x, knobs)


@loss(
    family="compound",
    paper="MONAI's GeneralizedDiceFocalLoss",
    parts=(generalized_dice, focal),
    handles=("imbalance", "small", "missing"),
)
def generalized_dice_focal(
    x: Comparison, *, lambda_gdl: float = 1.0, lambda_focal: float = 1.0, **knobs: Any
) -> Reduced:
    """Generalised Dice plus focal.

    Equation:
        λ_g generalized_dice + λ_f focal

    Use: Organs of very different size.

    Known trouble: As generalized_dice.

    Public code: MONAI agrees with sigmoids; with softmax its focal part is still sigmoid.
    """
    return lambda_gdl * reduced(generalized_dice, x, knobs) + lambda_focal * reduced(focal, x, knobs)


@loss(
    family="compound",
    paper="Isensee et al. 2021, nnU-Net, arXiv 1809.10486",
    parts=(dice, topk_cross_entropy),
    handles=("imbalance", "missing"),
)
def dice_topk(x: Comparison, *, lambda_dice: float = 1.0, lambda_topk: float = 1.0, **knobs: Any) -> Reduced:
    """Dice plus the cross-entropy of the worst voxels.

    Equation:
        λ_d dice + λ_t topk_cross_entropy

    Use: Hard borders in clean labels.

    Known trouble: Follows label noise.

    Public code: nnU-Net agrees (its value is 1 less).
    """
    return lambda_dice * reduced(dice, x, knobs) + lambda_topk * reduced(topk_cross_entropy, x, knobs)


@loss(
    family="compound",
    paper="Taghanaki et al. 2019, Combo loss: handling input and output imbalance in multi-organ segmentation, "
    "arXiv 1805.02798",
    handles=("imbalance", "missing"),
    range="[-(1 - α), ∞)",
)
def combo(
    x: Comparison,
    *,
    alpha: Share = 0.5,
    beta: Share = 0.5,
    smooth: float = 1.0,
    class_reduction: Literal["mean", "sum"] = "mean",
    include_background: bool = True,
    batch: bool = False,
    absent: Literal["keep", "ignore"] = "keep",
) -> Reduced:
    """A weighed one-versus-rest cross-entropy minus the Dice score.

    Equation:
        -α/N Σ [β g log p + (1 - β)(1 - g) log(1 - p)] - (1 - α) DSC

    Use: Where false negatives and false positives in the voxels have a known price.

    Known trouble: Negative by design: its minimum is -(1 - α).

    Public code: No public port agrees with the paper: the author's has the background term's sign wrong, a tutorial's
    weighs it with α (1 - α), another puts β on the background.

    Args:
        alpha: Share of the cross-entropy.
        beta: Price of a missed positive, 1 - beta that of a false one.
    """
    error = mean_over_voxels(-yes_and_no(x, beta, 1 - beta), x)
    knobs = {"smooth_nr": smooth, "smooth_dr": smooth, "batch": batch, "absent": absent}
    knobs["include_background"] = include_background
    score = reduced(dice, x, knobs, bend=lambda loss_: 1 - loss_, class_reduction=class_reduction)
    return alpha * error - (1 - alpha) * score


@loss(
    family="compound",
    paper="Wong et al. 2018, 3D segmentation with exponential logarithmic loss for highly unbalanced object sizes, "
    "arXiv 1809.00076",
    handles=("imbalance", "small", "missing"),
)
def exp_log(
    x: Comparison,
    *,
    w_dice: float = 0.8,
    w_ce: float = 0.2,
    gamma_dice: float = 0.3,
    gamma_ce: float = 0.3,
    smooth: float = 1.0,
    class_weight: Weights = None,
    include_background: bool = True,
    batch: bool = False,
    absent: Literal["keep", "ignore"] = "keep",
) -> Reduced:
    """Powers of the logarithms of Dice and of p: presses hardest where either is small, and again near perfection.

    Equation:
        w_D mean_c (-ln Dice_c)^γ_D + w_C mean_x w_y (-ln p_y)^γ_C,  w_c = √(Σ f / f_c)

    Use: Organs whose sizes differ by orders of magnitude.

    Known trouble: The slope at a perfect voxel is infinite in theory (bounded here); the AnatomyNet authors report
    poor results. Take class_weight from the training set; without it the batch's volumes serve.

    Public code: SegLossOdyssey takes the power of the mean Dice and leaves the cross-entropy without one.

    Args:
        w_dice: Weight of the Dice term.
        w_ce: Weight of the cross-entropy term.
        gamma_dice: Exponent of -ln Dice.
        gamma_ce: Exponent of -ln p.
        class_weight: The w_c, one number per class (per channel in the sigmoid modes, for its positives).
    """
    knobs = {"smooth_nr": smooth, "smooth_dr": smooth, "batch": batch, "absent": absent}
    knobs["include_background"] = include_background
    overlap = reduced(dice, x, knobs, bend=lambda loss_: power(-torch.log1p(-loss_.clamp_max(MOST)), gamma_dice))
    voxels = power(-x.log_p_true, gamma_ce) * _rarity(x, class_weight)
    return w_dice * overlap + w_ce * mean_over_voxels(voxels, x)


MOST = 1 - 1e-7
"""The largest loss whose Dice still has a logarithm in single precision."""


def _rarity(x: Comparison, class_weight: Weights) -> torch.Tensor:
    """√(Σ f / f_c) of each voxel's true class; in the sigmoid modes the two classes are yes and no, in any channel."""
    if class_weight is not None and x.mode == "multiclass":
        return class_factor(class_vector(class_weight, x), x)
    pooled = x.over_batch()
    if x.mode == "multiclass":
        return class_factor(ratio(pooled.voxels, pooled.sum_g).sqrt(), x)
    if class_weight is not None:
        return torch.where(x.onehot > 0, class_factor(class_vector(class_weight, x), x), x.onehot.new_ones(()))
    positive, total = pooled.sum_g.sum(), pooled.voxels.sum()
    yes, no = (ratio(total, each).sqrt().to(x.dtype) for each in (positive, total - positive))
    return torch.where(x.onehot > 0, yes, no)


@loss(
    family="compound",
    paper="Zhu et al. 2019, AnatomyNet: deep learning for fast and fully automated whole-volume segmentation of head "
    "and neck anatomy, arXiv 1808.05238",
    batch=True,
    handles=("imbalance", "small", "missing"),
)
def anatomynet(
    x: Comparison,
    *,
    lam: float = 0.5,
    gamma: float = 2.0,
    class_weight: Weights = None,
    smooth: float = 1e-5,
) -> Reduced:
    """Dice added up over the classes plus focal on the structures: made for heads and necks with missing annotations.

    Equation:
        Σ_c [1 - TP / (TP + FN/2 + FP/2)] - λ/N Σ_i Σ_c g (1 - p)^γ log p

    Use: Many organs, not all annotated in every case: pass ``class_mask`` (b, c) to the call.

    Known trouble: Grows with the number of classes. Sums run over the batch, as the paper trains on whole volumes one
    by one.

    Public code: The published AnatomyNet.py never calls its focal loss, the baseline script is another loss. A
    tutorial's Dice + focal sums Dice over the batch and goes negative.

    Args:
        lam: Weight of focal; the paper tries 0.1, 0.5 and 1.
        gamma: As in focal.
        class_weight: One number per class, on both parts.
    """
    overlap = mean_over_classes(
        tversky(x, alpha=0.5, beta=0.5, smooth=smooth), x, weight=class_weight, class_reduction="sum"
    )
    values = focal(x, gamma=gamma)
    if x.mode != "multiclass":  # the structures only: channels have no voxels of their own for "not this one"
        values = values * x.onehot * x.shape[1]
    return overlap + lam * mean_over_voxels(values, x, weight=class_weight)
