"""Difference over union: an overlap that forgets the inside of large structures and looks at their outline."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.masks import existing, target_masks
from medseg.losses.reduction import ratio
from medseg.losses.table import loss
from medseg.types import PerClass


@loss(
    family="region",
    paper="Sun et al. 2023, Boundary difference over union loss for medical image segmentation, arXiv 2308.00220",
    batch=False,
    handles=("imbalance", "boundary", "missing"),
    range="[0, 1]",
    excepts={"rank": "no structure of the test is large enough for α to come near its limit"},
)
def boundary_dou(x: Comparison, *, limit: float = 1.0, smooth: float = 1e-5) -> PerClass:
    """Difference over union, less a share of the intersection that grows as the structure gets large for its outline.

    Equation:
        (U - I + s) / (U - α I + s),  I = Σ p g,  U = Σ p² + Σ g² - I,
        α = 1 - 2 C / S in [0, limit],  C = voxels of the target's outline, S = all of them

    Use: In place of Dice where outlines matter; it is made of sums, needs no distances, and trains alone.

    Known trouble: A large structure has α near 1, and then all that is not perfect costs nearly 1: the authors' later
    code recommends limit=0.8. Small and thin ones, half of which is outline, have α = 0: the jaccard of squares.

    Public code: The authors' lets α become negative for thin structures, where the paper has [0, 1), always sums over
    the batch (here batch=True), and has no 3D; here an outline voxel has a face neighbour that is none of the
    structure's, in two or three dimensions.

    Args:
        limit: The largest α, at least 0; 1 is none.
    """
    if limit < 0:
        raise ValueError(f"limit must be at least 0, got {limit}")
    both, union = x.tp_with_squares, x.sum_p2 + x.sum_g2 - x.tp_with_squares
    share = (1 - 2 * ratio(x.pool(_outline_sizes(x)), x.sum_g)).clamp(0, limit)
    return (union - both + smooth) / (union - share * both + smooth)


@torch.no_grad()
def _outline_sizes(x: Comparison) -> PerClass:
    """How many voxels of each class lie at its outline; what is ignored is another class, and beyond the edge too."""
    if x.labels is not None:
        labels = x.labels.long() if x.valid is None else torch.where(x.valid, x.labels.long(), -1)
        rim = steps_over(labels, len(x.shape) - 2).to(x.dtype)
        return x.label_sums(rim if x.weight is None else rim * x.weight.squeeze(1))
    masks, here = target_masks(x, 0), existing(x, 0)
    rim = (masks & steps_over(masks, len(x.shape) - 2)).to(x.dtype)
    return (rim if here is None or x.weight is None else rim * x.weight).flatten(2).sum(2)


def steps_over(values: Tensor, axes: int) -> Bool[Tensor, "*shape"]:
    """Whether any voxel over a face holds another value; beyond the edge every value is another.

    Example:
        >>> steps_over(torch.tensor([[0, 0, 0, 1, 1]]), axes=1).int().tolist()
        [[1, 0, 1, 1, 1]]
    """
    differs = torch.zeros_like(values, dtype=torch.bool)
    for axis in range(-axes, 0):
        length = values.shape[axis]
        step = values.narrow(axis, 1, length - 1) != values.narrow(axis, 0, length - 1)
        differs.narrow(axis, 1, length - 1).logical_or_(step)
        differs.narrow(axis, 0, length - 1).logical_or_(step)
        differs.select(axis, 0).fill_(True)
        differs.select(axis, -1).fill_(True)
    return differs
