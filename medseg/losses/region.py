"""Region losses: ratios of sums over a structure, from Dice to Tversky; all of them read streamed statistics."""

from __future__ import annotations

from medseg.losses.comparison import Comparison
from medseg.losses.table import loss
from medseg.types import PerClass


@loss(
    family="region",
    paper="Drozdzal et al. 2016, The importance of skip connections, arXiv 1608.04117",
    batch=True,
    soft="soft_target",
    handles=("imbalance",),
    range="[0, 1]",
)
def dice(
    x: Comparison,
    *,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared: bool = False,
    soft_target: bool = False,
) -> PerClass:
    r"""One minus twice the overlap over the sum of sizes: the measure that papers report, made differentiable.

    Equation:
        1 - (2 Σ p g + s) / (Σ p + Σ g + s)
    """
    tp, p, g = x.tp, x.sum_p, x.sum_g
    if soft_target:
        tp = (p + g - x.sum_abs) / 2
    elif squared:
        p, g = x.sum_p2, x.sum_g2
    return 1 - (2 * tp + smooth_nr) / (p + g + smooth_dr)
