"""Sums and means over the processes of a distributed run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Tensor:
        """Every rank's loss depends on every rank's values: the gradients add up as the values did.

        DistributedDataParallel then divides by the number of ranks, which leaves the gradient of one
        process holding the whole batch.
        """
        gradient: Tensor = _SumOverRanks.apply(d_total)  # type: ignore[no-untyped-call]
        return gradient


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add the tensors of the processes that train together, with gradient; the identity when there is only one.

    Where no gradient is recorded a process may evaluate alone, and has its own batch's sums.

    Example:
        >>> sum_over_ranks(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if _alone():
        return values
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


def mean_over_ranks(denominator: Tensor) -> Tensor:
    """What a mean divides by, averaged over the processes that train together; the identity when there is only one.

    DistributedDataParallel averages the gradients of the ranks. That is the gradient of the mean over the whole batch
    only if all ranks divide by the same number, though one of them may have more ignored voxels than another. Where no
    gradient is recorded nothing will be averaged, and a process may evaluate alone.

    Example:
        >>> mean_over_ranks(torch.tensor(8.0))
        tensor(8.)
    """
    return denominator if _alone() else sum_over_ranks(denominator.detach()) / dist.get_world_size()


def _alone() -> bool:
    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return not (many and torch.is_grad_enabled())
