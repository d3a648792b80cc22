"""Any input size for networks that halve their input a fixed number of times."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  the field's own abbreviation
from torch import Tensor, nn

from medseg.types import Image, Logits


class PadToMultiple(nn.Module):
    """Pad the input at the far end to a multiple, run the network, crop the output back.

    The padding repeats the border voxel, so that normalised intensities stay plausible; where the input already fits,
    nothing is copied.
    """

    def __init__(self, net: nn.Module, multiple: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.multiple = multiple

    def forward(self, image: Image) -> Logits:
        """Map ``(b, m, i, j, k)`` to ``(b, c, i, j, k)``."""
        size = image.shape[2:]
        excess = [-n % m for n, m in zip(size, self.multiple, strict=True)]
        if not any(excess):
            logits: Tensor = self.net(image)
            return logits
        padding = [side for extra in reversed(excess) for side in (0, extra)]
        logits = self.net(F.pad(image, padding, mode="replicate"))
        return logits[:, :, : size[0], : size[1], : size[2]]
