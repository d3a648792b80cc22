"""Hard examples: cross-entropy of the voxels that the network does not yet believe in."""

from __future__ import annotations

import math

import torch

from medseg.losses.comparison import Comparison
from medseg.losses.reduction import element_weight, ratio
from medseg.losses.table import Reduced, loss


@loss(
    family="distribution",
    paper="Wu et al. 2016, High-performance semantic segmentation using very deep fully convolutional networks, "
    "arXiv 1604.04339; Shrivastava et al. 2016, arXiv 1604.03540",
    handles=("imbalance",),
    excepts={"rank": "volumes of the test have fewer voxels than min_kept, where the threshold decides nothing"},
)
def ohem_cross_entropy(x: Comparison, *, threshold: float = 0.7, min_kept: int = 100_000) -> Reduced:
    """Cross-entropy of the voxels whose true class is not yet likely (online hard example mining).

    Equation:
        mean of CE_i over {i: p_t < t} and the ``min_kept`` voxels with the smallest p_t

    Use: Large, easy volumes, usually with dice. Unlike topk_cross_entropy it keeps fewer voxels as the network gets
    better, down to ``min_kept`` per sample.

    Known trouble: Follows label noise: mislabelled voxels are never believed. On patches smaller than ``min_kept`` it
    is cross_entropy. The hardest are chosen per process.

    Public code: mmsegmentation divides by all voxels, kept, ignored or not, so that the loss fades with their number;
    there and in HRNet the easiest voxel is dropped where fewer than ``min_kept`` exist.

    Args:
        threshold: t, in (0, 1]: a true class at least so likely is easy.
        min_kept: How many voxels of each sample (elements in the sigmoid modes) count at least.
    """
    if not 0 < threshold <= 1 or min_kept < 0:
        raise ValueError(f"threshold must be in (0, 1] and min_kept at least 0, got {threshold} and {min_kept}")
    groups = 1 if x.reduction == "mean" else x.shape[0]
    errors, v = -x.log_p_true, element_weight(x)
    v = errors.new_ones(()) if v is None else v
    errors, v = (t.expand(errors.shape).reshape(groups, -1) for t in (errors, v))
    ranked = torch.where(v > 0, errors.detach(), -torch.inf)
    kept = ranked > -math.log(threshold)
    fewest = min(min_kept * x.shape[0] // groups, ranked.shape[1])
    if fewest and bool((kept.sum(1) < fewest).any()):
        kept = kept | (ranked >= ranked.topk(fewest).values[:, -1:])
    counts = v * (kept & (v > 0))
    means = ratio((errors * counts).sum(1), counts.sum(1))
    return means if x.reduction == "none" else means[0]
