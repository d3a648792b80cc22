"""A network or a loss of one's own, given as an object where a name would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from medseg.errors import UsageError

Own = Callable[[Tensor, Tensor], Tensor]
"""Logits (b, c, i, j, k) and labels (b, i, j, k), -1 where ignored, or maps (b, c, i, j, k) -> a scalar."""


def name_of(given: Any) -> Any:
    """What stands for an object in a checkpoint, which holds plain data only: the dotted path of what it is.

    Example:
        >>> name_of("unet"), name_of(nn.Conv3d(1, 2, 1))
        ('unet', 'torch.nn.modules.conv.Conv3d')
    """
    if given is None or isinstance(given, str):
        return given
    kind = type(given) if isinstance(given, nn.Module) or not hasattr(given, "__qualname__") else given
    return f"{kind.__module__}.{kind.__qualname__}"


class OwnLoss(nn.Module):
    """A callable as the task takes its loss.

    Args:
        judge: See `Own`; a module's weights are trained with those of the network.
    """

    def __init__(self, judge: Own) -> None:
        super().__init__()
        self.judge = judge
        self.terms: dict[str, Tensor] = {}

    def set_epoch(self, epoch: int) -> None:
        """Nothing: it has no schedule."""

    def forward(
        self, logits: Tensor, target: Tensor, spacing_mm: Any = None, *, class_mask: Tensor | None = None
    ) -> Tensor:
        """Ask it, in float32.

        Raises:
            UsageError: It answers with something else than a scalar, or organs of the batch are not annotated, which
                it is not told.
        """
        if class_mask is not None and not bool(class_mask.all()):
            raise UsageError(
                "not every case has all organs annotated, which a loss that is a plain function is not told",
                "Name a loss of medseg, or register yours with medseg.losses.table.loss",
            )
        value = self.judge(logits.float(), target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the loss returned {found}", "Return a scalar tensor, such as a mean")
        return value.reshape(())
