"""Sums over a volume that never hold the volume: chunk by chunk forward, recomputed chunk by chunk backward.

A region loss needs TP, FP and FN per sample and class, a voxel loss needs log p at the true class. Storing the
probabilities and a one-hot for that costs several copies of the logits (with 105 classes, gigabytes). Here each
chunk of voxels is activated, summed and forgotten, and the backward pass writes straight into the gradient.

Sums leave in double precision and errors are added up as errors, so no loss subtracts what has been rounded: a class
that fills a patch has exactly no false positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Values activated at once. On a CPU: few enough to stay in the cache, enough for torch to spread each operation over
the cores (chunks in Python threads wait for the interpreter three times as long). A GPU wants to be full."""

SHELVES = 1024
"""Into how many sums a GPU parts that of a class, voxel i going to sum i mod 1024: most voxels are background, and all
of them adding to one number would wait for each other. So few go into each that single precision is exact to 1e-7."""

NEVER = 60.0
"""How far below the background's logit an undrawn class is put: e^-60 is no probability, but has a logarithm, and is no
number so small that processors calculate it a hundred times as slowly."""

RANGE = (1e-18, 1e18)
"""Exponentials whose sums and quotients single precision holds: those of logits from -41 to 41."""

Maybe = Tensor | None
Yield = tuple[Any, Any]
"""What a walk gives: sums over the voxels (*k, b, c) in double precision, and a map of them (b, *c, n); or None."""


@dataclass(frozen=True)
class Walk:
    """A function of single voxels, taken over a volume.

    Attributes:
        function: (logits (b c n), truth (b n) or (b c n), weight (b 1|c n) or None) of a chunk: its share of the yield,
            in operations that torch can differentiate, twice if need be.
        quick: Sums and map once more, faster and without gradients, and the chunk's log Σ exp z (b n).
        slope: (softmax probabilities, labels (b 1 n), weight, gradients of sums and map): turn the probabilities into
            the gradient of the chunk's logits, in place; it comes with ``quick``. None: torch differentiates
            ``function``, whose chunks hold all samples.
    """

    function: Callable[[Tensor, Tensor, Maybe], Yield]
    quick: Callable[[Tensor, Tensor, Maybe], tuple[Tensor, Maybe, Tensor]] | None = None
    slope: Callable[[Tensor, Tensor, Maybe, Maybe, Maybe], None] | None = None

    def __call__(
        self,
        logits: Float[Tensor, "b c n"],
        truth: Shaped[Tensor, "b *n"],
        weight: Float[Tensor, "b w n"] | None = None,
        undrawn: Bool[Tensor, "b c"] | None = None,
    ) -> Yield:
        """Give sums and map, None for what there is not; the backward pass walks again and stores but the gradient."""
        sums, values, _ = _Walk.apply(self, logits, truth, weight, undrawn)  # type: ignore[no-untyped-call]
        return sums, values


