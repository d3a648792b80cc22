"""The T-loss: a heavy-tailed likelihood that forgives mislabelled voxels, and learns how much."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Real
from medseg.losses.table import loss
from medseg.types import PerClass


@loss(
    family="distribution",
    paper="Gonzalez-Jimenez et al. 2023, Robust T-Loss for medical image segmentation, arXiv 2306.00753",
    learnable={"nu": "nu_init"},
    range="(-∞, ∞)",
)
def t_loss(
    x: Comparison,
    *,
    nu: Tensor | None = None,
    nu_init: Real = 0.0,
    epsilon: float = 1e-8,
    log_precision: Real = 0.0,
    per_voxel: bool = False,
    include_background: bool = True,
) -> PerClass:
    """The negative log-likelihood of a Student t distribution of the error map, its tail learnt.

    Equation:
        -lgamma((ν+D)/2) + lgamma(ν/2) + D/2 log(π ν) - D/2 λ + (ν+D)/2 log(1 + e^λ |p - g|² / ν),
        ν = exp(ν~) + ε, D voxels

    Use: Noisy annotations. ν~ is a parameter of the loss: give ``loss.parameters()`` to the optimiser.

    Known trouble: Unbounded, may be negative, and grows with the number of voxels; per_voxel=True divides by it and is
    the better choice in 3D. A large ν forgives nothing (a Gaussian), a small one much.

    Public code: The author's code takes e for its identity matrix (log_precision=1 here); a TensorFlow port drops the
    minus sign of the first term.

    Args:
        nu: The learnt ν~; None for its first value.
        nu_init: First value of ν~; 0 is ν = 1.
        epsilon: Added to ν.
        log_precision: λ, with Σ = e^-λ I.
        per_voxel: Divide by the number of voxels.
    """
    tail = torch.full((), nu_init, device=x.raw.device) if nu is None else nu
    v = tail.double().exp() + epsilon  # double: at 128³ voxels the constants are 1e7, where single resolves 1.0
    size, error = x.voxels, x.error_inside + x.error_outside
    half = (v + size) / 2
    constant = torch.lgamma(v / 2) - torch.lgamma(half) + size / 2 * (torch.log(math.pi * v) - log_precision)
    values = constant + half * torch.log1p(math.exp(log_precision) * error / v)
    return values / size.clamp_min(1) if per_voxel else values
