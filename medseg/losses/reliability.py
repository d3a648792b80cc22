"""Calibration as a loss: where the network says 70 %, it shall be right in 70 of 100 voxels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.reduction import ratio
from medseg.losses.table import loss
from medseg.types import PerClass

FEWEST = 0.01
"""A soft bin that holds fewer voxels than this is left out: its means are quotients of crumbs."""


@loss(
    family="region",
    paper="Barfoot et al. 2024, Average calibration error: a differentiable loss for improved reliability in image "
    "segmentation, arXiv 2403.06759; soft bins: Barfoot et al. 2025, arXiv 2506.03942",
    batch=False,
    alone=False,
    range="[0, 1]",
    excepts={"half multiclass": "rounding moves a voxel over the edge of a hard bin, and the bin's mean jumps"},
)
def l1_ace(x: Comparison, *, bins: int = 20, binning: Literal["hard", "soft"] = "hard") -> PerClass:
    """The average calibration error itself: how far confidence and share of hits lie apart, every bin alike.

    Equation:
        mean over the bins m that hold voxels of |mean_{i in m} p_i - mean_{i in m} g_i|, per sample and class;
        hard: bins of width 1/M, closed above; soft: each voxel is shared between the two nearest bin centres, linearly

    Use: Where probabilities will be read as confidence: the authors' sum is dice + cross_entropy + l1_ace.

    Known trouble: Which bin a voxel falls into carries no gradient with hard bins, a little with soft ones. A class
    that is always predicted at its frequency is calibrated, so alone it teaches nothing. Patches with few voxels of
    middling confidence make it noisy.

    Public code: The authors' first code agrees. The later one and MONAI's count a class without a target voxel as 0
    in the mean, where absent="ignore" here leaves it out.

    Args:
        bins: M, at least 1.
        binning: Give a voxel to one bin, or share it between two.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")

    def sums(p: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
        one = torch.ones_like(p) if weight is None else weight.expand_as(p)
        total = p.new_zeros(3, *p.shape[:2], bins)
        for at, share in _shares(p, bins) if binning == "soft" else _bin(p, bins):
            for k, value in enumerate((one, one * p, one * g)):
                total[k] = total[k].scatter_add(2, at, share * value)
        return total.movedim(3, 1)  # (3, bins, b, c), as `pool` wants

    counts, confidence, hits = x.pool(x.sum_of(sums))
    held = counts >= FEWEST if binning == "soft" else counts > 0
    gaps = (ratio(confidence, counts) - ratio(hits, counts)).abs() * held
    return ratio(gaps.sum(0), held.sum(0).to(gaps))


def _bin(p: Tensor, bins: int) -> list[tuple[Tensor, Tensor]]:
    """The bin each probability falls into, and all of it."""
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    return [(torch.bucketize(p.detach().contiguous(), edges), p.new_ones(()))]


def _shares(p: Tensor, bins: int) -> list[tuple[Tensor, Tensor]]:
    """The bins whose centres lie below and above each probability, and its share in either."""
    place = (p * bins - 0.5).clamp(0, bins - 1)
    below = place.detach().nan_to_num().floor().long()
    upper = place - below
    return [(below, 1 - upper), ((below + 1).clamp_max(bins - 1), upper)]