def working_dtype(logits: Tensor) -> torch.dtype:
    """Double stays double; everything else is computed in single precision."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def chunks(logits: Shaped[Tensor, "b c n"], *, apart: bool = False) -> Iterator[tuple[slice, slice]]:
    """Slices of the samples and of their voxels, each about ``CHUNK_ELEMENTS`` logits.

    Large samples one after the other (``apart``) have longer rows of memory in as large a chunk.
    """
    batch, classes, voxels = logits.shape
    elements = CHUNK_ELEMENTS.get(logits.device.type, 1 << 20)
    together = min(batch, max(1, elements // (classes * voxels))) if apart else batch
    size = max(64, elements // (together * classes))
    for first in range(0, batch, together):
        for start in range(0, voxels, size):
            yield slice(first, first + together), slice(start, start + size)


def onehot(labels: Integer[Tensor, "b n"], like: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
    """Labels as a map per class."""
    return torch.zeros_like(like).scatter_(1, labels.long().unsqueeze(1), 1.0)


def sums_by_label(
    labels: Integer[Tensor, "b n"], values: Float[Tensor, "b n"] | None, classes: int
) -> Float[Tensor, "b c"]:
    """Add up ``values`` (one each if None) over the voxels of each label, in double precision."""
    kind = torch.float64 if labels.device.type == "cpu" or values is None else working_dtype(values)
    one = labels.new_ones((), dtype=kind).expand(labels.shape) if values is None else values.to(kind)
    shelves = 1 if labels.device.type == "cpu" else SHELVES
    places = labels.long()
    if shelves > 1:
        places = places * shelves + torch.arange(labels.shape[1], device=labels.device) % shelves
    added = torch.zeros(len(labels), classes * shelves, dtype=kind, device=labels.device).scatter_add(1, places, one)
    return added.view(len(labels), classes, shelves).sum(2, dtype=torch.float64)


def merged(z: Float[Tensor, "b c n"], undrawn: Bool[Tensor, "b c"] | None) -> Float[Tensor, "b c n"]:
    """Give the background the probability of the classes that were not drawn, and them none.

    Equation:
        z'_0 = log(e^{z_0} + Σ_{u undrawn} e^{z_u})

    Where a sample's annotation lacks an organ, its background voxels mean "background or that organ" (the marginal
    loss of Shi et al. 2021, arXiv 2007.03868).
    """
    if undrawn is None:
        return z
    if z.device.type != "cpu":  # which would be waited for
        background = z.masked_fill(~_joining(undrawn), -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([background, torch.where(undrawn[:, 1:, None], background.detach() - NEVER, z[:, 1:])], 1)
    joined = z.clone()
    for n, pooled in _pooled(undrawn):
        background = z[n, pooled].logsumexp(0)
        joined[n, pooled] = (background.detach() - NEVER).expand(len(pooled), -1)
        joined[n, 0] = background
    return joined


def _pooled(undrawn: Bool[Tensor, "b c"]) -> Iterator[tuple[int, Integer[Tensor, " k"]]]:
    """The background and the undrawn classes of each sample that has any."""
    for n, row in enumerate(undrawn):
        found = row.nonzero().squeeze(1)
        if len(found):
            yield n, torch.cat([found.new_zeros(1), found])


def _joining(undrawn: Bool[Tensor, "b c"]) -> Bool[Tensor, "b c 1"]:
    """The same as a map."""
    return torch.cat([torch.ones_like(undrawn[:, :1]), undrawn[:, 1:]], 1).unsqueeze(2)


def _unmerge(slope: Tensor, z: Tensor, undrawn: Bool[Tensor, "b c"]) -> None:
    """Turn the gradient after `merged` into that before it: each class takes its share of the background's."""
    if z.device.type != "cpu":
        joining = _joining(undrawn)
        share = z.masked_fill(~joining, -torch.inf).softmax(1)
        slope.copy_(torch.where(joining, share * slope[:, :1], slope))
        return
    for n, pooled in _pooled(undrawn):
        slope[n, pooled] = z[n, pooled].softmax(0) * slope[n, :1]


