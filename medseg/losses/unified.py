"""Yeung's compounds: focal beside focal Tversky, and the unified losses that share their knobs."""

from __future__ import annotations

from typing import Any

from medseg.losses.comparison import Comparison
from medseg.losses.focal import Alpha, asymmetric_focal, focal, symmetric_focal
from medseg.losses.knobs import Share
from medseg.losses.reduction import reduced
from medseg.losses.table import Reduced, loss
from medseg.losses.tversky import YEUNG, asymmetric_focal_tversky, focal_tversky, symmetric_focal_tversky


@loss(
    family="compound",
    paper=f"{YEUNG}, Eq. 15; Yeung et al. 2021, Focus U-Net, arXiv 2105.07467",
    parts=(focal_tversky,),
    handles=("imbalance", "small", "missing"),
)
def hybrid_focal(
    x: Comparison,
    *,
    lam: Share = 0.5,
    focal_gamma: float = 2.0,
    focal_alpha: Alpha = None,
    **knobs: Any,
) -> Reduced:
    """Focal plus focal Tversky.

    Equation:
        λ focal + (1 - λ) focal_tversky

    Use: Small lesions; the unified losses have fewer knobs.

    Known trouble: Six numbers to tune.

    Public code: Old code of the author attaches λ to the Tversky part.

    Args:
        lam: Share of focal.
        focal_gamma: The gamma of focal.
        focal_alpha: The alpha of focal.
        **knobs: Those of focal_tversky; weight goes to both parts.
    """
    voxels = reduced(focal, x, {"gamma": focal_gamma, "alpha": focal_alpha, "weight": knobs.get("weight")})
    return lam * voxels + (1 - lam) * reduced(focal_tversky, x, knobs)


@loss(
    family="compound",
    paper=f"{YEUNG}, Eq. 19",
    parts=(symmetric_focal, symmetric_focal_tversky),
    handles=("imbalance", "small", "missing"),
)
def symmetric_unified_focal(x: Comparison, *, lam: Share = 0.5, **knobs: Any) -> Reduced:
    """Yeung's focal and focal Tversky under three common knobs.

    Equation:
        λ symmetric_focal + (1 - λ) symmetric_focal_tversky

    Use: Imbalanced classes with few knobs to tune.

    Known trouble: With γ = 0 and δ = 0.5, λ = 0 is dice exactly but λ = 1 is half a cross-entropy, not a whole one.

    Public code: λ is on the focal part, as in the equations; the paper's figure and the author's code have it on the
    other.

    Args:
        lam: Share of the focal part.
        **knobs: delta, gamma in [0, 1), and the others of the two parts.
    """
    return lam * reduced(symmetric_focal, x, knobs) + (1 - lam) * reduced(symmetric_focal_tversky, x, knobs)


@loss(
    family="compound",
    paper=f"{YEUNG}, Eq. 22",
    parts=(asymmetric_focal, asymmetric_focal_tversky),
    handles=("imbalance", "small", "missing"),
)
def asymmetric_unified_focal(x: Comparison, *, lam: Share = 0.5, **knobs: Any) -> Reduced:
    """The unified focal loss that suppresses easy background only, never a structure.

    Equation:
        λ asymmetric_focal + (1 - λ) asymmetric_focal_tversky

    Use: As symmetric_unified_focal; the authors' own choice for small structures.

    Known trouble: As symmetric_unified_focal, which it is for γ = 0.

    Public code: MONAI's form halves the focal part, uses δ = 0.7 and applies no activation in spite of its
    documentation.

    Args:
        lam: Share of the focal part.
        **knobs: delta, gamma in [0, 1), and the others of the two parts.
    """
    return lam * reduced(asymmetric_focal, x, knobs) + (1 - lam) * reduced(asymmetric_focal_tversky, x, knobs)
