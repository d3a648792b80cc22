"""Deep supervision: a head on each coarser level of a decoder, while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from medseg.nets.padding import Level
from medseg.nets.table import NetSpec
from medseg.types import Image, Logits


class Supervised(nn.Module):
    """Give a network heads on coarser levels of its decoder; they speak in training and are silent otherwise.

    In training ``forward`` returns ``(full resolution, half resolution, ...)``, every level on its own grid and never
    interpolated up; in evaluation the full resolution alone.

    Args:
        net: The network; maps ``(b, m, i, j, k)`` to ``(b, c, i, j, k)``.
        levels: Parts of it whose outputs are the features of the coarser levels, finest first.
        channels: The channels of these.
        out_channels: Classes.

    Paper: Lee et al. 2015, Deeply-supervised nets, arXiv:1409.5185; in this form Isensee et al. 2021, nnU-Net.
    """

    def __init__(
        self, net: nn.Module, *, levels: Sequence[nn.Module], channels: Sequence[int], out_channels: int
    ) -> None:
        super().__init__()
        self.net = net
        self.heads = nn.ModuleList([nn.Conv3d(width, out_channels, kernel_size=1) for width in channels])
        self._coarse: list[Tensor] = []
        for level, _ in zip(levels, channels, strict=True):
            level.register_forward_hook(self._keep)

    def forward(self, image: Image) -> Logits | tuple[Level, ...]:
        """Map ``(b, m, i, j, k)`` to logits, in training a tuple of them."""
        self._coarse.clear()
        logits: Tensor = self.net(image)
        if not self.training:
            return logits
        features = self._coarse[::-1]  # a decoder works from coarse to fine
        self._coarse.clear()  # or the graph would live until the next step
        return (logits, *(head(x) for head, x in zip(self.heads, features, strict=True)))

    def _keep(self, level: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.training:
            self._coarse.append(output)


def supervised(net: nn.Module, decoder: Sequence[nn.Module], spec: NetSpec) -> Supervised:
    """A network of the plan's stages with heads on the levels of its decoder, given from fine to coarse, worth one."""
    coarse = slice(1, 1 + supervised_levels(len(spec.strides)))
    return Supervised(net, levels=decoder[coarse], channels=spec.features[coarse], out_channels=spec.out_channels)


def supervised_levels(stages: int) -> int:
    """Count the coarser levels worth a head: those of the decoder without its coarsest, but the half resolution always.

    Example:
        >>> [supervised_levels(stages) for stages in (2, 3, 4, 5, 6)]
        [0, 1, 1, 2, 3]
    """
    return max(min(1, stages - 2), stages - 3)
