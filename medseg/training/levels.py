"""The loss of a step: over all levels of deep supervision, with labels as the loss takes them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from medseg.losses import NonFiniteLogitsError
from medseg.patches.batch import Batch
from medseg.space.labels import IGNORED
from medseg.types import Labels, Levels, Logits


def judge(loss: nn.Module, outputs: Logits | Levels, batch: Batch, membership: Tensor | None) -> Tensor:
    """The loss, each level with half the weight of the finer; the terms that it logs are those of the finest.

    Args:
        loss: A `medseg.losses.Criterion`, or what is called as one.
        outputs: Logits, or those of all levels, the finest first.
        batch: With the labels.
        membership: See `target_of`.
    """
    levels = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [0.5**depth for depth in range(len(levels))]
    total = torch.zeros((), device=batch.image.device)
    for logits, weight in reversed(list(zip(levels, weights, strict=True))):  # finest last: its terms remain
        labels = nearest_labels(batch.labels, logits.shape[2:])
        fine, coarse = batch.labels.shape[-3:], logits.shape[-3:]
        spacing_mm = batch.spacing_mm * torch.tensor([n / m for n, m in zip(fine, coarse, strict=True)])
        try:
            value = loss(logits, target_of(labels, membership), spacing_mm, class_mask=batch.class_mask)
        except NonFiniteLogitsError:  # a gradient that is not finite either lets every process skip the step
            value = logits.sum() * math.nan
        total = total + weight / sum(weights) * value
    return total


def target_of(labels: Integer[Tensor, "b *space"], membership: Tensor | None) -> Integer[Tensor, "b *target"]:
    """Class indices as they are, or for overlapping regions a 0/1 map ``(b, c, i, j, k)``; ignored ones stay −1.

    Args:
        labels: Of the store.
        membership: Which value (columns) lies in which region (rows), where regions may overlap.
    """
    if membership is None:
        return labels
    masks = membership[:, labels.clamp(min=0).long()].transpose(0, 1).to(torch.int8)
    return masks.masked_fill((labels == IGNORED).unsqueeze(1), IGNORED)


def nearest_labels(labels: Labels, shape: torch.Size) -> Integer[Tensor, "b *coarse"]:
    """Labels at a coarser grid: of each of its voxels, the one in the middle of the finer voxels that it covers."""
    for axis, (fine, coarse) in enumerate(zip(labels.shape[1:], shape, strict=True), start=1):
        if fine != coarse:
            centres = (torch.arange(coarse, device=labels.device) + 0.5) * (fine / coarse)
            labels = labels.index_select(axis, centres.long())
    return labels
