"""Logits held against a target: what every loss reads, each quantity computed once and only when asked for.

A loss is a pure function of a `Comparison`. It never sees an activation, an ignore label, a half-precision number
or a reduction: the door (`inputs.py`, `criterion.py`) has settled those.

What is here, with b samples, c channels, *s two or three spatial axes:

* **full maps** (for the few losses that need them): ``logits``, ``probs``, ``log_probs``, ``onehot`` (b c *s);
  ignored voxels hold 0 in ``onehot`` and their ``weight`` is 0;
* **streamed sums** (b c), or (1 c) where the loss runs over the batch: ``tp``, ``sum_p``, ``sum_g``, ``voxels``,
  and of squares ``sum_p2``, ``sum_g2``, ``sum_abs``, ``error_inside``, ``error_outside``;
* **streamed maps**: ``log_p_true`` and whatever `Comparison.voxelwise` is given;
* **who counts**: ``weight`` (b 1|c *s) or None, how many voxels a voxel counts as (ignored 0, times the caller's
  voxel weight); ``valid`` (b *s) or None, the same as a yes or no; ``class_mask`` (b c) or None, which classes
  were annotated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from medseg.losses import statistics
from medseg.losses.ranks import sum_over_ranks
from medseg.types import Logits, PerClass, PerVoxel, Probabilities

Mode = Literal["multiclass", "binary", "multilabel"]
T = TypeVar("T")


class once(Generic[T]):  # noqa: N801  reads as a decorator, like `property`
    """Like a cached property, but shared by every view of one comparison (see `Comparison.over_batch`)."""

    def __init__(self, compute: Callable[[Comparison], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, comparison: Comparison, owner: type) -> T:
        name = self.compute.__name__
        if name not in comparison.cache:
            comparison.cache[name] = self.compute(comparison)
        value: T = comparison.cache[name]
        return value


@dataclass(eq=False, kw_only=True)
class Comparison:
    """One forward pass's logits beside their target.

    Args:
        raw: Logits as the network gave them, in any floating type.
        mode: ``multiclass`` (softmax), ``binary`` (one channel, sigmoid) or ``multilabel`` (a sigmoid per channel).
        labels: Class indices (b *s), 0 where ignored; None unless ``multiclass`` with hard targets.
        target: Dense target (b c *s), 0 where ignored; None where ``labels`` says it all.
        soft: Whether ``target`` holds fractions.
        weight: How many voxels each element counts as (b 1|c *s); None means one each.
        class_mask: Which classes were annotated, per sample; None means all.
        spacing_mm: Voxel size per sample (b axes); None means distances in voxels.
        instances, skeleton, distance_map: Precomputed maps for the losses that would compute them.
        reduction: ``mean`` or ``none`` (a value per sample).
        batch: Whether sums run over the batch, on all ranks, too.
    """

    raw: Shaped[Tensor, "b c *s"]
    mode: Mode
    labels: Integer[Tensor, "b *s"] | None = None
    target: Shaped[Tensor, "b c *s"] | None = None
    soft: bool = False
    weight: Float[Tensor, "b w *s"] | None = None
    class_mask: PerClass | None = None
    spacing_mm: Float[Tensor, "b axes"] | None = None
    instances: Tensor | None = None
    skeleton: Tensor | None = None
    distance_map: Tensor | None = None
    reduction: str = "mean"
    batch: bool = False
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    # ------------------------------------------------------------------ shape and views

    @property
    def shape(self) -> torch.Size:
        """The shape of the logits, (b, c, *s)."""
        return self.raw.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type everything is computed in: double if the logits are double, else single."""
        return statistics.working_dtype(self.raw)

    @property
    def first_class(self) -> int:
        """The first channel that is not background: 1 in ``multiclass``, else 0."""
        return 1 if self.mode == "multiclass" else 0

    def over_batch(self, batch: bool = True) -> Comparison:
        """Give the same comparison with its sums running over the batch (and all ranks) too."""
        view = copy.copy(self)
        view.batch = batch
        return view

    # ------------------------------------------------------------------ full maps

    @once
    def logits(self) -> Logits:
        """The logits in working precision."""
        return self.raw.to(self.dtype)

    @once
    def probs(self) -> Probabilities:
        """Softmax over the classes, or a sigmoid per channel."""
        return self.logits.softmax(1) if self.mode == "multiclass" else self.logits.sigmoid()

    @once
    def log_probs(self) -> Float[Tensor, "b c *s"]:
        """Log p, exact also where p underflows."""
        return F.log_softmax(self.logits, 1) if self.mode == "multiclass" else F.logsigmoid(self.logits)

    @once
    def onehot(self) -> Float[Tensor, "b c *s"]:
        """The target as one map per channel; ignored voxels are 0 in every channel."""
        if self.target is not None:
            return self.target.to(self.dtype)
        assert self.labels is not None  # one of the two is always there
        maps = torch.zeros(self.shape, dtype=self.dtype, device=self.raw.device)
        maps.scatter_(1, self.labels.long().unsqueeze(1), 1.0)
        return maps if self.valid is None else maps * self.valid.unsqueeze(1)

    @once
    def valid(self) -> Bool[Tensor, "b *s"] | None:
        """Voxels that count, in any channel; None where all do."""
        return None if self.weight is None else (self.weight > 0).any(1)

    # ------------------------------------------------------------------ streamed maps

    def voxelwise(self, function: statistics.VoxelFunction) -> Float[Tensor, "b *rest"]:
        """Map ``function`` over the voxels, chunk by chunk, without keeping what it computes on the way.

        Args:
            function: Takes the chunk's logits (b c n) in working precision, its truth (labels (b n), or a dense
                target (b c n)) and None; gives (b n) or (b c n).
        """
        flat = statistics.streamed_map(function, self.raw.flatten(2), self._truth)
        return flat.reshape(*flat.shape[:-1], *self.shape[2:])

    @property
    def log_p_true(self) -> PerVoxel:
        """Log p of the true answer: (b *s) over classes, (b c *s) where every channel has its own answer.

        With soft targets, the expectation of log p under the target: minus the cross-entropy.
        """
        if self.mode == "multiclass" and not self.soft:
            return self._first_pass[2].reshape(self.shape[0], *self.shape[2:])
        return self._dense_log_p

    @once
    def log_p_false(self) -> Float[Tensor, "b c *s"]:
        """Log p of the other answer, in the sigmoid modes."""
        return self.voxelwise(lambda z, g, _: _log_sigmoid_at_target(z, 1 - g.to(z.dtype), None))

    @once
    def _dense_log_p(self) -> Tensor:
        return self.voxelwise(_soft_log_softmax if self.mode == "multiclass" else _log_sigmoid_at_target)

    @property
    def _truth(self) -> Tensor:
        if self.labels is not None:
            return self.labels.flatten(1)
        assert self.target is not None  # one of the two is always there
        return self.target.flatten(2)

    # ------------------------------------------------------------------ streamed sums

    @property
    def tp(self) -> PerClass:
        """Σ p g."""
        return self._sums[0]

    @property
    def sum_p(self) -> PerClass:
        """Σ p."""
        return self._sums[1]

    @property
    def sum_g(self) -> PerClass:
        """Σ g, the size of the structure in voxels."""
        return self._sizes[0]

    @property
    def voxels(self) -> PerClass:
        """Σ 1, the voxels that count."""
        return self._sizes[1]

    @property
    def sum_p2(self) -> PerClass:
        """Σ p²."""
        return self._squares[0]

    @property
    def sum_g2(self) -> PerClass:
        """Σ g², which is Σ g unless the target is soft."""
        return self._squares[1]

    @property
    def sum_abs(self) -> PerClass:
        """Σ |p - g|."""
        if self.labels is not None:  # |p - g| = p + g - 2 p g where g is 0 or 1
            return self.sum_p + self.sum_g - 2 * self.tp
        return self._squares[5]

    @property
    def error_inside(self) -> PerClass:
        """Σ (p - g)² g, the squared errors on the structure."""
        return self._squares[2]

    @property
    def error_outside(self) -> PerClass:
        """Σ (p - g)² (1 - g), those beside it."""
        return self._squares[3]

    @property
    def tp_with_squares(self) -> PerClass:
        """Σ p g, from the walk that yields the squares: for losses that need no other sum."""
        return self._squares[4]

    def pool(self, sums: Float[Tensor, "*k b c"]) -> Float[Tensor, "*k n c"]:
        """Add sums per sample and class over the batch and all ranks, if this view says so.

        Classes that were not annotated in a sample leave its sums out.
        """
        if not self.batch:
            return sums
        if self.class_mask is not None:
            sums = sums * self.class_mask
        return sum_over_ranks(sums.sum(-2, keepdim=True))

    @property
    def _sums(self) -> Tensor:
        return self._batch_sums if self.batch else self._sample_sums

    @property
    def _sizes(self) -> Tensor:
        if self.labels is None:
            return self._sums[2:]
        return self._batch_sizes if self.batch else self._sample_sizes

    @property
    def _squares(self) -> Tensor:
        return self._batch_squares if self.batch else self._sample_squares

    @once
    def _batch_sums(self) -> Tensor:
        return self.pool(self._sample_sums)

    @once
    def _batch_sizes(self) -> Tensor:
        return self.pool(self._sample_sizes)

    @once
    def _batch_squares(self) -> Tensor:
        return self.pool(self._sample_squares)

    @once
    def _first_pass(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.labels is not None  # asked for in multiclass mode with hard labels only
        weight = None if self.weight is None else self.weight.flatten(1)
        return statistics.softmax_pass(self.raw.flatten(2), self.labels.flatten(1), weight)

    @once
    def _sample_sums(self) -> Float[Tensor, "k b c"]:
        if self.labels is None:
            return self._stream(_first_moments)
        sum_p, tp, _ = self._first_pass
        return torch.stack([tp, sum_p])

    @once
    def _sample_sizes(self) -> Float[Tensor, "2 b c"]:
        sum_g = self.label_sums(self.weight)  # a walk over the labels alone: no probabilities, no gradient
        return torch.stack([sum_g, sum_g.sum(1, keepdim=True).expand_as(sum_g)])

    @once
    def confusion(self) -> Float[Tensor, "b c c"]:
        """Probability given to each class, summed over the voxels of each class; hard ``multiclass`` labels only."""
        assert self.labels is not None  # the callers are in multiclass mode with hard labels
        weight = None if self.weight is None else self.weight.flatten(1)
        return statistics.confusion_pass(self.raw.flatten(2), self.labels.flatten(1), weight)

    @once
    def _sample_squares(self) -> Float[Tensor, "k b c"]:
        if self.labels is None:
            return self._stream(_second_moments)
        weight = None if self.weight is None else self.weight.flatten(1)
        sums = statistics.squares_pass(self.raw.flatten(2), self.labels.flatten(1), weight)
        inside, hit, tp, outside = sums
        return torch.stack([hit + outside, self._sample_sizes[0], inside, outside, tp])

    def _stream(self, moments: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def weighted(p: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
            values = moments(p, g)
            return (values if weight is None else values * weight).sum(-1)

        return self.sum_of(weighted)

    def sum_of(self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Add up, chunk by chunk, what ``function`` makes of probabilities, target (b c n) and weight (b 1|c n).

        With sums per sample and class as its last two axes the result can be given to `pool`.
        """
        activate = torch.softmax if self.mode == "multiclass" else _sigmoid

        def chunk(z: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
            g = truth.to(z.dtype) if truth.ndim == z.ndim else _onehot_chunk(truth, z)
            return function(activate(z, 1), g, weight)

        weight = None if self.weight is None else self.weight.flatten(2)
        return statistics.streamed_sum(chunk, self.raw.flatten(2), self._truth, weight)

    def label_sums(self, values: Float[Tensor, "b *rest"] | None) -> PerClass:
        """Sum ``values`` (one each if None) over the voxels of each class; hard ``multiclass`` labels only."""
        assert self.labels is not None  # the callers are in multiclass mode with hard labels
        labels, flat = self.labels.flatten(1), None if values is None else values.flatten(1)
        total = torch.zeros(self.shape[:2], dtype=torch.float64, device=self.raw.device)
        for start in range(0, labels.shape[1], 1 << 20):
            at = slice(start, start + (1 << 20))
            total += statistics.sums_by_label(labels[:, at], None if flat is None else flat[:, at], self.shape[1])
        return total.to(self.dtype)


def _sigmoid(z: Tensor, _: int) -> Tensor:
    return z.sigmoid()


def _onehot_chunk(labels: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, labels.long().unsqueeze(1), 1.0)


def _first_moments(p: Tensor, g: Tensor) -> Tensor:
    return torch.stack([p * g, p, g, torch.ones_like(p)])


def _second_moments(p: Tensor, g: Tensor) -> Tensor:
    error = (p - g) ** 2
    return torch.stack([p * p, g * g, error * g, error * (1 - g), p * g, (p - g).abs()])


def _soft_log_softmax(z: Tensor, g: Tensor, _: Tensor | None) -> Tensor:
    return (g * F.log_softmax(z, 1)).sum(1)


def _log_sigmoid_at_target(z: Tensor, g: Tensor, _: Tensor | None) -> Tensor:
    g = g.to(z.dtype)
    return g * F.logsigmoid(z) + (1 - g) * F.logsigmoid(-z)
