"""Centre lines that know how thick their vessel is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.masks import all_channels, existing, first_channel, predicted_masks, sum_over_space, target_masks
from medseg.losses.reduction import ratio
from medseg.losses.table import loss
from medseg.losses.thinning import soft_skeleton
from medseg.space.fields import inner_distance, steps_per_sample
from medseg.types import PerClass


@loss(
    family="boundary",
    paper="Shi et al. 2024, Centerline boundary Dice loss for vascular segmentation, arXiv 2407.01517",
    batch=False,
    alone=False,
    handles=("boundary", "small"),
    cost="distance",
    range="(-∞, 1]",
)
def cbdice(
    x: Comparison,
    *,
    iterations: int = 10,
    inverse: Literal["quotient", "difference"] = "quotient",
    smooth: float = 1.0,
    include_background: bool = False,
) -> PerClass:
    """ClDice whose centre lines weigh by their vessel's radius: thin branches as much as thick ones, borders included.

    Equation:
        1 - 2 T_p T_s / (T_p + T_s),  T_p = (Σ I_P s_P d_G + s) / (Σ I_P s_P r + s), T_s with P and G exchanged,
        s = centre line, d = depth, at most the largest radius R, over R, r = d on the other's centre line, elsewhere
        on one's own; I = 1 / d in 2D, 1 / d² in 3D (difference: (R + 1 voxel - depth) / R, squared in 3D);
        s_P, d_P times p

    Use: Vessels of very different diameter: the authors' sum is dice + cross_entropy + cbdice.

    Known trouble: Centre lines and depths are those of {p > 1/2} and carry no gradient, p does; where nothing is
    predicted there is none, so never alone. It may fall below 0 where the two centre lines run side by side.

    Public code: The authors' agrees with batch=True, up to 1e-7 in I; it compares all foreground as one class. Since
    publication they prefer inverse="difference".

    Args:
        x: The comparison; ``spacing_mm`` measures depths in millimetres.
        inverse: How the weight of a centre line falls with its radius.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    first = first_channel(x, include_background=include_background)
    p = x.probs[:, first:]
    predicted, target = (
        _tubes(mask, x, first, iterations, inverse) for mask in (predicted_masks(x, first), target_masks(x, first))
    )
    own, other = predicted.radius * p, target.radius
    terms = (
        predicted.weight * p * target.depth,
        predicted.weight * p * torch.where(other > 0, other, own),
        target.weight * predicted.depth * p,
        target.weight * torch.where(predicted.radius > 0, own, other),
    )
    sums: Tensor = x.pool(torch.stack([all_channels(sum_over_space(term, x, first), first) for term in terms]))
    precision, recall = ratio(sums[0::2] + smooth, sums[1::2] + smooth)
    return 1 - ratio(2 * precision * recall, precision + recall)


class _Tubes(NamedTuple):
    """Maps (b part *s) of masks: depth and, on centre lines, radius (both over the largest radius) and weight."""

    depth: Tensor
    radius: Tensor
    weight: Tensor


@torch.no_grad()
def _tubes(mask: Bool[Tensor, "b part *s"], x: Comparison, first: int, iterations: int, inverse: str) -> _Tubes:
    here, axes = existing(x, first), mask.ndim - 2
    line = soft_skeleton(mask.to(x.dtype), iterations, here)
    depth = inner_distance(mask, x.spacing_mm, valid=here, dtype=x.dtype)
    largest = (depth * line).amax(tuple(range(2, mask.ndim)), keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    depth = (depth / largest).clamp_max(1)
    radius = depth * line
    power = axes - 1
    if inverse == "quotient":
        weight = torch.where(radius > 0, radius.clamp_min(1e-30).pow(-power), 0)
    else:
        steps = steps_per_sample(x.spacing_mm, mask.shape[0], axes)
        voxel = depth.new_tensor([min(step) for step in steps]).reshape(-1, *[1] * (mask.ndim - 1))
        weight = (1 + voxel / largest - radius).pow(power)
    return _Tubes(depth, radius, weight * line)
