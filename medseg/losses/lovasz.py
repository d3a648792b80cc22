"""The Lovász extension: the Jaccard index itself, made convex in the errors, by sorting them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.ranks import mean_over_ranks
from medseg.losses.reduction import ratio
from medseg.losses.table import Reduced, loss

BERMAN = (
    "Berman et al. 2018, The Lovász-Softmax loss: a tractable surrogate for the optimization of the "
    "intersection-over-union measure in neural networks, arXiv 1705.08790"
)


@loss(family="region", paper=BERMAN, handles=("imbalance", "small", "missing"), cost="sort", range="[0, 1]")
def lovasz_softmax(
    x: Comparison, *, classes: Literal["present", "all"] = "present", per_image: bool = False
) -> Reduced:
    """One minus the IoU, extended from hard predictions to probabilities without changing its value there.

    Equation:
        mean_c J̄_c(|g_c - p_c|), J̄_c the Lovász extension of the Jaccard loss of class c

    Use: To finish a network whose score of record is the IoU, after some epochs of cross-entropy.

    Known trouble: Sorts every class's voxels: the slowest of the region losses. By default a class present nowhere in
    the batch is skipped, so false positives of it cost nothing. The sort is per process, not over ranks.

    Public code: The author's code agrees.

    Args:
        classes: Average over the classes present in the target, or over all.
    """
    errors = (x.probs - x.onehot).abs()
    return _extension(errors, x, per_image=per_image, present_only=classes == "present")


@loss(
    family="region",
    paper=BERMAN,
    modes=("binary", "multilabel"),
    handles=("imbalance", "small", "missing"),
    cost="sort",
)
def lovasz_hinge(x: Comparison, *, classes: Literal["all", "present"] = "all", per_image: bool = True) -> Reduced:
    """The Lovász extension at hinge errors: stops pulling once a voxel is right with a margin.

    Equation:
        J̄(relu(1 - (2g - 1) z))

    Use: As lovasz_softmax, in the sigmoid modes.

    Known trouble: Unbounded in the logits; sorts every channel's voxels. An image without the structure costs its worst
    false positive alone.

    Public code: The author's code agrees, with classes="all".

    Args:
        classes: Average over all channels and samples, or over those that show the structure.
    """
    errors = (1 - (2 * x.onehot - 1) * x.logits).relu()
    return _extension(errors, x, per_image=per_image, present_only=classes == "present")


def _extension(errors: Tensor, x: Comparison, *, per_image: bool, present_only: bool) -> Reduced:
    """Σ errors times the Jaccard steps of their order, averaged over the classes and samples that count."""
    weight = errors.new_ones(()) if x.weight is None else x.weight
    weight = weight.expand(errors.shape)
    if x.class_mask is not None:
        weight = weight * x.class_mask.reshape(*x.class_mask.shape, *[1] * (errors.ndim - 2))
    groups = [values.flatten(2) for values in (errors, x.onehot * weight, weight)]
    if not (per_image or x.reduction == "none"):
        groups = [values.transpose(0, 1).flatten(1).unsqueeze(0) for values in groups]
    steps = torch.stack([_jaccard_steps(*(v[:, c].detach() for v in groups)) for c in range(errors.shape[1])], 1)
    counts = groups[1 if present_only else 2].sum(-1) > 0
    values = ratio(((groups[0] * steps).sum(-1) * counts).sum(1), counts.sum(1).to(errors.dtype))
    return values if x.reduction == "none" else ratio(values.sum(), mean_over_ranks(counts.any(1).sum().to(values)))


def _jaccard_steps(errors: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
    """How much the Jaccard loss grows as each voxel, the worst first, turns wrong; in the voxels' own order."""
    order = errors.argsort(-1, descending=True)
    g, w = positive.gather(-1, order).double(), weight.gather(-1, order).double()
    total = g.sum(-1, keepdim=True)
    union = total + (w - g).cumsum(-1)
    jaccard = torch.where(union > 0, 1 - (total - g.cumsum(-1)) / union.clamp_min(1e-300), 0.0)
    steps = jaccard.diff(dim=-1, prepend=torch.zeros_like(total))
    return torch.zeros_like(errors).scatter_(-1, order, steps.to(errors.dtype))
