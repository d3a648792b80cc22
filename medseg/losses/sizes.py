"""Size constraints: how large an organ may be is known where no voxel of it was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.reduction import class_vector
from medseg.losses.table import loss
from medseg.types import PerClass

Bounds = Sequence[float] | None
ABOUT: dict[str, Any] = {"family": "region", "batch": False, "alone": False, "handles": ("missing",)}


@loss(
    paper="Kervadec et al. 2019, Constrained-CNN losses for weakly supervised segmentation, arXiv 1805.04628",
    **ABOUT,
)
def size_penalty(
    x: Comparison,
    *,
    low: Bounds = None,
    high: Bounds = None,
    margin: float = 0.1,
    include_ignored: bool = False,
) -> PerClass:
    """Square of the voxels by which a predicted structure is too small or too large; nothing within the bounds.

    Equation:
        (max(0, a - Σp)² + max(0, Σp - b)²) / N,  N = voxels that count

    Use: Anatomical bounds beside the cross-entropy of a few drawn voxels, all others ignored:
    ``cross_entropy + 0.01 * size_penalty(low=[0, 500], high=[1e9, 900], include_ignored=True)``. Or beside full labels,
    where the bounds may be the target's own size give or take ``margin``.

    Known trouble: Says nothing about place. Bounds are in voxels of the patch: give ``high`` alone where patches cut
    organs. Squares of many voxels are large: the authors' weight is 0.01.

    Public code: The authors' divides by N, which the paper does not print.

    Args:
        low: a, in voxels, one number per class, background included (one out of reach is none); None for
            (1 - margin) Σg, or for no bound where ``high`` is given.
        high: b, likewise.
        margin: Tolerance around the target's size where no bound is given.
        include_ignored: Whether ignored voxels are part of N and of the predicted size; bounds must then be given.
    """
    x = _measured(x, low, high, include_ignored=include_ignored)
    penalties = [excess.clamp_min(0).square() for excess in _excesses(x, low, high, margin)]
    return torch.stack(penalties).sum(0) / x.voxels.clamp_min(1)


@loss(
    paper="Kervadec et al. 2022, Constrained deep networks: Lagrangian optimization via log-barrier extensions, "
    "arXiv 1904.04205",
    range="(-∞, ∞)",
    **ABOUT,
)
def size_barrier(
    x: Comparison,
    *,
    low: Bounds = None,
    high: Bounds = None,
    margin: float = 0.1,
    include_ignored: bool = False,
    t: float = 5.0,
) -> PerClass:
    """Size bounds kept by a barrier: pushes the more, the closer a size comes to its bound, and evenly beyond.

    Equation:
        (ψ(a - Σp) + ψ(Σp - b)) / N,
        ψ(z) = -log(-z) / t where z <= -1/t², else t z + 2 log(t) / t + 1/t

    Use: As size_penalty, where bounds should be kept rather than traded; unlike a square it stays linear far outside.

    Known trouble: Negative far within the bounds, and never quite at rest there. See size_penalty.

    Public code: The authors' agrees; it raises t by a tenth every epoch from 5.

    Args:
        low: As in size_penalty.
        high: As in size_penalty.
        margin: As in size_penalty.
        include_ignored: As in size_penalty.
        t: Height of the barrier, above 0.
    """
    if t <= 0:
        raise ValueError(f"t must be above 0, got {t}")
    x = _measured(x, low, high, include_ignored=include_ignored)
    barriers = [_barrier(excess, t) for excess in _excesses(x, low, high, margin)]
    return torch.stack(barriers).sum(0) / x.voxels.clamp_min(1)


def _barrier(z: Tensor, t: float) -> Tensor:
    edge = -1 / t**2
    inside = -torch.log(-z.clamp_max(edge)) / t
    return torch.where(z > edge, t * z + 2 * math.log(t) / t + 1 / t, inside)


def _measured(x: Comparison, low: Bounds, high: Bounds, *, include_ignored: bool) -> Comparison:
    """Give the comparison whose predicted sizes are meant."""
    if not include_ignored:
        return x
    if low is None and high is None:
        raise ValueError("include_ignored=True needs low or high: of ignored voxels the target's size is not known")
    return replace(x, weight=None, cache={})


def _excesses(x: Comparison, low: Bounds, high: Bounds, margin: float) -> list[PerClass]:
    """By how many voxels each size is below its lower and above its upper bound; negative within."""
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    if low is None and high is None:
        return [(1 - margin) * x.sum_g - x.sum_p, x.sum_p - (1 + margin) * x.sum_g]
    for name, bound in (("low", low), ("high", high)):
        if bound is not None and len(bound) != x.shape[1]:
            raise ValueError(
                f"{name} must hold {x.shape[1]} numbers, one per channel, background included, got {bound}"
            )
    if low is not None and high is not None and any(a > b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"low must be at most high for every class, got {low} and {high}")
    pairs = ((bound, sign) for bound, sign in ((low, -1), (high, 1)) if bound is not None)
    return [sign * (x.sum_p - class_vector(bound, x)) for bound, sign in pairs]