class _Walk(torch.autograd.Function):
    """The one function by which gradients go through a walk."""

    @staticmethod
    def forward(
        walk: Walk,
        logits: Float[Tensor, "b c n"],
        truth: Shaped[Tensor, "b *n"],
        weight: Float[Tensor, "b w n"] | None,
        undrawn: Bool[Tensor, "b c"] | None,
    ) -> tuple[Maybe, ...]:
        first: Callable[..., tuple[Maybe, ...]] = walk.quick or walk.function
        dtype = working_dtype(logits)
        totals: list[Tensor] = []
        maps: dict[int, Tensor] = {}
        for n, at in chunks(logits, apart=walk.slope is not None):
            z = merged(logits[n, :, at].to(dtype), None if undrawn is None else undrawn[n])
            sums, *parts = first(z, truth[n, ..., at], _at(weight, n, at))
            if sums is not None and at.start == 0:
                totals.append(sums)
            elif sums is not None:
                totals[-1] = totals[-1] + sums
            for k, part in enumerate(parts):
                if part is not None:
                    if k not in maps:
                        maps[k] = part.new_empty((len(logits), *part.shape[1:-1], logits.shape[2]))
                    maps[k][n, ..., at] = part
        total = torch.cat(totals, -2) if len(totals) > 1 else totals[0] if totals else None
        return total, maps.get(0), maps.get(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep what came, and the logarithms from which probabilities are quickly made again."""
        ctx.walk, *tensors = inputs
        ctx.save_for_backward(*tensors, output[2])
        ctx.set_materialize_grads(False)
        if output[2] is not None:
            ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, d_sums: Maybe, d_map: Maybe, _: Maybe) -> Any:
        """Walk again. Where the gradient itself is to have one, torch records how it came about."""
        if d_sums is None and d_map is None:
            return (None,) * 5
        logits, truth, weight, undrawn, logsumexp = ctx.saved_tensors
        leaves = (logits, truth)[: 1 + ctx.needs_input_grad[2]]
        with torch.autocast(logits.device.type, enabled=False):
            if torch.is_grad_enabled():
                recorded = _slopes(ctx.walk, logits, truth, weight, undrawn, (d_sums, d_map), len(leaves))
                return None, *recorded, *[None] * (4 - len(leaves))
            grads = [torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in leaves]
            for n, at in chunks(logits, apart=ctx.walk.slope is not None):
                z, g, v, d = logits[n, :, at], truth[n, ..., at], _at(weight, n, at), (d_sums, _at(d_map, n, at))
                if ctx.walk.slope is not None:
                    hidden, d = (
                        None if undrawn is None else undrawn[n],
                        (None if d_sums is None else d_sums[:, n], d[1]),
                    )
                    _write_slope(grads[0][n, :, at], ctx.walk, z, g, v, hidden, logsumexp[n, at], d)
                    continue
                for grad, part in zip(grads, _slopes(ctx.walk, z, g, v, undrawn, d, len(leaves)), strict=True):
                    grad[..., at] = part
        return None, *grads, *[None] * (4 - len(leaves))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Forward-mode derivatives are not to be had."""
        raise NotImplementedError("losses have no forward-mode derivative: use torch.func.grad, vjp or backward()")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        """Nor is a batch of batches."""
        raise NotImplementedError("a loss cannot run under torch.vmap: give it one batch")


def _slopes(
    walk: Walk, z: Tensor, truth: Tensor, weight: Maybe, undrawn: Maybe, slopes: Yield, leaves: int
) -> tuple[Tensor, ...]:
    """Gradients of the logits, and of the target if it is the second leaf, by torch."""

    def total(z: Tensor, truth: Tensor) -> Tensor:
        value = z.new_zeros(())
        yields = walk.function(merged(z.to(working_dtype(z)), undrawn), truth, weight)
        for yielded, slope in zip(yields, slopes, strict=True):
            if slope is not None:
                value = value + (yielded * slope).sum()
        return value

    found: tuple[Tensor, ...] = torch.func.grad(total, tuple(range(leaves)))(z, truth)
    return found


def _write_slope(
    out: Tensor, walk: Walk, z: Tensor, labels: Tensor, weight: Maybe, undrawn: Maybe, logsumexp: Tensor, slopes: Yield
) -> None:
    """Write a chunk's gradient by the walk's own rule."""
    assert walk.slope is not None  # the caller has looked
    dtype = working_dtype(z)
    place = out if out.dtype == dtype else torch.empty_like(z, dtype=dtype)
    z = z.to(dtype)
    torch.sub(merged(z, undrawn), logsumexp.unsqueeze(1), out=place).exp_()
    walk.slope(place, labels.long().unsqueeze(1), weight, *slopes)
    if undrawn is not None:
        _unmerge(place, z, undrawn)
    if place is not out:
        out.copy_(place)


def _at(values: Maybe, samples: slice, at: slice) -> Maybe:
    return None if values is None else values[samples, ..., at]


# ------------------------------------------------------------------ walks over hard labels of exclusive classes


def _parted(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Maybe]:
    """e^(z - top) with 0 at the label (b c n), what stood there, the sum of the others, that of all, and top (b 1 n).

    Without top, the largest logit, there are two passes less over all classes; where the exponentials are then out of
    range, or a GPU would have to be waited for to know, it is taken.
    """

    def parted(e: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        true = e.gather(1, y)
        others = e.scatter_(1, y, true.new_zeros(()).expand_as(y)).sum(1, keepdim=True)
        return e, true, others, others + true

    if z.device.type == "cpu":
        found = _, true, _, total = parted(z.exp())
        if RANGE[0] < true.amin() and total.amax() < RANGE[1]:
            return *found, None
    top = z.amax(1, keepdim=True)
    return *parted(torch.sub(z, top).exp_()), top


def _overlap(z: Tensor, labels: Tensor, weight: Maybe) -> tuple[Tensor, Tensor]:
    log_p, g = z.log_softmax(1), onehot(labels, z)
    p = log_p.exp() if weight is None else log_p.exp() * weight
    at_label = log_p.gather(1, labels.long().unsqueeze(1)).squeeze(1)  # no product: a logit may be -inf
    return torch.stack([p * g, p * (1 - g)]).sum(3, dtype=torch.float64), at_label


def _quick_overlap(z: Tensor, labels: Tensor, weight: Maybe) -> tuple[Tensor, Tensor, Tensor]:
    y = labels.long().unsqueeze(1)
    e, true, _, total, top = _parted(z, y)
    scale = total.reciprocal()
    p_true = true.mul_(scale)
    if weight is not None:
        scale.mul_(weight)
    tp = sums_by_label(labels, (p_true if weight is None else p_true * weight).squeeze(1), z.shape[1])
    fp = torch.bmm(e, scale.transpose(1, 2)).squeeze(2)
    sums, total = torch.stack([tp, fp.double()]), total.log_()
    if top is None:
        return sums, p_true.log_().squeeze(1), total.squeeze(1)
    return sums, z.gather(1, y).sub_(top).sub_(total).squeeze(1), total.add_(top).squeeze(1)


def _slope_of_overlap(p: Tensor, y: Tensor, weight: Maybe, d_sums: Maybe, d_log: Maybe) -> None:
    """dz_c = p_c (w q_c - m) + d_log [c = y], m = w <p, q> + d_log, with q = d_fp, and d_tp at the label."""
    p_true = p.gather(1, y)
    at_label = mean = slope = p_true.new_zeros(())
    if d_sums is not None:
        d_tp, d_fp = d_sums.to(p.dtype).unbind(0)
        at_label, instead = (d.gather(1, y.squeeze(1)).unsqueeze(1) for d in (d_tp, d_tp - d_fp))
        mean, slope = torch.bmm(d_fp.unsqueeze(1), p).addcmul_(p_true, instead), d_fp.unsqueeze(2)
        if weight is not None:
            at_label, mean, slope = at_label * weight, mean * weight, slope * weight
    if d_log is not None:
        mean = mean + d_log.unsqueeze(1)
    p.mul_(slope - mean)
    at_label = p_true.mul_(at_label - mean)
    p.scatter_(1, y, at_label if d_log is None else at_label.add_(d_log.unsqueeze(1)))


OVERLAP = Walk(_overlap, _quick_overlap, _slope_of_overlap)
"""Σ w p g and Σ w p (1 - g), (2 b c), and log p at the label (b n).

The backward pass costs one exponential per logit and stores nothing but the gradient and one float per voxel."""


def _squares(z: Tensor, labels: Tensor, weight: Maybe) -> tuple[Tensor, None]:
    p, g = z.softmax(1), onehot(labels, z)
    wrong = (p * (1 - g)).sum(1, keepdim=True)  # near 1, 1 - p has lost digits that the other probabilities still have
    terms = torch.stack([wrong.square() * g, p * p * g, p * g, p * p * (1 - g)])
    return (terms if weight is None else terms * weight).sum(3, dtype=torch.float64), None


def _quick_squares(z: Tensor, labels: Tensor, weight: Maybe) -> tuple[Tensor, None, Tensor]:
    e, true, others, total, top = _parted(z, labels.long().unsqueeze(1))
    wrong, true, scale = others / total, true / total, total.square().reciprocal_()
    terms = (term if weight is None else term * weight for term in (wrong * wrong, true * true, true))
    beside = torch.bmm(e.square_(), (scale if weight is None else scale * weight).transpose(1, 2)).squeeze(2)
    sums = [sums_by_label(labels, term.squeeze(1), z.shape[1]) for term in terms]
    logsumexp = total.log_() if top is None else total.log_().add_(top)
    return torch.stack([*sums, beside.double()]), None, logsumexp.squeeze(1)


def _slope_of_squares(p: Tensor, y: Tensor, weight: Maybe, d_sums: Maybe, _: Maybe) -> None:
    """dz_c = w p_c (q_c - <p, q>), q = 2 p d_outside, and at the label -2 (1 - p) d_inside + 2 p d_hit + d_tp."""
    assert d_sums is not None  # there is nothing else to have a gradient
    d = d_sums.to(p.dtype)
    p_true, (d_inside, d_hit, d_tp) = p.gather(1, y), d[:3].gather(2, y.squeeze(1).expand(3, -1, -1)).unsqueeze(2)
    p.scatter_(1, y, torch.zeros_like(p_true))
    q_true = 2 * (p_true * d_hit - p.sum(1, keepdim=True) * d_inside) + d_tp
    squared, d_outside = p.square(), 2 * d[3]
    mean = torch.bmm(d_outside.unsqueeze(1), squared).addcmul_(p_true, q_true)
    at_label = p_true.mul_(q_true.sub_(mean))
    p.mul_(mean.neg_()).addcmul_(squared, d_outside.unsqueeze(2)).scatter_(1, y, at_label)
    if weight is not None:
        p.mul_(weight)


SQUARES = Walk(_squares, _quick_squares, _slope_of_squares)
"""Σ w (1 - p)² g, Σ w p² g, Σ w p g and Σ w p² (1 - g), (4 b c)."""


def _confusion(z: Tensor, labels: Tensor, weight: Maybe) -> tuple[Tensor, None]:
    g = onehot(labels, z)
    return torch.bmm(g if weight is None else g * weight, z.softmax(1).transpose(1, 2)).double(), None


CONFUSION = Walk(_confusion)
"""The probability given to each class (last axis) summed over the voxels of each class, (b c c)."""
