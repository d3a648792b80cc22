"""Sums over the processes of a distributed run, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> Tensor:
        """Every rank's loss depends on every rank's values: the gradients add up as the values did.

        DistributedDataParallel then divides by the number of ranks, which leaves the gradient of one
        process holding the whole batch.
        """
        gradient = d_total.clone()
        dist.all_reduce(gradient)
        return gradient


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add the tensors of all processes; the identity when there is only one.

    Example:
        >>> sum_over_ranks(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total
