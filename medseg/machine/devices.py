"""What goes from the host to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
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


def beside(items: Iterator[Any], *, device: torch.device, prepare: Callable[[Any], Any]) -> Iterator[Any]:
    """Items prepared on a GPU, each while the device is at work on the one before.

    The work is queued on a stream of its own; whoever takes an item has the device, not the host, wait for it.

    Args:
        items: What comes from the host, in pinned memory.
        device: A CUDA device.
        prepare: Makes of an item what is handed over; called with the stream as the current one.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    begun: tuple[Any, Any] | None = None

    def handed(ready: Any, done: Any) -> Any:
        network = torch.cuda.current_stream(device)
        network.wait_event(done)
        # memory of one stream is not to be used anew before the other has finished with it
        apply_to_collection(ready, Tensor, lambda each: each.record_stream(network) if each.is_cuda else None)
        return ready

    for item in items:
        with torch.cuda.stream(stream):
            following = prepare(item), stream.record_event()
        if begun is not None:
            yield handed(*begun)
        begun = following
    if begun is not None:
        yield handed(*begun)
