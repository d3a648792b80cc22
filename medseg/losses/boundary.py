"""Boundary losses: a prediction pays for how far from the organ's surface it is wrong, not for how many voxels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Float
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.masks import (
    Threshold,
    all_channels,
    existing,
    first_channel,
    mask_distance,
    mean_over_space,
    only,
    predicted_masks,
    signed_map,
    target_distance,
    target_masks,
)
from medseg.losses.reduction import reduced
from medseg.losses.table import Reduced, loss
from medseg.types import PerClass


@loss(
    family="boundary",
    paper="Karimi and Salcudean 2019, Reducing the Hausdorff distance in medical image segmentation, arXiv 1904.10030",
    alone=False,
    handles=("boundary",),
    cost="distance",
)
def hausdorff_dt(
    x: Comparison,
    *,
    alpha: float = 2.0,
    one_sided: bool = False,
    threshold: Threshold = 0.5,
    include_background: bool = False,
) -> PerClass:
    """Squared error weighted by the distance from both surfaces: far-off mistakes cost most.

    Equation:
        (1/M) Σ_i (p_i - g_i)² (d_P(i)^α + d_G(i)^α),  d = distance to the other side of the mask's boundary,
        P = {p > threshold}; ``one_sided`` keeps d_G alone

    Use: To bring down the Hausdorff distance of an organ that Dice already finds: the paper adds it to Dice with a
    weight that keeps the two equal, and its values grow with the square of the distance (hundreds, thousands).

    Known trouble: A mask that is empty or fills the volume has no boundary and a distance of 0. Where that is so of
    target and prediction both, loss and gradient are 0 even for p just below 0.5: alone it collapses to background.
    Two distance transforms per class and step, of which the target's can be given as ``distance_map`` (see
    boundary) and the prediction's left out by ``one_sided``.

    Public code: The fields of LIVIAETS and SegWithDistMap are 0 outside the mask and differ by up to 86 %; MONAI
    agrees.

    Args:
        x: The comparison; ``spacing_mm`` measures in millimetres.
        alpha: Exponent of the distances, above 0.
        one_sided: Whether to leave out the prediction's own distances, the half that costs time in every step.
        threshold: The probability above which a voxel is predicted, or ``argmax``.
    """
    if alpha <= 0:
        raise ValueError(f"hausdorff_dt needs alpha above 0, got {alpha}")
    first = first_channel(x, include_background=include_background)
    truth = target_masks(x, first)
    field = target_distance(x, truth, first).pow(alpha)
    if not one_sided:
        predicted = predicted_masks(x, first, threshold)
        exclusive = x.mode == "multiclass" and (threshold == "argmax" or threshold >= 0.5)
        field += mask_distance(x, predicted, first, exclusive=exclusive).pow_(alpha)
    error = (x.probs[:, first:] - truth.to(x.dtype)).square()
    return all_channels(mean_over_space(error * field, x, first), first)


@loss(
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030; the logarithm is MONAI's",
    parts=(hausdorff_dt,),
    alone=False,
    handles=("boundary",),
    cost="distance",
)
def log_hausdorff_dt(x: Comparison, **knobs: Any) -> Reduced:
    """Logarithm of the Hausdorff loss, so that it can stand beside Dice without a weight of its own.

    Equation:
        log(1 + hausdorff_dt), of the mean over classes and samples (per sample with ``reduction="none"``)

    Use: Where hausdorff_dt drowns the loss it is added to: dice + log_hausdorff_dt.

    Known trouble: That of hausdorff_dt, blind spot included; never alone. The mean is taken before the logarithm, so
    the batch's value is not the mean of its samples' values.

    Public code: MONAI agrees.
    """
    return torch.log1p(reduced(hausdorff_dt, x, knobs))


@loss(
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030 (erosion variant)",
    alone=False,
    handles=("boundary",),
    cost="maps",
)
def hausdorff_er(
    x: Comparison,
    *,
    alpha: float = 2.0,
    erosions: int = 10,
    renormalize: bool = True,
    include_background: bool = False,
) -> PerClass:
    """Errors that survive repeated erosion cost more the longer they last: thick mistakes, no distance transform.

    Equation:
        Σ_{k=1..K} k^α mean(E_k),  E_0 = (p - g)²,  E_k = max(E_{k-1} * cross/(2d+1) - 1/2, 0), each E_k then
        stretched to [0, 1] in every sample and class

    Use: On a GPU instead of hausdorff_dt, beside a region loss; it needs convolutions only.

    Known trouble: Mistakes one voxel thick vanish in the first erosion, so it is 0 with no gradient for a prediction
    that is nearly right; and the stretching makes the smallest survivor count as much as the largest.

    Public code: SegLossOdyssey and PatRyg99 erode NumPy copies and so have no gradient, and their 3D kernel lies
    along the channel axis; kornia agrees.

    Args:
        alpha: Exponent of the number of erosions survived.
        erosions: How many erosions, at least 1.
        renormalize: Whether to stretch to [0, 1] after each; without, nothing is left after the second.
    """
    if erosions < 1:
        raise ValueError(f"hausdorff_er needs erosions of at least 1, got {erosions}")
    first = first_channel(x, include_background=include_background)
    here = existing(x, first)
    error = only((x.probs[:, first:] - target_masks(x, first).to(x.dtype)).square(), here)
    total = torch.zeros(error.shape[:2], dtype=x.dtype, device=error.device)
    for k in range(1, erosions + 1):
        error = only(F.relu(_cross_mean(error) - 0.5), here)
        if renormalize:
            error = only(_stretched(error, here), here)
        total = total + k**alpha * mean_over_space(error, x, first)
    return all_channels(total, first)


def _cross_mean(values: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """Average each voxel with the neighbours over its faces; beyond the edge is 0."""
    axes = values.ndim - 2
    kernel = values.new_zeros([3] * axes)
    for axis in range(axes):
        kernel[tuple(slice(None) if other == axis else 1 for other in range(axes))] = 1 / (2 * axes + 1)
    convolve = F.conv2d if axes == 2 else F.conv3d
    return convolve(values.flatten(0, 1).unsqueeze(1), kernel[None, None], padding=1).reshape(values.shape)


def _stretched(values: Float[Tensor, "b c *s"], here: Tensor | None) -> Float[Tensor, "b c *s"]:
    """Map the range of each sample and class to [0, 1]; what is constant stays as it is."""
    space = tuple(range(2, values.ndim))
    low = (values if here is None else values.masked_fill(~here, 1)).amin(space, keepdim=True)
    span = values.amax(space, keepdim=True) - low
    return torch.where(span > 0, (values - low) / torch.where(span > 0, span, 1), values)


@loss(
    family="boundary",
    paper="Kervadec et al. 2019, Boundary loss for highly unbalanced segmentation, arXiv 1812.07032",
    alone=False,
    handles=("boundary", "imbalance", "small"),
    cost="distance",
    range="(-∞, ∞)",
)
def boundary(x: Comparison, *, include_background: bool = False) -> PerClass:
    """Probability times signed distance to the organ: pulls the prediction's surface onto the target's.

    Equation:
        (1/M) Σ_i φ_G(i) p_i,  φ = distance to the organ outside it, -(distance to its outside - h) inside,
        h = 1 voxel, or in millimetres the voxel's shortest edge

    Use: Beside a region loss for small, unbalanced structures, as the paper does: ``dice + increase() * boundary``
    (its "increase") or ``(1 - increase()) * dice + increase() * boundary`` ("rebalance"), 0.01 more every epoch.

    Known trouble: Negative, and not bounded by 0: the minimum is minus the organ's summed depth, so a falling curve
    says little. Alone it favours the empty prediction. A class that is absent or fills the volume contributes 0.

    Public code: LIVIAETS measures a full mask against nothing and gets arbitrary numbers. It and MONAI take h = 1 in
    millimetres too: where voxels are smaller, correct voxels cost, and the exact organ is not the minimum. MONAI agrees
    in voxels but counts the background by default.

    Args:
        x: The comparison; ``spacing_mm`` measures in millimetres; ``distance_map`` is φ, made beforehand.
    """
    first = first_channel(x, include_background=include_background)
    phi = signed_map(x, target_masks(x, first), first)
    return all_channels(mean_over_space(x.probs[:, first:] * phi, x, first), first)
