"""Logits held against a target: what every loss reads, each quantity computed once and only when asked for.

A loss is a pure function of a `Comparison`. It never sees an activation, an ignore label, a half-precision number
or a reduction: the door (`inputs.py`, `criterion.py`) has settled those.

What is here, with b samples, c channels, *s two or three spatial axes:

* **full maps** (for the few losses that need them): ``logits``, ``probs``, ``onehot`` (b c *s);
  ignored voxels hold 0 in ``onehot`` and their ``weight`` is 0;
* **streamed sums** (b c), or (1 c) where the loss runs over the batch, in double precision: ``tp``, ``fp``, ``fn``,
  ``tn``, ``sum_p``, ``sum_g``, ``voxels``, and of squares ``sum_p2``, ``sum_g2``, ``error_inside``,
  ``error_outside``;
* **streamed maps**: ``log_p_true`` and whatever `Comparison.voxelwise` is given;
* **who counts**: ``weight`` (b 1|c *s) or None, how many voxels a voxel counts as (ignored 0, times the caller's
  voxel weight); ``valid`` (b *s) or None, the same as a yes or no; ``class_mask`` (b c) or None, which classes
  were annotated; ``undrawn`` (b c) or None, whose probabilities the background has been given.
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
from medseg.losses.table import Mode
from medseg.types import Logits, PerClass, PerVoxel, Probabilities

Kind = Literal["overlap", "sizes", "squares"]
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


class Sum:
    """One of the sums of a walk over the volume, as an attribute."""

    def __init__(self, kind: Kind, place: int, what: str) -> None:
        self.kind, self.place, self.__doc__ = kind, place, what

    def __get__(self, comparison: Comparison, owner: type) -> PerClass:
        return comparison.sums(self.kind)[self.place]


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
        undrawn: Classes of ``multiclass`` that were not: no target voxel has them, and in all that is read here they
            have no probability, the background has theirs (see `statistics.merged`). None means that there is none.
        spacing_mm: Voxel size per sample (b axes); None means distances in voxels.
        instances, skeleton, distance_map: Precomputed maps for the losses that would compute them.
        beforehand: Maps of the target by what asks for them, see `medseg.losses.beforehand`; others are added.
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
    undrawn: Bool[Tensor, "b c"] | None = None
    spacing_mm: Float[Tensor, "b axes"] | None = None
    instances: Tensor | None = None
    skeleton: Tensor | None = None
    distance_map: Tensor | None = None
    beforehand: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    reduction: str = "mean"
    batch: bool = False
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

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
        return statistics.merged(self.raw.to(self.dtype).flatten(2), self.undrawn).reshape(self.shape)

    @once
    def probs(self) -> Probabilities:
        """Softmax over the classes, or a sigmoid per channel."""
        return self.logits.softmax(1) if self.mode == "multiclass" else self.logits.sigmoid()

    @once
    def best(self) -> Integer[Tensor, "b *s"]:
        """The likeliest class of each voxel."""
        return (self.raw if self.undrawn is None else self.logits).argmax(1)

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

    def voxelwise(
        self, function: Callable[[Tensor, Tensor], Tensor], truth: Shaped[Tensor, "b c *s"] | None = None
    ) -> Float[Tensor, "b *rest"]:
        """Map ``function`` over the voxels, chunk by chunk, without keeping what it computes on the way.

        Args:
            function: Takes the chunk's logits (b c n) in working precision and its truth (labels (b n), or a dense
                target (b c n)); gives (b n) or (b c n).
            truth: Maps to hand it in place of the target.
        """
        walk = statistics.Walk(lambda z, g, _: (None, function(z, g)))
        g = self._truth if truth is None else truth.flatten(2)
        values: Tensor = walk(self.raw.flatten(2), g, None, self.undrawn)[1]
        return values.reshape(*values.shape[:-1], *self.shape[2:])

    def class_mean(self, values: Float[Tensor, "b c n"]) -> Float[Tensor, "b n"]:
        """Average a chunk over the classes that the sample's annotation tells apart."""
        if self.undrawn is None:
            return values.mean(1)
        drawn = ~self.undrawn.unsqueeze(2)
        return (values * drawn).sum(1) / drawn.sum(1)

    @once
    def log_p_true(self) -> PerVoxel:
        """Log p of the true answer: (b *s) over classes, (b c *s) where every channel has its own answer.

        With soft targets, the expectation of log p under the target: minus the cross-entropy.
        """
        if self.mode == "multiclass" and not self.soft:
            return self._first_pass[1].reshape(self.shape[0], *self.shape[2:])
        return self.voxelwise(_soft_log_softmax if self.mode == "multiclass" else _log_sigmoid_at_target)

    @once
    def log_p_false(self) -> Float[Tensor, "b c *s"]:
        """Log p of the other answer, in the sigmoid modes."""
        return self.voxelwise(lambda z, g: _log_sigmoid_at_target(z, 1 - g.to(z.dtype)))

    @property
    def _truth(self) -> Tensor:
        if self.labels is not None:
            return self.labels.flatten(1)
        assert self.target is not None  # one of the two is always there
        return self.target.flatten(2)

    # ------------------------------------------------------------------ streamed sums

    tp = Sum("overlap", 0, "Σ p g.")
    fp = Sum("overlap", 1, "Σ p (1 - g).")
    fn = Sum("overlap", 2, "Σ (1 - p) g.")
    tn = Sum("overlap", 3, "Σ (1 - p) (1 - g).")
    sum_g = Sum("sizes", 0, "Σ g, the size of the structure in voxels.")
    voxels = Sum("sizes", 1, "Σ 1, the voxels that count.")
    sum_p2 = Sum("squares", 0, "Σ p².")
    sum_g2 = Sum("squares", 1, "Σ g², which is Σ g unless the target is soft.")
    error_inside = Sum("squares", 2, "Σ (p - g)² g, the squared errors on the structure.")
    error_outside = Sum("squares", 3, "Σ (p - g)² (1 - g), those beside it.")
    tp_with_squares = Sum("squares", 4, "Σ p g, from the walk that yields the squares: for losses that need no other.")

    @property
    def sum_p(self) -> PerClass:
        """Σ p."""
        return self.tp + self.fp

    @property
    def sum_abs(self) -> PerClass:
        """Σ |p - g|."""
        return self.sums("squares")[5] if self.soft else self.fp + self.fn

    def sums(self, kind: Kind) -> Float[Tensor, "k n c"]:
        """All sums of one walk, in double precision, per sample, or over the batch where this view says so."""
        key = (kind, self.batch)
        if key not in self.cache:
            walk = {"overlap": self._overlap, "sizes": self._sizes, "squares": self._squares}[kind]
            self.cache[key] = self.pool(self.over_batch(False).sums(kind)) if self.batch else walk()
        found: Tensor = self.cache[key]
        return found

    def pool(self, sums: Float[Tensor, "*k b c"]) -> Float[Tensor, "*k n c"]:
        """Add sums per sample and class over the batch and all ranks, if this view says so.

        Classes that were not annotated in a sample leave its sums out.
        """
        if not self.batch:
            return sums
        if self.class_mask is not None:
            sums = sums * self.class_mask
        return sum_over_ranks(sums.sum(-2, keepdim=True))

    @once
    def _first_pass(self) -> tuple[Tensor, Tensor]:
        return self._over_labels(statistics.OVERLAP)

    @once
    def confusion(self) -> Float[Tensor, "b c c"]:
        """Probability given to each class, summed over the voxels of each class; hard ``multiclass`` labels only."""
        matrix: Tensor = self._over_labels(statistics.CONFUSION)[0]
        return matrix

    def _over_labels(self, walk: statistics.Walk) -> tuple[Any, Any]:
        weight = None if self.weight is None else self.weight.flatten(2)
        return walk(self.raw.flatten(2), self._truth, weight, self.undrawn)

    def _overlap(self) -> Float[Tensor, "4 b c"]:
        if self.labels is None:
            return self._stream(_overlaps)
        (tp, fp), (sum_g, voxels) = self._first_pass[0], self.sums("sizes")
        return torch.stack([tp, fp, sum_g - tp, voxels - sum_g - fp])

    def _sizes(self) -> Float[Tensor, "2 b c"]:
        """Walk over the target alone: no probabilities."""
        if self.labels is not None:
            sum_g = self.label_sums(self.weight)
            return torch.stack([sum_g, sum_g.sum(1, keepdim=True).expand_as(sum_g)])
        g, weight = self._truth, None if self.weight is None else self.weight.flatten(2)
        parts = ((g[..., at] if weight is None else g[..., at] * weight[..., at]) for _, at in statistics.chunks(g))
        sum_g = torch.stack([part.sum(2, dtype=torch.float64) for part in parts]).sum(0)
        voxels = sum_g.new_tensor(g.shape[2]) if weight is None else weight.sum(2, dtype=torch.float64)
        return torch.stack([sum_g, voxels.expand_as(sum_g)])

    def _squares(self) -> Float[Tensor, "k b c"]:
        if self.labels is None:
            return self._stream(_squares)
        inside, hit, tp, outside = self._over_labels(statistics.SQUARES)[0]
        return torch.stack([hit + outside, self.sums("sizes")[0], inside, outside, tp])

    def _stream(self, moments: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def weighted(p: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
            values = moments(p, g)
            return (values if weight is None else values * weight).sum(-1)

        return self.sum_of(weighted)

    def sum_of(self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Add up, chunk by chunk, what ``function`` makes of probabilities, target (b c n) and weight (b 1|c n).

        The chunks' sums are added in double precision, in which the result is. With sums per sample and class as its
        last two axes it can be given to `pool`.
        """

        def summed(z: Tensor, truth: Tensor, weight: Tensor | None) -> tuple[Tensor, None]:
            p = z.softmax(1) if self.mode == "multiclass" else z.sigmoid()
            g = truth.to(z.dtype) if truth.ndim == z.ndim else statistics.onehot(truth, z)
            return function(p, g, weight).double(), None

        sums: Tensor = self._over_labels(statistics.Walk(summed))[0]
        return sums

    def label_sums(self, values: Float[Tensor, "b *rest"] | None) -> PerClass:
        """Sum ``values`` (one each if None) over the voxels of each class; hard ``multiclass`` labels only."""
        assert self.labels is not None  # the callers are in multiclass mode with hard labels
        labels, flat = self.labels.flatten(1), None if values is None else values.flatten(1)
        total = torch.zeros(self.shape[:2], dtype=torch.float64, device=self.raw.device)
        for start in range(0, labels.shape[1], 1 << 20):
            at = slice(start, start + (1 << 20))
            total += statistics.sums_by_label(labels[:, at], None if flat is None else flat[:, at], self.shape[1])
        return total


def _overlaps(p: Tensor, g: Tensor) -> Tensor:
    return torch.stack([p * g, p * (1 - g), (1 - p) * g, (1 - p) * (1 - g)])


def _squares(p: Tensor, g: Tensor) -> Tensor:
    error = (p - g) ** 2
    return torch.stack([p * p, g * g, error * g, error * (1 - g), p * g, (p - g).abs()])


def _soft_log_softmax(z: Tensor, g: Tensor) -> Tensor:
    return (g * F.log_softmax(z, 1)).sum(1)


def _log_sigmoid_at_target(z: Tensor, g: Tensor) -> Tensor:
    g = g.to(z.dtype)
    return g * F.logsigmoid(z) + (1 - g) * F.logsigmoid(-z)
