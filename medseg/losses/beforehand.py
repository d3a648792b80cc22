"""Maps that a loss makes of the target alone, on the CPU, and that whoever reads the target can make beforehand.

A skeleton or the number of each lesion does not depend on the network. A GPU would wait in every step for the host to
find them; the processes that load the data have the time, and a batch carries what they made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.inputs import compare
from medseg.losses.table import Mode
from medseg.machine.devices import uploaded


class of_target:  # noqa: N801  reads as a decorator
    """A map of the target ``(b, n, *s)``: from those made beforehand, else made now, once for all terms.

    The function decorated takes a `Comparison`, of which it reads no logits, and numbers or words by keyword; it gives
    a map on the CPU, which is taken to the logits. A worker process finds it by its name, so it is a module's own.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make = make
        update_wrapper(self, make)

    @torch.no_grad()
    def __call__(self, x: Comparison, **knobs: Any) -> Shaped[Tensor, "b n *s"]:
        """Look it up, or make it."""
        wish = Wish(self, tuple(sorted(knobs.items())))
        if wish not in x.beforehand:
            x.beforehand[wish] = uploaded(self.make(x, **knobs), x.raw.device)
        found: Tensor = x.beforehand[wish]
        return found

    def __reduce__(self) -> str:
        return str(self.__qualname__)  # type: ignore[attr-defined]  # of the function


@dataclass(frozen=True)
class Wish:
    """One map.

    Attributes:
        map: Which.
        knobs: What it is called with.
    """

    map: of_target
    knobs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Wishes:
    """All maps that a loss will ask for, and how it reads a target.

    Attributes:
        each: The maps.
        bytes_per_voxel: Of all of them.
        mode: See `Comparison`.
        channels: Of the logits.
        ignore_index: See `medseg.losses.inputs.compare`.
    """

    each: tuple[Wish, ...]
    bytes_per_voxel: int
    mode: Mode
    channels: int
    ignore_index: int | None

    def granted(
        self,
        target: Tensor,
        spacing_mm: Tensor | Sequence[float] | None = None,
        *,
        voxel_weight: Tensor | None = None,
        class_mask: Tensor | None = None,
    ) -> dict[Wish, Tensor]:
        """The maps of a target of three axes, which the loss takes as ``beforehand``; arguments as of the loss."""
        logits = torch.zeros(()).expand(len(target), self.channels, *target.shape[-3:])
        options: dict[str, Any] = {"voxel_weight": voxel_weight, "class_mask": class_mask, "spacing_mm": spacing_mm}
        x = compare(logits, target, mode=self.mode, ignore_index=self.ignore_index, looks=False, **options)
        return {wish: wish.map(x, **dict(wish.knobs)) for wish in self.each}
