"""Sums over a volume that never hold the volume: chunk by chunk forward, recomputed chunk by chunk backward.

A region loss needs TP, Σp and Σg per sample and class, a voxel loss needs log p at the true class. Storing the
probabilities and a one-hot for that costs several copies of the logits (with 105 classes, gigabytes). Here each
chunk of voxels is activated, summed and forgotten, and the backward pass writes straight into the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Values activated at once. On a CPU: few enough to stay in the cache, enough for torch to spread each operation over
the cores (chunks in Python threads wait for the interpreter three times as long). A GPU wants to be full."""

VoxelFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits (b c n), truth (b n) or (b c n), weight (b 1|c n) or None) of a chunk -> values of that chunk."""


def working_dtype(logits: Tensor) -> torch.dtype:
    """Double stays double; everything else is computed in single precision."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def chunks(logits: Float[Tensor, "b c n"]) -> Iterator[slice]:
    """Slices of the voxel axis, each about ``CHUNK_ELEMENTS`` logits."""
    batch, classes, voxels = logits.shape
    size = max(64, CHUNK_ELEMENTS.get(logits.device.type, 1 << 20) // (batch * classes))
    for start in range(0, voxels, size):
        yield slice(start, min(start + size, voxels))


def sums_by_label(
    labels: Integer[Tensor, "b n"], values: Float[Tensor, "b n"] | None, classes: int
) -> Float[Tensor, "b c"]:
    """Add up ``values`` (one each if None) over the voxels of each label, in double precision, without gradient."""
    if labels.device.type == "cpu":  # there a scatter takes five times as long
        weights = [None] * len(labels) if values is None else values.double()
        rows = [torch.bincount(row, weight, minlength=classes) for row, weight in zip(labels, weights, strict=True)]
        return torch.stack(rows).double()
    one = labels.new_ones((), dtype=torch.float64).expand(labels.shape) if values is None else values.double()
    return torch.zeros(len(labels), classes, dtype=torch.float64, device=labels.device).scatter_add_(
        1, labels.long(), one
    )


class _SoftmaxPass(torch.autograd.Function):
    """Σ w p, Σ w p g per sample and class and log p at the label, from one walk over the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "b c n"],
        labels: Integer[Tensor, "b n"],
        weight: Float[Tensor, "b n"] | None,
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"], Float[Tensor, "b n"]]:
        (b, c, n), dtype = logits.shape, working_dtype(logits)
        logsumexp, log_p, tops = (logits.new_empty(b, n, dtype=dtype) for _ in range(3))

        def sums(at: slice) -> Tensor:
            z, y = logits[:, :, at].to(dtype), labels[:, at].long()
            top = z.amax(1, keepdim=True)
            e = torch.sub(z, top).exp_()
            total = e.sum(1)
            scale = total.reciprocal() if weight is None else weight[:, at] / total
            tops[:, at], logsumexp[:, at] = top.squeeze(1), total
            below = torch.sub(z.gather(1, y.unsqueeze(1)), top, out=log_p[:, None, at]).squeeze(1)
            tp = sums_by_label(y, below.exp().mul_(scale), c)
            return torch.stack([torch.bmm(e, scale.unsqueeze(2)).squeeze(2).double(), tp])

        sum_p, tp = torch.stack([sums(at) for at in chunks(logits)]).sum(0)
        log_p -= logsumexp.log_()
        logsumexp += tops
        ctx.save_for_backward(logits, labels, weight, logsumexp)
        ctx.set_materialize_grads(False)
        return sum_p.to(dtype), tp.to(dtype), log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sum: Tensor | None, d_tp: Tensor | None, d_log: Tensor | None) -> Any:
        """dz_c = p_c (w d_sum_c - w <p, dp> - d_log) + [c = y] (w p_y d_tp_y + d_log)."""
        if d_sum is None and d_tp is None and d_log is None:
            return None, None, None
        logits, labels, weight, logsumexp = ctx.saved_tensors
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)

        for at in chunks(logits):
            y = labels[:, at].long().unsqueeze(1)
            direct = grad[:, :, at] if grad.dtype == logsumexp.dtype else None  # no copy of the chunk at the end
            p = torch.sub(logits[:, :, at].to(logsumexp.dtype), logsumexp[:, None, at], out=direct).exp_()
            p = _softmax_chunk(p, y, _at(weight, at), d_sum, d_tp, _at(d_log, at))
            if direct is None:
                grad[:, :, at] = p
        return grad, None, None


def _at(values: Tensor | None, at: slice) -> Tensor | None:
    return None if values is None else values[..., at]


def _softmax_chunk(
    p: Tensor, y: Tensor, weight: Tensor | None, d_sum: Tensor | None, d_tp: Tensor | None, d_log: Tensor | None
) -> Tensor:
    """Turn the probabilities of a chunk into the gradient of its logits, in place."""
    zero = p.new_zeros(())
    mean, at_label = zero, zero
    if d_sum is not None:
        mean = torch.bmm(d_sum.unsqueeze(1), p).squeeze(1)
    if d_tp is not None:
        at_label = p.gather(1, y).squeeze(1) * d_tp.gather(1, y.squeeze(1))
        mean = mean + at_label
    if weight is not None:
        mean, at_label = mean * weight, at_label * weight
    if d_log is not None:
        mean, at_label = mean + d_log, at_label + d_log
    if d_sum is None:
        p.mul_(-mean.unsqueeze(1))
    else:
        factor = d_sum.unsqueeze(2) if weight is None else d_sum.unsqueeze(2) * weight.unsqueeze(1)
        p.mul_(factor - mean.unsqueeze(1))
    return p.scatter_add_(1, y, at_label.unsqueeze(1))


@dataclass(frozen=True)
class _Rule:
    """Sums of softmax probabilities at hard labels, and their slope.

    Attributes:
        sums: (p (b c n), y (b 1 n), weight (b 1 n)) of a chunk -> its share of the sums, in double precision.
        slope: (p, y, gradient of the sums) -> gradient of p for weight 1, (b c n), freshly made.
    """

    sums: Callable[[Tensor, Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]


class _RulePass(torch.autograd.Function):
    """The sums of a rule from one walk over the logits; the probabilities are computed again backward."""

    @staticmethod
    def forward(
        ctx: Any,
        rule: _Rule,
        logits: Float[Tensor, "b c n"],
        labels: Integer[Tensor, "b n"],
        weight: Float[Tensor, "b n"] | None,
    ) -> Tensor:
        dtype = working_dtype(logits)

        def sums(at: slice) -> Tensor:
            y = labels[:, None, at].long()
            one = logits.new_ones((), dtype=dtype).expand(y.shape) if weight is None else weight[:, None, at]
            return rule.sums(logits[:, :, at].to(dtype).softmax(1), y, one)

        ctx.rule = rule
        ctx.save_for_backward(logits, labels, weight)
        return torch.stack([sums(at) for at in chunks(logits)]).sum(0).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        """dz_c = w p_c (q_c - <p, q>) for the slope q of the rule."""
        logits, labels, weight = ctx.saved_tensors
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)

        for at in chunks(logits):
            p = logits[:, :, at].to(d_out.dtype).softmax(1)
            q = ctx.rule.slope(p, labels[:, None, at].long(), d_out)
            q.sub_((p * q).sum(1, keepdim=True)).mul_(p)
            grad[:, :, at] = q if weight is None else q.mul_(weight[:, None, at])
        return None, grad, None, None


def _squares(p: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    p_true, labels = p.gather(1, y), y.squeeze(1)
    others = p.scatter(1, y, 0)
    # Near 1, 1 - p has lost digits that the other probabilities still have.
    wrong = torch.where(p_true > 0.5, others.sum(1, keepdim=True), 1 - p_true)
    at_label = (wrong.square(), p_true.square(), p_true)
    per_class = [sums_by_label(labels, (term * weight).squeeze(1), p.shape[1]) for term in at_label]
    beside = torch.bmm(others.square_(), weight.transpose(1, 2)).squeeze(2).double()
    return torch.stack([*per_class, beside])


def _slope_of_squares(p: Tensor, y: Tensor, d_out: Tensor) -> Tensor:
    p_true, (d_inside, d_hit, d_tp) = p.gather(1, y), d_out[:3].gather(2, y.squeeze(1).expand(3, -1, -1)).unsqueeze(2)
    slope = 2 * ((p_true - 1) * d_inside + p_true * d_hit) + d_tp
    return (p * (2 * d_out[3]).unsqueeze(2)).scatter_(1, y, slope)


def _confusion(p: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(torch.zeros_like(p).scatter_(1, y, weight), p.transpose(1, 2)).double()


def _slope_of_confusion(p: Tensor, y: Tensor, d_out: Tensor) -> Tensor:
    return torch.bmm(d_out.transpose(1, 2), torch.zeros_like(p).scatter_(1, y, 1.0))


SQUARES = _Rule(_squares, _slope_of_squares)
CONFUSION = _Rule(_confusion, _slope_of_confusion)


class _Streamed(torch.autograd.Function):
    """Any differentiable function of single voxels, recomputed chunk by chunk in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        function: VoxelFunction,
        summed: bool,
        logits: Float[Tensor, "b c n"],
        truth: Shaped[Tensor, "b *n"],
        weight: Float[Tensor, "b w n"] | None,
    ) -> Tensor:
        dtype = working_dtype(logits)
        parts = [function(logits[:, :, at].to(dtype), truth[..., at], _at(weight, at)) for at in chunks(logits)]
        ctx.function, ctx.summed = function, summed
        ctx.save_for_backward(logits, truth, weight)
        return torch.stack(parts).double().sum(0).to(dtype) if summed else torch.cat(parts, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        """Run the function again on each chunk, with gradients, and keep only those of the logits."""
        logits, truth, weight = ctx.saved_tensors
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        with torch.autocast(logits.device.type, enabled=False), torch.enable_grad():
            for at in chunks(logits):
                z = logits[:, :, at].to(d_out.dtype).detach().requires_grad_()
                value = ctx.function(z, truth[..., at], _at(weight, at))
                (grad[:, :, at],) = torch.autograd.grad(value, z, d_out if ctx.summed else d_out[..., at])
        return None, None, grad, None, None


def softmax_pass(
    logits: Float[Tensor, "b c n"], labels: Integer[Tensor, "b n"], weight: Float[Tensor, "b n"] | None
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"], Float[Tensor, "b n"]]:
    """Sum the softmax probabilities over all voxels and over those of their own class; log p at the label.

    Equation:
        Σ_i w_i p_ic,  Σ_i w_i p_ic [y_i = c],  log p_{i, y_i}

    Shapes:
        Returns (b, c), (b, c) and (b, n). The backward pass costs one exponential per logit and stores
        nothing but the gradient and one float per voxel.
    """
    result: tuple[Tensor, Tensor, Tensor] = _SoftmaxPass.apply(logits, labels, weight)  # type: ignore[no-untyped-call]
    return result


def squares_pass(
    logits: Float[Tensor, "b c n"], labels: Integer[Tensor, "b n"], weight: Float[Tensor, "b n"] | None
) -> Float[Tensor, "4 b c"]:
    """Sum squares of softmax probabilities and of their errors.

    Equation:
        Σ_i w_i (1 - p_ic)² g_ic,  Σ_i w_i p_ic² g_ic,  Σ_i w_i p_ic g_ic,  Σ_i w_i p_ic² (1 - g_ic),  g_ic = [y_i = c]
    """
    sums: Tensor = _RulePass.apply(SQUARES, logits, labels, weight)  # type: ignore[no-untyped-call]
    return sums


def confusion_pass(
    logits: Float[Tensor, "b c n"], labels: Integer[Tensor, "b n"], weight: Float[Tensor, "b n"] | None
) -> Float[Tensor, "b c c"]:
    """Sum the probability given to each class (last axis) over the voxels of each class (the one before)."""
    matrix: Tensor = _RulePass.apply(CONFUSION, logits, labels, weight)  # type: ignore[no-untyped-call]
    return matrix


def streamed_sum(
    function: VoxelFunction,
    logits: Float[Tensor, "b c n"],
    truth: Shaped[Tensor, "b *n"],
    weight: Float[Tensor, "b w n"] | None,
) -> Tensor:
    """Add up what ``function`` yields for each chunk of voxels."""
    total: Tensor = _Streamed.apply(function, True, logits, truth, weight)  # type: ignore[no-untyped-call]
    return total


def streamed_map(
    function: VoxelFunction,
    logits: Float[Tensor, "b c n"],
    truth: Shaped[Tensor, "b *n"],
    weight: Float[Tensor, "b w n"] | None = None,
) -> Tensor:
    """Join what ``function`` yields for each chunk along the last (voxel) axis."""
    values: Tensor = _Streamed.apply(function, False, logits, truth, weight)  # type: ignore[no-untyped-call]
    return values
