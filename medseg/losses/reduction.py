"""From a value per class or voxel to a value per batch or sample: who counts, and how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Weights
from medseg.losses.ranks import mean_over_ranks, sum_over_ranks
from medseg.losses.table import PER_CLASS_KNOBS, PER_VOXEL_KNOBS, Reduced, row
from medseg.types import PerClass, PerVoxel


def reduced(
    function: Callable[..., Tensor],
    x: Comparison,
    knobs: Mapping[str, Any] = MappingProxyType({}),
    *,
    bend: Callable[[Tensor], Tensor] | None = None,
    class_reduction: str = "mean",
) -> Reduced:
    """Evaluate a loss of the table and reduce it as ``x.reduction`` asks: how compounds call their parts.

    Args:
        function: A function filed with `loss`.
        x: The comparison.
        knobs: A compound's, or the loss's own; it takes those it knows, the others of its keep their defaults.
        bend: Applied to the values per class or voxel before they are averaged.
        class_reduction: ``sum`` to add classes up instead of averaging; for losses that yield a value per class.

    Returns:
        A scalar, or a value per sample (b,) where ``x.reduction`` is ``none``; a loss whose sums run over the batch
        gives every sample the batch's value.
    """
    about = row(function)
    knobs = {**about.knobs, **knobs}
    if "batch" in about.shared:
        x = x.over_batch(knobs["batch"])
    values = function(x, **{name: knobs[name] for name in (*about.own, *about.learnable) if name in knobs})
    values = values if bend is None else bend(values)
    if about.yields is PerClass:
        shared = {name: knobs[name] for name in PER_CLASS_KNOBS}
        value = mean_over_classes(values, x, class_reduction=class_reduction, **shared)
    elif about.yields is PerVoxel:
        value = mean_over_voxels(values, x, **{name: knobs[name] for name in PER_VOXEL_KNOBS})
    else:
        value = per_batch_or_sample(values, x)
    return value.to(x.dtype)


def per_batch_or_sample(values: Tensor, x: Comparison) -> Reduced:
    """Average a value per sample (b,), or give each sample the batch's value; samples without annotation have none."""
    if x.class_mask is None or values.shape != x.shape[:1]:
        return values.mean() if x.reduction == "mean" else values.expand(x.shape[0])
    counts = (x.class_mask > 0).any(1).to(values.dtype)
    values = torch.where(counts > 0, values, 0)
    return values if x.reduction == "none" else ratio(values.sum(), mean_over_ranks(counts.sum()))


def mean_over_classes(
    values: PerClass,
    x: Comparison,
    *,
    include_background: bool = True,
    weight: Weights = None,
    weight_mode: str = "normalized",
    absent: str = "keep",
    class_reduction: str = "mean",
) -> Reduced:
    """Average over samples and classes.

    Equation:
        Σ w_c l_nc / Σ w_c (``normalized``) or Σ w_c l_nc / Σ 1 (``plain``), over the (n, c) that count

    Args:
        values: A loss per sample and class; (1, c) where sums ran over the batch.
        x: The comparison; its ``class_mask`` says which classes were annotated.
        class_reduction: ``sum`` adds the classes, w_c l_nc, and averages over samples only.
    """
    counts = classes_that_count(x, include_background=include_background, absent=absent)
    w = counts if weight is None else counts * class_vector(weight, x)
    numerator = torch.where(counts > 0, values, 0) * w
    if class_reduction == "sum":
        return per_batch_or_sample(numerator.sum(1), x)
    return quotient(numerator, w if weight_mode == "normalized" else counts, x)


def classes_that_count(x: Comparison, *, include_background: bool, absent: str = "keep") -> PerClass:
    """1 where a sample's class enters the mean, else 0; (1, c) where sums run over the batch."""
    counts = torch.ones(1 if x.batch else x.shape[0], x.shape[1], dtype=x.dtype, device=x.raw.device)
    if not include_background:
        counts[:, : x.first_class] = 0
    if x.class_mask is not None:
        mask = x.class_mask
        counts = counts * ((sum_over_ranks(mask.sum(0, keepdim=True)) > 0) if x.batch else mask)
    if absent == "ignore":
        counts = counts * (x.sum_g > 0)
    return counts


