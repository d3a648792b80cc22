"""Distribution losses: a penalty per voxel, averaged; all of them read log p at the true class."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  torch's own alias
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.reduction import Weights, class_vector, mean_over_voxels
from medseg.losses.table import Reduced, loss


@loss(
    family="distribution",
    paper="Yeung et al. 2022, Unified Focal loss, arXiv 2102.04525, Eq. 2",
    soft=True,
)
def cross_entropy(
    x: Comparison, *, weight: Weights = None, label_smoothing: float = 0.0, normalize: str = "voxels"
) -> Reduced:
    """Minus the log-probability of the true class: the default of classification.

    Equation:
        -(1/N) Σ_i Σ_c w_c q_ic log p_ic,  q = (1 - ε) g + ε / C
    """
    if x.mode != "multiclass" or not (label_smoothing or (x.soft and weight is not None)):
        values, weighted = -x.log_p_true, False
    else:
        w = class_vector([1.0] * x.shape[1] if weight is None else weight, x).unsqueeze(1)

        def smoothed(z: Tensor, truth: Tensor, _: Tensor | None) -> Tensor:
            log_p = w * F.log_softmax(z, 1)
            at_truth = (
                log_p.gather(1, truth.long().unsqueeze(1)).squeeze(1) if truth.ndim == 2 else (truth * log_p).sum(1)
            )
            return -(1 - label_smoothing) * at_truth - label_smoothing * log_p.mean(1)

        values, weighted = x.voxelwise(smoothed), True
    return mean_over_voxels(values, x, weight=weight, normalize=normalize, weighted=weighted)
