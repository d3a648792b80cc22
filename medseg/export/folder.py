"""The folder of a model that nnU-Net predicts with, believed only after it was read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from medseg.export.model import Model
from medseg.nnunet.exporting import counterpart_of
from medseg.nnunet.folder import open_model
from medseg.nnunet.importing import OVERLAP, network_of


def write_nnunet(model: Model, folder: Path) -> Callable[[Tensor], Tensor]:
    """Write the network as nnU-Net v2 keeps one.

    Returns:
        What was written, read back and ready to be run.

    Raises:
        UsageError: nnU-Net has no counterpart of the network or its plan.
    """
    kept = model.checkpoint
    counterpart_of(model.net, kept.net, kept.knobs, model.plan, model.flips).write(folder)
    source = open_model(folder)
    *_, net = network_of(source, source.read_fold("0"))
    return net.eval()


def remarks(model: Model) -> list[str]:
    """What nnU-Net will do otherwise, a sentence each."""
    told = []
    values = tuple(model.plan.painted.values())
    if model.plan.exclusive and values != tuple(range(1, 1 + len(values))):
        named = ", ".join(f"{name} {number}" for number, name in enumerate(model.plan.organs, start=1))
        told.append(f"nnU-Net numbers labels from 1 on without a gap: there they are {named}")
    if model.checkpoint.cleaning:
        told.append("the cleaning rules of the checkpoint are not part of it")
    if model.plan.swap_labels and 0 in (model.flips or ()):
        told.append("nnU-Net cannot exchange left and right in flipped images: there it does not flip that axis")
    if (overlap := float(model.checkpoint.options["overlap"])) != OVERLAP:
        told.append(
            f"windows overlap by {overlap:g} here, by {OVERLAP:g} there: predict with -step_size {1 - overlap:g}"
        )
    if model.flips and not model.checkpoint.as_nnunet:
        told.append("nnU-Net averages flips before the softmax, medseg behind it: compare with --disable_tta")
    return told