def mean_over_voxels(
    values: PerVoxel,
    x: Comparison,
    *,
    weight: Weights = None,
    normalize: str = "voxels",
    weighted: bool = False,
) -> Reduced:
    """Average over the voxels that count (over the elements where every channel has its own answer).

    Equation:
        Σ v_i w_{y_i} l_i / Σ v_i (``voxels``) or Σ v_i w_{y_i} l_i / Σ v_i w_{y_i} (``weights``)

    Args:
        values: A loss per voxel (b *s), or per element (b c *s) in the sigmoid modes.
        x: The comparison; its weights are the v_i.
        weighted: Whether ``values`` contain the class weights already.
    """
    v, factor = element_weight(x), None if weight is None else class_factor(class_vector(weight, x), x)
    numerator, denominator = values, values.new_ones([1] * values.ndim)
    if v is not None:
        numerator, denominator = numerator * v, v
    if factor is not None:
        numerator = numerator if weighted else numerator * factor
        denominator = denominator * factor if normalize == "weights" else denominator
    return quotient(numerator, denominator, x)


def quotient(numerator: Tensor, denominator: Tensor, x: Comparison) -> Reduced:
    """Sum over sum, of the batch on all ranks or of each sample; the denominator may have axes of length 1.

    The gradient of a sum is one number seen as a map, where that of a mean is a map.
    """
    if x.reduction == "none":
        repeats = numerator[0].numel() / denominator[0].numel()
        return ratio(numerator.flatten(1).sum(1), denominator.flatten(1).sum(1) * repeats).expand(x.shape[0])
    repeats = numerator.numel() / denominator.numel()
    return ratio(numerator.sum(), mean_over_ranks(denominator.sum() * repeats))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 with a gradient of 0 where there is nothing to divide by."""
    empty = denominator == 0
    return torch.where(empty, numerator * 0, numerator / torch.where(empty, 1, denominator))


def power(base: Tensor, exponent: float) -> Tensor:
    """Raise numbers of at least 0 to a power; a fractional one has a finite slope at 0.

    Below a millionth (1e-12 in double precision) an exponent in (0, 1) is replaced by the chord to 0, so the value
    stays continuous and exactly 0 at 0.
    """
    if exponent >= 1 or exponent == 0:
        return base.clamp_min(0) ** exponent
    tiny = 1e-12 if base.dtype == torch.float64 else 1e-6
    return torch.where(base > tiny, base.clamp_min(tiny) ** exponent, base.clamp_min(0) * tiny ** (exponent - 1))


def class_vector(weight: Sequence[float] | Tensor | float, x: Comparison) -> Tensor:
    """One number per channel as a tensor; the length is checked here and only here.

    Raises:
        ValueError: If there is not one number for every channel of the logits, background included.
    """
    vector = torch.as_tensor(weight, dtype=x.dtype, device=x.raw.device)
    if vector.shape != (x.shape[1],):
        raise ValueError(
            f"class weights must hold {x.shape[1]} numbers, one per channel of the logits with background included, "
            f"got {list(vector.shape)}: {vector.tolist()}. Give every class a weight, 0 to leave one out."
        )
    return vector


def class_factor(vector: Tensor, x: Comparison) -> Tensor:
    """What a number per class (c,) or per sample and class (b, c) says of each voxel.

    Returns:
        The true class's number (b *s); with soft targets the expected one; (·, c, 1, ...) in the sigmoid modes.
    """
    table = vector.to(x.dtype).expand(x.shape[0], x.shape[1])
    spread = table.reshape(*table.shape, *[1] * (len(x.shape) - 2))
    if x.mode != "multiclass":
        return spread
    if x.labels is None:
        return (spread * x.onehot).sum(1)
    chosen = table.gather(1, x.labels.flatten(1).long())
    return chosen.reshape(x.labels.shape)


def element_weight(x: Comparison) -> Tensor | None:
    """How much each voxel (b *s), or element in the sigmoid modes (b 1|c *s), counts; None where all count one."""
    weight = x.weight
    if weight is not None and x.mode == "multiclass":
        weight = weight.squeeze(1)
    if x.class_mask is None:
        return weight
    mask = class_factor(x.class_mask, x)
    return mask if weight is None else weight * mask
