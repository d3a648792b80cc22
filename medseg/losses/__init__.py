"""Published segmentation losses: exact, lean and composable.

Example:
    >>> from medseg.losses import build_loss, list_losses
    >>> "dice" in list_losses()
    True
"""

from __future__ import annotations

from medseg.losses import (  # noqa: F401  importing a chapter files its losses in the table
    boundary,
    centreline,
    compound,
    contours,
    difference,
    distribution,
    exclusion,
    focal,
    generalized,
    instances,
    lovasz,
    mining,
    mutual_information,
    noisy,
    region,
    reliability,
    robust,
    sizes,
    soft_overlap,
    topology,
    tversky,
    unified,
    voronoi,
    weight_maps,
)
from medseg.losses.class_weights import class_weights
from medseg.losses.criterion import Criterion, NonFiniteLogitsError, build_loss
from medseg.losses.table import rows

__all__ = ["Criterion", "NonFiniteLogitsError", "build_loss", "class_weights", "list_losses"]


def list_losses(family: str | None = None) -> list[str]:
    """Name every loss, or those of one family (distribution, region, boundary, compound)."""
    return [name for name, row in rows().items() if family in (None, row.family)]
