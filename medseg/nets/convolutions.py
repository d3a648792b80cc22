"""Convolutions over next to nothing, which a CPU that multiplies bf16 must not train in bf16.

Where an axis of the image is shorter than the kernel, oneDNN's gradient of the weights reads and writes beyond its
memory: seen with torch 2.13 (oneDNN 3.12) on a processor with AVX512-BF16, from errors as large as the gradient to a
process that aborts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LEFT = "left_autocast"  # where a layer notes that its hook has
_KINDS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def keep_short_ones_whole(net: nn.Module) -> None:
    """Have the convolutions of a network leave autocast in a training on the CPU, where their image is too short.

    Args:
        net: Any; what it computes elsewhere, and without gradients, is what it was.
    """
    for module in net.modules():
        if isinstance(module, _KINDS) and not hasattr(module, _LEFT):
            setattr(module, _LEFT, False)
            module.register_forward_pre_hook(_leave)
            module.register_forward_hook(_return, always_call=True)


def is_short(layer: Any, image: Tensor) -> bool:
    """Whether an axis of what the kernel is slid over is shorter than the kernel and its stride.

    Example:
        >>> layer = nn.Conv3d(1, 1, 5, padding=2)
        >>> [is_short(layer, torch.zeros(1, 1, 8, 8, extent)) for extent in (4, 5)]
        [True, False]
    """
    kernel = [reach * (size - 1) + 1 for size, reach in zip(layer.kernel_size, layer.dilation, strict=True)]
    extents = list(image.shape[-len(kernel) :])
    if layer.transposed:  # slid over what it gives
        sides = zip(extents, layer.stride, layer.padding, kernel, layer.output_padding, strict=True)
        extents = [(extent - 1) * step - 2 * pad + size + more for extent, step, pad, size, more in sides]
    return any(extent < size + step - 1 for extent, size, step in zip(extents, kernel, layer.stride, strict=True))


def _leave(layer: Any, images: tuple[Any, ...]) -> tuple[Any, ...] | None:
    learns = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    leaves = bool(learns and images and is_short(layer, images[0]))
    setattr(layer, _LEFT, leaves)
    if not leaves:
        return None
    torch.set_autocast_enabled("cpu", False)
    return (images[0].float(), *images[1:])


def _return(layer: Any, images: tuple[Any, ...], output: Tensor) -> None:
    if getattr(layer, _LEFT):
        torch.set_autocast_enabled("cpu", True)
