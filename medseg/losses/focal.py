"""Focal losses: a voxel that is already right pays little, so that the hard ones set the direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Real, Share
from medseg.losses.reduction import class_factor, class_vector, power
from medseg.losses.table import loss
from medseg.losses.tversky import YEUNG
from medseg.types import PerVoxel

LENG = "Leng et al. 2022, PolyLoss, arXiv 2204.12511"
Alpha = float | Sequence[float] | None


def doubt(log_p: Tensor) -> Tensor:
    """1 - p, exact also where p rounds to 1."""
    return -torch.expm1(log_p)


@loss(
    family="distribution",
    paper="Lin et al. 2017, Focal loss for dense object detection, arXiv 1708.02002, Eq. 5",
    soft=True,
    handles=("imbalance", "small"),
)
def focal(x: Comparison, *, gamma: float = 2.0, alpha: Alpha = None) -> PerVoxel:
    """Cross-entropy scaled down where the network is already right.

    Equation:
        -α_t (1 - p_t)^γ log p_t

    Use: Small structures in a large, easy background; usually with dice.

    Known trouble: Probabilities come out timid (badly calibrated). The scale is far below cross-entropy's: raise its
    weight.

    Public code: γ = 0 is cross-entropy, not γ = 1 as a tutorial says. MONAI's and kornia's softmax form is 1/C of
    this; smp's multiclass form is sigmoid.

    Args:
        gamma: How fast an easy voxel is forgotten, at least 0.
        alpha: Sigmoid modes: price of a positive, 1 - alpha that of a negative (one number, or one per channel);
            multiclass: one number per class, not normalised.
    """
    if x.soft:
        return _soft_focal(x, gamma, alpha)
    values = -power(doubt(x.log_p_true), gamma) * x.log_p_true
    return values if alpha is None else values * _alpha_at_target(x, alpha)


def _alpha_at_target(x: Comparison, alpha: float | Sequence[float]) -> Tensor:
    """The price of each voxel's true class."""
    price = class_factor(_prices(x, alpha), x)
    return price if x.mode == "multiclass" else torch.where(x.onehot > 0, price, 1 - price)


def _prices(x: Comparison, alpha: float | Sequence[float]) -> Tensor:
    """The price of each class, or of each channel's positives."""
    if isinstance(alpha, int | float):
        if x.mode == "multiclass":
            raise ValueError(f"alpha must hold one number per class in multiclass mode, got {alpha}")
        alpha = [alpha] * x.shape[1]
    if x.mode != "multiclass" and max(alpha, default=0) > 1:
        raise ValueError(f"alpha must be at most 1 in the sigmoid modes, where 1 - alpha is paid too, got {alpha}")
    return class_vector(alpha, x)


def _soft_focal(x: Comparison, gamma: float, alpha: Alpha) -> Tensor:
    """Σ_c g_c (1 - p_c)^γ (-log p_c) for fractional targets; in the sigmoid modes over yes and no."""
    yes = x.raw.new_ones(x.shape[1], dtype=x.dtype) if alpha is None else _prices(x, alpha)
    no = yes if alpha is None else 1 - yes

    def chunk(z: Tensor, g: Tensor) -> Tensor:
        g = g.to(z.dtype)
        if x.mode == "multiclass":
            log_p = F.log_softmax(z, 1)
            return -(yes.unsqueeze(1) * g * power(doubt(log_p), gamma) * log_p).sum(1)
        log_p, log_q = F.logsigmoid(z), F.logsigmoid(-z)
        hit = yes.unsqueeze(1) * g * power(log_q.exp(), gamma) * log_p
        return -hit - no.unsqueeze(1) * (1 - g) * power(log_p.exp(), gamma) * log_q

    return x.voxelwise(chunk)


@loss(family="distribution", paper=LENG)
def poly1_cross_entropy(x: Comparison, *, epsilon: Real = 1.0) -> PerVoxel:
    """Cross-entropy with its first polynomial coefficient set free.

    Equation:
        -log p_t + ε (1 - p_t)

    Use: A cheap extra knob on cross-entropy; tune epsilon, about -1 to 8.

    Known trouble: Does nothing for imbalance. Below epsilon = -1 it rewards mistakes.

    Public code: abhuse/polyloss agrees.

    Args:
        epsilon: The coefficient; 0 is cross_entropy.
    """
    return -x.log_p_true + epsilon * doubt(x.log_p_true)


@loss(family="distribution", paper=LENG, handles=("imbalance", "small"))
def poly1_focal(x: Comparison, *, epsilon: Real = 1.0, gamma: float = 2.0, alpha: Alpha = None) -> PerVoxel:
    """Focal loss with its first polynomial coefficient set free.

    Equation:
        focal + ε (1 - p_t)^(γ+1)

    Use: As focal.

    Known trouble: As focal.

    Public code: abhuse/polyloss agrees.

    Args:
        epsilon: The coefficient; 0 is focal.
        gamma: As in focal.
        alpha: As in focal; it does not scale the added term.
    """
    return focal(x, gamma=gamma, alpha=alpha) + epsilon * power(doubt(x.log_p_true), gamma + 1)


@loss(family="distribution", paper=f"{YEUNG}, Eq. 16", handles=("imbalance", "small"))
def symmetric_focal(x: Comparison, *, delta: Share = 0.6, gamma: float = 0.5) -> PerVoxel:
    """Yeung's focal loss: all classes are suppressed alike, structures are dearer than background.

    Equation:
        -w_t (1 - p_t)^γ log p_t,  w = 1 - δ for background, δ for structures

    Use: As the voxel half of symmetric_unified_focal.

    Known trouble: The smallest value of δ = 0.5 is half a cross-entropy, not a whole one.

    Public code: The author's code agrees in 2D; in 3D it indexes the wrong axis. The equations were printed with γ and
    1 - γ exchanged between the pair, the code decides.

    Args:
        delta: Price of structures; 1 - delta that of the background.
        gamma: How fast an easy voxel is forgotten.
    """
    return _two_prices(x, delta) * focal(x, gamma=gamma)


@loss(family="distribution", paper=f"{YEUNG}, Eq. 20", handles=("imbalance", "small"))
def asymmetric_focal(x: Comparison, *, delta: Share = 0.6, gamma: float = 0.5) -> PerVoxel:
    """Yeung's focal loss in which only easy background is suppressed, never a structure.

    Equation:
        -(1 - δ) (1 - p_t)^γ log p_t on background, -δ log p_t on structures

    Use: As the voxel half of asymmetric_unified_focal.

    Known trouble: As symmetric_focal.

    Public code: The author's code agrees in 2D. The paper's Eq. 20 prints the rare class's logarithm in the common
    sum. MONAI's form is half of this.

    Args:
        delta: Price of structures; 1 - delta that of the background.
        gamma: How fast easy background is forgotten.
    """
    log_p = x.log_p_true
    return -_two_prices(x, delta) * torch.where(_on_structure(x), 1.0, power(doubt(log_p), gamma)) * log_p


def _on_structure(x: Comparison) -> Tensor:
    """True where the target is not background."""
    return x.onehot > 0 if x.labels is None else x.labels > 0


def _two_prices(x: Comparison, delta: float) -> Tensor:
    """δ on structures, 1 - δ on background."""
    return 1 - delta + (2 * delta - 1) * _on_structure(x).to(x.dtype)
