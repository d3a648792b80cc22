"""Exclusion: where one organ was drawn there is no other, of those that were not drawn either."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Weights
from medseg.losses.reduction import mean_over_classes, ratio
from medseg.losses.table import Reduced, loss


@loss(
    family="region",
    paper="Shi et al. 2021, Marginal loss and exclusion loss for partially supervised multi-organ segmentation, "
    "arXiv 2007.03868",
    modes=("multiclass",),
    batch=False,
    alone=False,
    handles=("missing",),
    range="[0, 1]; [0, log 2] as cross-entropy",
)
def exclusion(
    x: Comparison,
    *,
    form: Literal["dice", "cross_entropy"] = "dice",
    smooth: float = 1e-5,
    include_background: bool = True,
    weight: Weights = None,
) -> Reduced:
    """How much each class is predicted where the annotation says that it is not: the marginal loss's companion.

    Equation:
        mean_c 2 Σ p_c e_c / (Σ p_c + Σ e_c + s)  or  mean_c Σ e_c log(p_c + 1) / N,
        e_c = 1 - g_c; of an organ that was not drawn, 1 on all that were, whose background may be it

    Use: Beside losses of partly drawn data, of which each already takes an undrawn organ for background
    (``class_mask``): ``dice + cross_entropy + 2 * exclusion``, the authors' sum. It alone tells undrawn organs apart
    from the background, within drawn ones.

    Known trouble: It says where a structure is not, never where it is.

    Public code: The authors' adds up logits where the paper adds up probabilities, leaves the term out for samples
    that are fully drawn, and smooths the numerator, too, which rewards what is predicted in vain if nothing was drawn.

    Args:
        form: An overlap, or a cross-entropy that ends at 0.
        smooth: Added to the denominator of Dice.
    """
    undrawn = x.undrawn
    if undrawn is not None:
        assert x.class_mask is not None  # which says what was not drawn
        x = replace(x, undrawn=None, class_mask=x.class_mask.masked_fill(undrawn, 1), cache={})

    def sums(p: Tensor, g: Tensor, v: Tensor | None) -> Tensor:
        e = 1 - (g if undrawn is None else torch.where(undrawn.unsqueeze(2), g[:, :1], g))
        terms = torch.stack([2 * p * e, p + e] if form == "dice" else [p.log1p() * e, torch.ones_like(p)])
        return (terms if v is None else terms * v).sum(-1)

    wrong, size = x.pool(x.sum_of(sums))
    values = ratio(wrong, size + (smooth if form == "dice" else 0))
    return mean_over_classes(values, x, include_background=include_background, weight=weight)
