"""Instance normalisation that stays in the memory layout of the convolutions, and copies nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


class _PerSampleNorm(torch.autograd.Function):
    """Batch normalisation of one sample at a time, in place of the copy to and from the contiguous layout.

    PyTorch normalises instances by viewing ``(b, c, ...)`` as ``(1, b c, ...)``, which channels-last memory cannot be
    viewed as: it is copied, both ways, forward and backward. Batch normalisation of a single sample is the same
    function and has a channels-last kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        out = torch.empty_like(x)
        exact = torch.promote_types(x.dtype, torch.float32)
        mean, rstd = torch.empty(2, *x.shape[:2], device=x.device, dtype=exact)
        # without parameters the kernel keeps the statistics of 16-bit activations in 16 bits: it is given neutral ones
        scale = torch.ones_like(mean[0]) if weight is None else weight
        shift = torch.zeros_like(mean[0]) if bias is None else bias
        for at in range(len(x)):
            one = slice(at, at + 1)
            aten.native_batch_norm.out(
                *(x[one], scale, shift, None, None, True, 0.0, eps),
                out=out[one],
                save_mean=mean[at],
                save_invstd=rstd[at],
            )
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.eps = eps
        ctx.affine = weight is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, scale, mean, rstd = ctx.saved_tensors
        d_out = d_out.contiguous(memory_format=_layout(x))
        d_x = torch.empty_like(x)
        d_weight, d_bias = torch.empty_like(mean), torch.empty_like(mean)
        for at in range(len(x)):
            one = slice(at, at + 1)
            aten.native_batch_norm_backward.out(
                *(d_out[one], x[one], scale, None, None, mean[at], rstd[at], True, ctx.eps, [True, True, True]),
                out0=d_x[one],
                out1=d_weight[at],
                out2=d_bias[at],
            )
        if not ctx.affine:
            return d_x, None, None, None
        return d_x, d_weight.sum(0), d_bias.sum(0), None


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, without its copies.

    Same parameters, same values: x -> (x - mean) / sqrt(var + eps) * weight + bias per sample and channel. PyTorch's
    copies channels-last activations, and gives out a view, whose in-place activation costs three copies more.
    """

    def forward(self, x: Float[Tensor, "b c i j k"]) -> Float[Tensor, "b c i j k"]:
        """Normalise each sample and channel over its voxels."""
        compiling = torch.compiler.is_compiling()  # the compiler fuses the plain norm and needs no help
        quick = x.device.type == "cuda" or (x.device.type == "cpu" and _layout(x) == torch.channels_last_3d)
        if compiling or not quick or x[0, 0].numel() == 1:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        normalised: Tensor = _PerSampleNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return normalised


def _layout(x: Tensor) -> torch.memory_format:
    """Channels innermost where they lie so, else outermost."""
    innermost = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if innermost else torch.contiguous_format


def with_fast_norms(net: nn.Module) -> nn.Module:
    """Replace every plain `torch.nn.InstanceNorm3d` of a network by ours, parameters and names kept."""
    for name, child in net.named_children():
        if type(child) is nn.InstanceNorm3d and not child.track_running_stats:
            ours = InstanceNorm3d(child.num_features, eps=child.eps, affine=child.affine)
            ours.load_state_dict(child.state_dict())
            setattr(net, name, ours)
        else:
            with_fast_norms(child)
    return net
