"""What goes from the host to a device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def uploaded(values: Tensor | NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Values on a device; those of the host by way of pinned memory, for PyTorch waits after any other copy to a GPU.

    Example:
        >>> uploaded(torch.ones(2), torch.device("cpu"), torch.float64)
        tensor([1., 1.], dtype=torch.float64)
    """
    found = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda" and found.device.type == "cpu":
        return found.pin_memory().to(device, non_blocking=True)
    return found.to(device)
