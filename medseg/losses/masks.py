"""What the losses of shape compare: masks of target and prediction, and who counts in them.

Ignored voxels (and those of weight 0) belong to no mask and to no mask's outside: distances, surfaces, skeletons and
components are those of a volume from which they have been cut away. They enter no sum and no denominator.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.reduction import ratio
from medseg.machine.devices import uploaded
from medseg.space.fields import boundary_distance
from medseg.types import PerClass

Threshold = float | Literal["argmax"]
"""A probability from which on a voxel is predicted, or the class that is likeliest."""


def first_channel(x: Comparison, *, include_background: bool) -> int:
    """The first channel worth computing: background costs as much as an organ and is seldom asked for."""
    return 0 if include_background else x.first_class


def all_channels(values: Float[Tensor, "b part"], first: int) -> PerClass:
    """Put zeros where the background was left out; the door does not count them."""
    return F.pad(values, (first, 0))


def target_masks(x: Comparison, first: int) -> Bool[Tensor, "b part *s"]:
    """Where the target is each class, from channel ``first`` on; False where ignored."""
    if x.labels is None:
        masks = x.onehot[:, first:] > 0.5
    else:
        masks = torch.stack([x.labels == c for c in range(first, x.shape[1])], 1)
    return only(masks, existing(x, first))


def predicted_masks(x: Comparison, first: int, threshold: Threshold = 0.5) -> Bool[Tensor, "b part *s"]:
    """Where the prediction is each class, from channel ``first`` on; False where ignored.

    Raises:
        ValueError: If the likeliest of several classes is asked for where channels do not exclude each other.
    """
    if threshold == "argmax":
        if x.mode != "multiclass":
            raise ValueError(f"threshold='argmax' needs mode 'multiclass', not {x.mode!r}. Give a probability.")
        masks = torch.stack([x.best == c for c in range(first, x.shape[1])], 1)
    else:
        masks = x.probs[:, first:] > threshold  # not under no_grad: the probabilities are kept for others
    return only(masks, existing(x, first))


def counted(x: Comparison, first: int) -> Float[Tensor, "b part *s"] | None:
    """How much each voxel counts, for all channels or for each from ``first`` on; None where all count one."""
    if x.weight is None or x.weight.shape[1] == 1:
        return x.weight
    return x.weight[:, first:]


def existing(x: Comparison, first: int) -> Bool[Tensor, "b part *s"] | None:
    """Which voxels are there at all; None where all are."""
    weight = counted(x, first)
    return None if weight is None else weight > 0


def only(values: Tensor, here: Tensor | None) -> Tensor:
    """Set what does not exist to 0."""
    return values if here is None else values * here


def mean_over_space(values: Float[Tensor, "b part *s"], x: Comparison, first: int) -> Float[Tensor, "b part"]:
    """Average over the voxels that count; 0 with a gradient of 0 where none does."""
    weight = counted(x, first)
    if weight is None:
        return values.flatten(2).mean(2)
    return ratio((values * weight).flatten(2).sum(2), weight.expand_as(values).flatten(2).sum(2))


def sum_over_space(values: Float[Tensor, "b part *s"], x: Comparison, first: int) -> Float[Tensor, "b part"]:
    """Add up over the voxels that count, each as much as it counts."""
    weight = counted(x, first)
    return (values if weight is None else values * weight).flatten(2).sum(2)


def per_channel(given: Tensor, x: Comparison, first: int, name: str) -> Float[Tensor, "b part *s"]:
    """Cut a map that the caller made beforehand to the channels at work.

    Raises:
        ValueError: If there is not one map for each channel.
    """
    maps = given.unsqueeze(1) if given.ndim == len(x.shape) - 1 else given
    if maps.shape != x.shape:
        raise ValueError(
            f"{name} must hold a map for each of the {x.shape[1]} channels of the logits, background included: "
            f"shape {tuple(x.shape)}, got {tuple(given.shape)}"
        )
    return uploaded(maps[:, first:], x.raw.device, x.dtype)


def mask_distance(
    x: Comparison, masks: Bool[Tensor, "b part *s"], first: int, *, exclusive: bool
) -> Float[Tensor, "b part *s"]:
    """The unsigned distance to the other side of each mask's boundary, among the voxels that are there."""
    valid = existing(x, first)
    return boundary_distance(masks, x.spacing_mm, valid=valid, exclusive=exclusive, dtype=x.dtype)


@torch.no_grad()
def signed_map(x: Comparison, truth: Bool[Tensor, "b part *s"], first: int) -> Float[Tensor, "b part *s"]:
    """Measure φ: the distance to the target outside it; minus the distance to its outside, less one step, inside.

    This is what ``distance_map`` holds when the caller computes it beforehand. A step is one voxel, or in millimetres
    the voxel's shortest edge, so φ is 0 on outermost voxels of the structure, nowhere above 0 inside it, and grows with
    the unit; 0 everywhere for a class that is absent or fills the volume.
    """
    if x.distance_map is not None:
        return per_channel(x.distance_map, x, first, "distance_map")
    distance = mask_distance(x, truth, first, exclusive=x.mode == "multiclass")
    return torch.where(truth & (distance > 0), shortest_step(x) - distance, distance)


@torch.no_grad()
def target_distance(x: Comparison, truth: Bool[Tensor, "b part *s"], first: int) -> Float[Tensor, "b part *s"]:
    """Measure the unsigned distance to the other side of the target's boundary; 0 where there is no boundary."""
    if x.distance_map is None:
        return mask_distance(x, truth, first, exclusive=x.mode == "multiclass")
    signed, outside = signed_map(x, truth, first), only(~truth, existing(x, first))
    bounded = truth.flatten(2).any(2) & outside.flatten(2).any(2)
    bounded = bounded.reshape(*bounded.shape, *[1] * (truth.ndim - 2))
    return torch.where(truth, shortest_step(x) - signed, signed) * bounded


def shortest_step(x: Comparison) -> Float[Tensor, "b *ones"]:
    """The shortest edge of each sample's voxels in millimetres, or one voxel."""
    steps = torch.ones(x.shape[0], 1) if x.spacing_mm is None else x.spacing_mm.amin(1, keepdim=True)
    return uploaded(steps, x.raw.device, x.dtype).reshape(-1, *[1] * (len(x.shape) - 1))
