"""Dice over all classes at once: weighed by volume (Sudre), penalised (Yang), or by kinship of classes (Fidon)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.reduction import class_vector, classes_that_count, ratio, reduced
from medseg.losses.table import Reduced, loss
from medseg.types import PerClass, PerSample


@loss(
    family="region",
    paper="Sudre et al. 2017, Generalised Dice overlap as a deep learning loss function for highly unbalanced "
    "segmentations, arXiv 1707.03237",
    batch=False,
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def generalized_dice(
    x: Comparison,
    *,
    w_type: Literal["square", "simple", "uniform"] | Sequence[float] = "square",
    absent_weight: Literal["max", "zero"] = "max",
    include_background: bool = True,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
) -> PerSample:
    """One Dice for all classes, in which a small structure weighs as much as a large one.

    Equation:
        1 - (2 Σ_c w_c TP_c + s) / (Σ_c w_c (Σp_c + Σg_c) + s),  w_c = 1 / (Σg_c)²

    Use: Classes of very different volume.

    Known trouble: A class of a few voxels rules the whole loss. In a binary mode the weight cancels (up to s) and an
    empty target costs nothing. The weights shrink with volume squared, so s is not small for large structures.

    Public code: MONAI agrees. 1 / (n + 1e-10)², as in SegLossOdyssey, makes an absent class the whole loss.

    Args:
        w_type: 1/n² (square), 1/n (simple), 1 (uniform), or one number per class.
        absent_weight: What an absent class weighs: the largest weight of the others (max), or nothing (zero).
    """
    counts = classes_that_count(x, include_background=include_background)
    w = _volume_weights(x.sum_g, w_type, absent_weight, counts, x) * counts
    errors = (w * (x.fp + x.fn)).sum(1) + smooth_dr - smooth_nr
    return ratio(errors, (w * (x.sum_p + x.sum_g)).sum(1) + smooth_dr)


def _volume_weights(
    volumes: PerClass, w_type: str | Sequence[float], absent_weight: str, counts: PerClass, x: Comparison
) -> PerClass:
    """Weights per sample and class; constants as far as gradients go."""
    if not isinstance(w_type, str):
        return class_vector(w_type, x).expand_as(volumes)
    if w_type == "uniform":
        return torch.ones_like(volumes)
    present = (volumes > 0) & (counts > 0)
    weights = torch.where(present, volumes.clamp_min(1e-30) ** (-2 if w_type == "square" else -1), 0)
    if absent_weight == "max":
        weights = torch.where(volumes > 0, weights, weights.amax(1, keepdim=True))
    return weights


@loss(
    family="region",
    paper="Yang et al. 2019, Major vessel segmentation on X-ray coronary angiography, MIDL",
    parts=(generalized_dice,),
    handles=("imbalance", "small", "missing"),
    range="[0, 1]",
)
def penalty_generalized_dice(x: Comparison, *, k: float = 2.5, **knobs: Any) -> Reduced:
    """Generalised Dice bent upwards, so that a middling overlap still costs nearly as much as none.

    Equation:
        1 - GD / (1 + k (1 - GD))

    Use: As generalized_dice, where false positives and negatives must both be pressed harder.

    Known trouble: As generalized_dice.

    Public code: SegLossOdyssey puts the negative score into the formula, which breaks it.

    Args:
        k: Strength of the penalty; 0 is generalized_dice.
    """
    plain = reduced(generalized_dice, x, knobs)
    return 1 - (1 - plain) / (1 + k * plain)


@loss(
    family="region",
    paper="Fidon et al. 2017, Generalised Wasserstein Dice score for imbalanced multi-class segmentation using "
    "holistic convolutional networks, arXiv 1707.00478",
    modes=("multiclass", "binary"),
    batch=False,
    handles=("imbalance",),
    range="[0, 1]",
)
def generalized_wasserstein_dice(
    x: Comparison,
    *,
    dist_matrix: Sequence[Sequence[float]] | None = None,
    background: int = 0,
    weighting: Literal["default", "GDL"] = "default",
    smooth: float = 1e-5,
) -> PerSample:
    """Dice in which confusing two kindred classes costs less than confusing strangers.

    Equation:
        W_i = Σ_l M[y_i, l] p_il;  TP = Σ_{y_i ≠ b} (M[y_i, b] - W_i);  1 - (2 TP + s) / (2 TP + Σ_i W_i + s)

    Use: Nested or related classes, such as tumour core and oedema: say how far apart they are.

    Known trouble: Without a matrix all classes are equally far apart, and nothing is gained over dice.

    Public code: The author's code and MONAI agree; both ask for a matrix.

    Args:
        dist_matrix: Distance between each pair of classes, C rows of C, scaled here so that the largest is 1;
            None for 1 between any two.
        background: The class whose hits do not count as true positives.
        weighting: default, or GDL to weigh each class by 1 / (its volume + 1), background included.
    """
    distances = _distances(dist_matrix, x)
    if not 0 <= background < len(distances):
        raise ValueError(f"background must be a class from 0 to {len(distances) - 1}, got {background}")
    volumes, errors = _wasserstein(distances, x, equidistant=dist_matrix is None)
    if weighting == "GDL":
        alpha = 1 / (volumes + 1)
        hits = (alpha * (volumes - errors)).sum(1)
        total = (alpha * (2 * volumes - errors)).sum(1)
    else:
        others = [c for c in range(len(distances)) if c != background]
        hits = (distances[:, background] * volumes - errors)[:, others].sum(1)
        total = 2 * hits + errors.sum(1)
    return 1 - (2 * hits + smooth) / (total + smooth)


def _distances(matrix: Sequence[Sequence[float]] | None, x: Comparison) -> Tensor:
    """The class distances as a tensor with largest entry 1."""
    classes = max(2, x.shape[1])
    if matrix is None:
        return 1 - torch.eye(classes, dtype=x.dtype, device=x.raw.device)
    distances = torch.as_tensor(matrix, dtype=x.dtype, device=x.raw.device)
    if distances.shape != (classes, classes) or not bool(distances.max() > 0):
        raise ValueError(
            f"dist_matrix must hold {classes} rows of {classes} distances, not all 0, got {list(distances.shape)}"
        )
    return distances / distances.max()


def _wasserstein(distances: Tensor, x: Comparison, *, equidistant: bool) -> tuple[Tensor, Tensor]:
    """Voxels and Σ W of each true class, (b, classes); a binary channel has the classes background and structure."""
    if x.mode == "binary":
        volumes = torch.cat([x.voxels - x.sum_g, x.sum_g], 1)
        false = torch.cat([distances[0, 1] * x.fp, distances[1, 0] * x.fn], 1)
        right = torch.cat([distances[0, 0] * x.tn, distances[1, 1] * x.tp], 1)
        return volumes, false + right
    if equidistant:  # W = 1 - p at the label, which needs no matrix of classes by classes
        return x.sum_g, x.fn
    return x.sum_g, x.pool((distances * x.confusion).sum(2))
