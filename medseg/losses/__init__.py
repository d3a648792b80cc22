"""Every published segmentation loss: exact, lean and composable.

Example:
    >>> from medseg.losses import build_loss, list_losses
    >>> "dice" in list_losses()
    True
"""

from __future__ import annotations

from medseg.losses import (
    boundary,
    compound,
    contours,
    distribution,
    focal,
    generalized,
    instances,
    lovasz,
    region,
    robust,
    topology,
    tversky,
    unified,
    weight_maps,
)
from medseg.losses.class_weights import class_weights
from medseg.losses.criterion import Criterion, NonFiniteLogitsError, build_loss
from medseg.losses.table import rows

__all__ = ["Criterion", "NonFiniteLogitsError", "build_loss", "class_weights", "list_losses"]

_CHAPTERS = (  # importing a chapter files its losses in the table
    *(distribution, focal, robust, weight_maps),
    *(region, tversky, generalized, lovasz),
    *(boundary, contours, topology),
    *(compound, unified, instances),
)


def list_losses(family: str | None = None) -> list[str]:
    """Name every loss, or those of one family (distribution, region, boundary, compound)."""
    return [name for name, row in rows().items() if family in (None, row.family)]
