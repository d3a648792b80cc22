"""Region mutual information: neighbourhoods, not voxels, of prediction and target shall tell of each other."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.masks import counted
from medseg.losses.table import loss
from medseg.types import PerClass

RIDGE = 5e-4
"""Added to the diagonals of both covariances, so that they can be inverted; the authors' number."""


@loss(
    family="region",
    paper="Zhao et al. 2019, Region mutual information loss for semantic segmentation, arXiv 1910.12037",
    alone=False,
    cost="maps",
    handles=("boundary",),
    range="[log(5e-4) / 2 ≈ -3.8, ∞)",
    excepts={"crop": "blocks are averaged from the volume's corner on", "mirror": "as for crop"},
)
def region_mutual_information(x: Comparison, *, radius: int = 3, pool: int = 3) -> PerClass:
    """What the prediction leaves unexplained of the target's neighbourhoods, as a log-determinant.

    Equation:
        log det(Σ_Y - Σ_YP (Σ_P + ε)^-1 Σ_YP^T + ε) / (2 D),  ε = 5e-4,  Σ = covariances, not divided by their number,
        of the D = radius^d values around every voxel, d = 2 or 3

    Use: For the structure of organs' borders, beside a loss of single voxels. The paper's sum is
    ``0.5 * bce + 0.5 * region_mutual_information``, times the number of classes, from a pretrained network; from
    scratch let it come in later: ``bce + linear(0, 1, epochs=20) * region_mutual_information``.

    Known trouble: A prediction and its negative tell as much of the target: never alone, and a network that starts on
    the wrong side may stay there in spite of bce. An absent class is at the minimum whatever is predicted. Volumes are
    averaged over blocks of ``pool`` voxels a side first (fewer where that would leave less than a neighbourhood; the
    remainder at the far end is dropped); pool=1 looks at every voxel and needs radius^d maps in double precision.

    Public code: The authors' is 2D, takes sigmoids of all classes, pads blocks with zeros, counts ignored voxels as
    background and adds 1e-8 within the logarithm. Here a neighbourhood with an ignored voxel is left out.

    Args:
        radius: Side of a neighbourhood.
        pool: Side of the blocks that are averaged first.
    """
    if radius < 1 or pool < 1:
        raise ValueError(f"radius and pool must be at least 1, got {radius} and {pool}")
    weight = counted(x, 0)
    weight = x.probs.new_ones(1, 1, *x.shape[2:]) if weight is None else weight
    side = max(1, min(pool, min(x.shape[2:]) // radius))
    # pooling has no backward pass on CUDA that adds up in one order
    blocks = [_blocks(values, side).mean(-1) for values in (x.probs, x.onehot)]
    v = _blocks(weight, side).amin(-1)  # nothing counts of a block in which a voxel is ignored
    if min(v.shape[2:]) < radius:
        return x.probs.flatten(2).sum(2) * 0
    points = torch.cat([_neighbourhoods(values, radius) for values in blocks], 2).double()
    v = _neighbourhoods(v, radius).amin(2, keepdim=True).double()
    points = points - (points * v).sum(3, keepdim=True) / v.sum(3, keepdim=True).clamp_min(1e-30)
    joint = (points * v) @ points.mT + RIDGE * torch.eye(points.shape[2], dtype=v.dtype, device=v.device)
    # The Cholesky factor's second half is that of the target's covariance less what the prediction explains of it.
    factor, failed = torch.linalg.cholesky_ex(joint)
    values = factor.diagonal(dim1=-2, dim2=-1).tensor_split(2, -1)[1].log().mean(2)
    values = torch.where(failed > 0, torch.nan, values)  # as it is where a logit is not finite
    return torch.where(v.sum((2, 3)) > 0, values, 0 * values).to(x.dtype)


def _blocks(maps: Tensor, side: int) -> Tensor:
    """Give (b, c, *(s // side), side^d) of maps (b, c, *s); what is left over at the far edges is left out."""
    axes = maps.ndim
    for axis in range(2, axes):
        maps = maps.unfold(axis, side, side)
    return maps.flatten(axes)


def _neighbourhoods(maps: Tensor, radius: int) -> Tensor:
    """Give (b, c, radius^d, positions) of maps (b, c, *s)."""
    axes = range(2, maps.ndim)
    for axis in axes:
        maps = maps.unfold(axis, radius, 1)
    return maps.flatten(2, axes[-1]).flatten(3).mT
