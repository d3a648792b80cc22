"""Soft skeletons: thinning made of minima and maxima, through which gradients flow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def soft_skeleton(
    maps: Float[Tensor, "b c *s"], iterations: int, here: Bool[Tensor, "b v *s"] | None = None
) -> Float[Tensor, "b c *s"]:
    """Skeletonise values in [0, 1] by what opening removes from ever more eroded maps.

    Equation:
        S_0 = r_0,  S_k = S_{k-1} + relu(r_k - S_{k-1} r_k),  r_k = relu(x_k - dilate(x_{k+1})),  x_{k+1} = erode(x_k)

    Args:
        maps: Probabilities or a target.
        iterations: K, the number of erosions.
        here: Voxels that exist; the others take part in no minimum and no maximum.

    Returns:
        The skeleton's values, the shape of the maps.

    Example:
        >>> bar = torch.zeros(1, 1, 5, 7)
        >>> bar[..., 1:4, 1:6] = 1
        >>> soft_skeleton(bar, iterations=1)[0, 0, 2].tolist()
        [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    lines = torch.zeros_like(maps)
    for _ in range(iterations + 1):
        if maps.requires_grad:
            maps, lines = checkpoint(_thinned, maps, lines, here, use_reentrant=False)
        else:
            maps, lines = _thinned(maps, lines, here)
    return lines


def _thinned(maps: Tensor, lines: Tensor, here: Tensor | None) -> tuple[Tensor, Tensor]:
    """The maps eroded once, and the lines with what opening the maps, the dilation of that, takes away."""
    eroded = _eroded(maps if here is None else torch.where(here, maps, 1))
    opened = _dilated(eroded if here is None else eroded * here)
    ridge = F.relu(maps - opened)
    return eroded, lines + F.relu(ridge - lines * ridge)


def _eroded(maps: Tensor) -> Tensor:
    """The minimum over a voxel and the neighbours over its faces."""
    highest = _largest_of_three(-maps, 2)
    for axis in range(3, maps.ndim):
        highest = torch.maximum(highest, _largest_of_three(-maps, axis))
    return -highest


def _dilated(maps: Tensor) -> Tensor:
    """The maximum over a voxel and all its neighbours, one axis after the other."""
    for axis in range(2, maps.ndim):
        maps = _largest_of_three(maps, axis)
    return maps


def _largest_of_three(maps: Tensor, axis: int) -> Tensor:
    largest: Tensor = _LargestOfThree.apply(maps, axis)  # type: ignore[no-untyped-call]
    return largest


class _LargestOfThree(torch.autograd.Function):
    """The largest of a voxel and its two neighbours along an axis, forward in a quarter of max pooling's time."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, axis: int) -> Tensor:
        shorter = maps.shape[axis] - 1
        largest = maps.clone()
        left, right = largest.narrow(axis, 0, shorter), largest.narrow(axis, 1, shorter)
        from_right = maps.narrow(axis, 1, shorter) > left
        torch.maximum(left, maps.narrow(axis, 1, shorter), out=left)
        from_left = maps.narrow(axis, 0, shorter) > right
        torch.maximum(right, maps.narrow(axis, 0, shorter), out=right)
        ctx.save_for_backward(from_right, from_left)
        ctx.axis = axis
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Each voxel's gradient goes to the one neighbour it took its value from, or stays."""
        from_right, from_left = ctx.saved_tensors
        axis, shorter = ctx.axis, gradient.shape[ctx.axis] - 1
        to_left = gradient.narrow(axis, 1, shorter) * from_left
        to_right = gradient.narrow(axis, 0, shorter) * from_right
        if shorter > 1:  # a voxel that found a larger one on its left after all took nothing from its right
            to_right.narrow(axis, 1, shorter - 1).masked_fill_(from_left.narrow(axis, 0, shorter - 1), 0)
        moved = gradient.clone()
        moved.narrow(axis, 1, shorter).sub_(to_left).add_(to_right)
        moved.narrow(axis, 0, shorter).sub_(to_right).add_(to_left)
        return moved, None
