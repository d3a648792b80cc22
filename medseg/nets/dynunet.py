"""MONAI's `DynUNet`, and a form of it whose decoder nnU-Net would know."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DynUNet
from torch import nn

from medseg.nets.table import Triple

__all__ = ["DynUNet", "LevelKernels"]


class LevelKernels(DynUNet):  # type: ignore[misc]  # MONAI is untyped
    """MONAI's, whose decoder has the kernels of its own levels."""

    kernel_size: Sequence[Triple]

    def get_upsamples(self) -> nn.ModuleList:
        """The steps of the decoder, coarse to fine."""
        below, self.kernel_size = self.kernel_size, [self.kernel_size[0], *self.kernel_size[:-1]]
        built: nn.ModuleList = super().get_upsamples()
        self.kernel_size = below
        return built
