"""Distribution losses: a penalty per voxel, averaged; all of them read log p at the true class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Extended, Share, Weights
from medseg.losses.ranks import sum_over_ranks
from medseg.losses.reduction import class_factor, class_vector, element_weight, mean_over_voxels, ratio
from medseg.losses.statistics import onehot
from medseg.losses.table import Reduced, loss
from medseg.types import PerVoxel

JADON = "Jadon 2020, A survey of loss functions for semantic segmentation, arXiv 2006.14822"


@loss(family="distribution", paper=f"{JADON}, Eq. 1-2", soft=True)
def bce(x: Comparison, *, pos_weight: float | Sequence[float] | None = None) -> PerVoxel:
    """Cross-entropy of a yes or no per channel.

    Equation:
        -(w g log p + (1 - g) log(1 - p)), averaged over voxels and channels

    Use: Overlapping structures (multilabel), or a single one (binary).

    Known trouble: Dominated by the background; see pos_weight, focal or a compound with dice. In multiclass mode it is
    one-versus-rest on softmax probabilities.

    Public code: torch's binary_cross_entropy_with_logits agrees. Clamping p before the logarithm, as many ports do,
    gives the worst voxels no gradient at all.

    Args:
        pos_weight: Price of a missed positive, one number or one per channel.
    """
    return -yes_and_no(x, 1.0 if pos_weight is None else pos_weight, 1.0)


def yes_and_no(x: Comparison, yes: float | Sequence[float] | Tensor, no: float | Tensor) -> Tensor:
    """Weigh g log p and (1 - g) log(1 - p); per element, or the mean over classes of softmax probabilities."""
    a, b = (_per_channel(value, x) for value in (yes, no))

    def chunk(z: Tensor, truth: Tensor) -> Tensor:
        if x.mode != "multiclass":
            g = truth.to(z.dtype)
            return a * g * F.logsigmoid(z) + b * (1 - g) * F.logsigmoid(-z)
        log_p = F.log_softmax(z, 1)
        g = truth.to(z.dtype) if truth.ndim == z.ndim else onehot(truth, z)
        return x.class_mean(a * g * log_p + b * (1 - g) * log_rest(z, log_p))

    return x.voxelwise(chunk)


def log_rest(z: Tensor, log_p: Tensor) -> Tensor:
    """Log(1 - p) of a softmax, exact also where p rounds to 1.

    Only the largest p can exceed one half; there 1 - p is the sum of the others. Elsewhere log1p(-p) is exact.
    """
    top = z.argmax(1, keepdim=True)
    others = z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - z.logsumexp(1, keepdim=True)
    return torch.log1p(-log_p.exp().scatter(1, top, 0)).scatter(1, top, others)


def _per_channel(value: float | Sequence[float] | Tensor, x: Comparison) -> Tensor:
    """A number, or one per channel, shaped to meet a chunk (b c n)."""
    if isinstance(value, int | float):
        return x.raw.new_tensor(value, dtype=x.dtype)
    return class_vector(value, x).unsqueeze(1)


@loss(family="distribution", paper="Yeung et al. 2022, Unified Focal loss, arXiv 2102.04525, Eq. 2", soft=True)
def cross_entropy(
    x: Comparison,
    *,
    weight: Weights = None,
    label_smoothing: Share = 0.0,
    normalize: Literal["voxels", "weights"] = "voxels",
) -> Reduced:
    """Minus the log-probability of the true class: the default of classification.

    Equation:
        -(1/N) Σ_i Σ_c w_c q_ic log p_ic,  q = (1 - ε) g + ε / C

    Use: Everywhere, together with a region loss: it has a good gradient from the first step on.

    Known trouble: Dominated by the background: alone it misses small organs. In the sigmoid modes it is bce.

    Public code: torch agrees, label smoothing included. Ports that sum over space grow with the patch.

    Args:
        label_smoothing: Share ε of the target spread evenly over the classes.
        normalize: Divide by the number of voxels, or by the sum of their weights.
    """
    if x.mode == "multiclass" and (label_smoothing or (x.soft and weight is not None)):
        values = _smoothed(x, class_vector([1.0] * x.shape[1] if weight is None else weight, x), label_smoothing)
        return mean_over_voxels(values, x, weight=weight, normalize=normalize, weighted=True)
    if label_smoothing:
        values = (label_smoothing / 2 - 1) * x.log_p_true - label_smoothing / 2 * x.log_p_false
        return mean_over_voxels(values, x, weight=weight, normalize=normalize)
    return -mean_over_voxels(x.log_p_true, x, weight=weight, normalize=normalize)  # the sign last: one map less


def _smoothed(x: Comparison, weight: Tensor, smoothing: float) -> Tensor:
    """-Σ w q log p per voxel, the target spread by ``smoothing``."""

    def chunk(z: Tensor, truth: Tensor) -> Tensor:
        log_p = weight.unsqueeze(1) * F.log_softmax(z, 1)
        index = truth.long().unsqueeze(1)
        right = log_p.gather(1, index).squeeze(1) if truth.ndim == 2 else (truth * log_p).sum(1)
        return (smoothing - 1) * right - smoothing * x.class_mean(log_p)

    return x.voxelwise(chunk)


@loss(family="distribution", paper=f"{JADON}, Eq. 2", handles=("imbalance",))
def weighted_cross_entropy(
    x: Comparison,
    *,
    weight: Weights = None,
    pos_weight: float | Sequence[float] | None = None,
    normalize: Literal["weights", "voxels"] = "weights",
) -> Reduced:
    """Cross-entropy in which each class has its price.

    Equation:
        Σ_i w_{y_i} CE_i / Σ_i w_{y_i}; in the sigmoid modes -(β g log p + (1 - g) log(1 - p)), β = pos_weight

    Use: Known class frequencies: take weights from the training set, not from the minibatch.

    Known trouble: Large weights make noisy gradients and over-segmentation.

    Public code: torch's weight= agrees with normalize="weights"; textbooks divide by the number of voxels.

    Args:
        pos_weight: Price of a missed positive in the sigmoid modes.
        normalize: Divide by the sum of the weights, or by the number of voxels.
    """
    if x.mode == "multiclass" and pos_weight is not None:
        raise ValueError("pos_weight has a meaning in the sigmoid modes only. In multiclass mode give weight=[...].")
    values = -x.log_p_true if pos_weight is None else bce(x, pos_weight=pos_weight)
    return mean_over_voxels(values, x, weight=weight, normalize=normalize)


@loss(family="distribution", paper=f"{JADON}, Eq. 3; Xie and Tu 2015, arXiv 1504.06375", handles=("imbalance",))
def balanced_cross_entropy(x: Comparison, *, beta: Share | None = None) -> PerVoxel:
    """Cross-entropy whose prices follow from the batch at hand: every class present weighs the same in total.

    Equation:
        sigmoid: -(β g log p + (1 - β)(1 - g) log(1 - p)), β the share of negatives;
        multiclass: n / (K n_c) CE, K classes present

    Use: Imbalance without known class frequencies.

    Known trouble: Prices jump from batch to batch. Without any positive β is 1, so the negatives cost nothing and the
    loss is 0.

    Public code: Calling sklearn's balanced weights on a minibatch yields a vector without the absent classes, shifted.

    Args:
        beta: Price of a missed positive, the rest being that of a false one; None for the share of negatives.
    """
    pooled = x.over_batch()
    if x.mode == "multiclass":
        if beta is not None:
            raise ValueError("beta has a meaning in the sigmoid modes only; in multiclass mode use weight=[...]")
        volumes = sum_over_ranks(x.label_sums(element_weight(x)).sum(0, keepdim=True))
        present = (volumes > 0).sum(1, keepdim=True)
        return -x.log_p_true * class_factor(ratio(volumes.sum(1, keepdim=True), volumes * present), x)
    share = 1 - ratio(pooled.sum_g, pooled.voxels) if beta is None else torch.full_like(pooled.sum_g, beta)
    share = share.to(x.dtype).reshape(1, -1, *[1] * (len(x.shape) - 2))
    return -x.log_p_true * torch.where(x.onehot > 0, share, 1 - share)


@loss(
    family="distribution",
    paper="Wu et al. 2016, Bridging category-level and instance-level semantic image segmentation, arXiv 1605.06885",
    handles=("imbalance",),
)
def topk_cross_entropy(x: Comparison, *, k: float = 10.0, weight: Weights = None) -> Reduced:
    """Cross-entropy of the worst voxels only.

    Equation:
        mean of the max(1, ⌊k N / 100⌋) largest CE_i of the batch

    Use: Hard borders in large, easy volumes; usually with dice (dice_topk).

    Known trouble: Follows label noise: mislabelled voxels are the worst ones.

    Public code: nnU-Net agrees, but divides by nothing on tiny inputs; ignored voxels must go before counting.

    Args:
        k: Percentage of the voxels, in (0, 100].
        weight: One number per class, background included, multiplied before voxels are ranked.
    """
    if not 0 < k <= 100:
        raise ValueError(f"k is a percentage of the voxels, in (0, 100], got {k}")
    values, v = -x.log_p_true, element_weight(x)
    v = values.new_ones(()) if v is None else v
    factor = v if weight is None else v * class_factor(class_vector(weight, x), x)
    groups = 1 if x.reduction == "mean" else x.shape[0]
    values, v, factor = (t.expand(values.shape).reshape(groups, -1) for t in (values, v, factor))
    means = torch.stack([_top_mean(values[i], v[i], factor[i], k) for i in range(groups)])
    return means if x.reduction == "none" else means[0]


def _top_mean(values: Tensor, counts: Tensor, factor: Tensor, k: float) -> Tensor:
    """The mean of the largest k percent of the values that count."""
    kept = counts > 0
    number = max(1, int(k * int(kept.sum()) / 100))
    if not bool(kept.any()):
        return (values * 0).sum()
    worst = torch.where(kept, values * factor, -torch.inf).topk(number)
    return worst.values.sum() / counts[worst.indices].sum()


@loss(
    family="distribution",
    paper="Liu et al. 2022, The devil is in the margin: margin-based label smoothing, arXiv 2111.15430",
    modes=("multiclass",),
)
def logit_margin(x: Comparison, *, margin: Extended = 10.0, alpha: float = 0.1) -> PerVoxel:
    """Cross-entropy with a leash on the logits, for calibrated probabilities.

    Equation:
        CE + α mean_c max(0, max_j z_j - z_c - m)

    Use: Where probabilities will be read as confidence.

    Known trouble: Does nothing for imbalance.

    Public code: The author's code agrees.

    Args:
        margin: How far below the largest logit another may lie at no cost; inf is cross_entropy.
        alpha: Strength of the leash.
    """

    def beyond(z: Tensor, _: Tensor) -> Tensor:
        return x.class_mean((z.amax(1, keepdim=True) - z - margin).relu())

    return -x.log_p_true + alpha * x.voxelwise(beyond)


@loss(
    family="distribution",
    paper="Murugesan et al. 2023, Trust your neighbours: penalty-based constraints for model calibration, "
    "arXiv 2303.06268",
    modes=("multiclass",),
    cost="maps",
    handles=("boundary",),
)
def nacl(x: Comparison, *, kernel_size: int = 3, alpha: float = 0.1, distance: Literal["l1", "l2"] = "l1") -> PerVoxel:
    """Cross-entropy that asks the logits to follow the class proportions of the neighbourhood.

    Equation:
        CE + α mean_c |u_c - z_c|, u the box mean of the one-hot target

    Use: Calibrated probabilities at borders.

    Known trouble: Compares logits with proportions in [0, 1], as published; zero padding biases u at the volume's
    edge.

    Public code: MONAI agrees.

    Args:
        kernel_size: Width of the neighbourhood in voxels, odd.
        alpha: Strength of the constraint.
        distance: l1 or l2 (squared).
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    pool = F.avg_pool2d if len(x.shape) == 4 else F.avg_pool3d
    with torch.no_grad():
        margin = [kernel_size // 2] * 2 * (len(x.shape) - 2)
        proportions = pool(F.pad(x.onehot, margin), kernel_size, stride=1)

    def gap(z: Tensor, u: Tensor) -> Tensor:
        return x.class_mean((u - z).abs() if distance == "l1" else (u - z).square())

    return -x.log_p_true + alpha * x.voxelwise(gap, proportions)
