"""An exported network is believed only after it gave PyTorch's own answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseg.errors import CheckpointError
from medseg.export.model import Model

TOLERANCE = 1e-3
"""The largest difference of a logit, as a share of the largest logit where that exceeds 1."""


@dataclass(frozen=True)
class Verdict:
    """How an exported network compares with PyTorch: in any logit, beside the largest, on so many patches."""

    largest_difference: float
    largest_logit: float
    patches: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"largest_difference": self.largest_difference, "patches": self.patches, "tolerance": TOLERANCE}


def compare(
    model: Model, run: Callable[[Tensor], Tensor], patches: Float[Tensor, "b m i j k"], *, what: str
) -> Verdict:
    """Run both on the patches, one alone and all at once.

    Raises:
        CheckpointError: The two differ by more than `TOLERANCE`.
    """
    with torch.inference_mode():
        expected = model.net(patches)
        found = [run(patches[:1]), run(patches)]
    difference = max(float((one - expected[: len(one)]).abs().max()) for one in found)
    verdict = Verdict(difference, float(expected.abs().max()), len(patches))
    if not difference <= TOLERANCE * max(1.0, verdict.largest_logit):  # NaN differs too
        raise CheckpointError(
            model.checkpoint.path,
            f"holds a network whose {what} differs from PyTorch by {difference:.2g} in logits up to "
            f"{verdict.largest_logit:.2g}",
            "Nothing was written; choose another --format",
        )
    return verdict
