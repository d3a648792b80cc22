"""Losses for labels that are partly wrong: between cross-entropy, which believes every voxel, and the plain error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.focal import doubt
from medseg.losses.table import loss
from medseg.types import PerClass, PerVoxel

REVERSED = 4.0
"""Minus the paper's stand-in for log 0 in the reversed cross-entropy."""


@loss(
    family="distribution",
    paper="Zhang and Sabuncu 2018, Generalized cross entropy loss for training deep neural networks with noisy labels, "
    "arXiv 1805.07836",
    alone=False,
)
def generalized_cross_entropy(x: Comparison, *, q: float = 0.7, truncation: float = 0.0) -> PerVoxel:
    """Cross-entropy bent towards the absolute error, so that a voxel the network cannot believe pulls less.

    Equation:
        (1 - p_t^q) / q;  where p_t <= k: (1 - k^q) / q, a constant

    Use: Annotations with mistakes, beside a region loss: ``dice + generalized_cross_entropy``. q near 0 is
    cross-entropy, q = 1 the absolute error.

    Known trouble: It mistrusts what is rare as it does what is wrong: alone it never finds a small organ. With a
    truncation above an untrained network's p nothing is learnt at all, so begin without.

    Public code: PyMIC agrees. The author's code subtracts the constant (1 - k^q) / q from every voxel and decides once
    per epoch, over the training set, which samples are truncated.

    Args:
        q: In (0, 1]: how far towards the absolute error.
        truncation: k, the probability up to which a voxel is given up; 0 gives none up.
    """
    if not 0 < q <= 1 or not 0 <= truncation < 1:
        raise ValueError(f"q must be in (0, 1] and truncation in [0, 1), got {q} and {truncation}")
    values = -torch.expm1(q * x.log_p_true) / q
    if truncation == 0:
        return values
    return torch.where(x.log_p_true > math.log(truncation), values, (1 - truncation**q) / q)


@loss(
    family="distribution",
    paper="Wang et al. 2019, Symmetric cross entropy for robust learning with noisy labels, arXiv 1908.06112",
    alone=False,
)
def symmetric_cross_entropy(x: Comparison, *, alpha: float = 0.1, beta: float = 1.0) -> PerVoxel:
    """Cross-entropy plus the same with target and prediction exchanged, which bounds what a wrong label can cost.

    Equation:
        -α log p_t + β 4 (1 - p_t),  for -Σ_c p_c log g_c is -A (1 - p_t) with log 0 put at A = -4

    Use: Annotations with mistakes, beside a region loss: alpha for learning, beta for forgiving. The paper has 0.1 and
    1 for ten classes, 6 and 0.1 for a hundred.

    Known trouble: With the default alpha and alone it never finds a small organ.

    Public code: The authors' and its ports clip the target at 1e-4, which makes A = log 1e-4 = -9.2 and beta worth 2.3
    times the paper's.

    Args:
        alpha: Weight of the cross-entropy.
        beta: Weight of the reversed one.
    """
    return -alpha * x.log_p_true + beta * REVERSED * doubt(x.log_p_true)


@loss(
    family="region",
    paper="Wang et al. 2020, A noise-robust framework for automatic segmentation of COVID-19 pneumonia lesions from CT "
    "images, IEEE TMI 39(8)",
    batch=False,
    soft=True,
    handles=("imbalance", "missing"),
    range="[0, ∞); [0, 1] for γ = 2",
)
def noise_robust_dice(x: Comparison, *, gamma: float = 1.5, smooth: float = 1e-5) -> PerClass:
    """Dice whose errors are not squared, so that single wrong labels weigh less.

    Equation:
        Σ |p - g|^γ / (Σ p² + Σ g² + s)

    Use: In place of dice_squared, which it is for γ = 2, where masks are partly wrong. γ = 1 is an absolute error
    over the sizes.

    Known trouble: As dice; near γ = 1 it learns small structures slowly.

    Public code: PyMIC divides by Σ p + Σ g, with which γ = 2 is no Dice.

    Args:
        gamma: In [1, 2]; the smaller, the more is forgiven.
        smooth: Added to the denominator.
    """
    if not 1 <= gamma <= 2:
        raise ValueError(f"gamma must be in [1, 2], got {gamma}")

    def sums(p: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
        terms = torch.stack([(p - g).abs() ** gamma, p * p + g * g])
        return (terms if weight is None else terms * weight).sum(-1)

    found: PerClass = x.pool(x.sum_of(sums))
    return found[0] / (found[1] + smooth)
