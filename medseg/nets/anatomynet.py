"""AnatomyNet: whole head-and-neck volumes at once, down-sampled a single time so that small organs survive."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.nets.blocks import SLOPE, ConvNorm, Triple, initialise
from medseg.nets.padding import PadToMultiple
from medseg.nets.table import NetSpec, net
from medseg.types import Image, Logits


class SqueezeExcitation(nn.Module):
    """Weigh each channel by what all voxels say together.

    Paper: Hu et al. 2018, arXiv:1709.01507.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "b c i j k"]) -> Float[Tensor, "b c i j k"]:
        """Scale the channels by factors in (0, 1)."""
        factors: Tensor = self.gate(x.mean(dim=(2, 3, 4)))
        return x * factors[:, :, None, None, None]


class ExcitedBlock(nn.Module):
    """A residual block of two convolutions; a reduction of 0 leaves the squeeze and excitation out."""

    def __init__(self, channels: tuple[int, int], reduction: int, *, short_cut: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(channels), ConvNorm((channels[1], channels[1]), activate=False))
        if reduction:
            self.body.append(SqueezeExcitation(channels[1], reduction))
        self.short_cut = nn.Sequential()
        if channels[0] != channels[1]:
            self.short_cut.append(ConvNorm(channels, short_cut, activate=False))
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "b c_in i j k"]) -> Float[Tensor, "b c_out i j k"]:
        """Add what the convolutions find to what came in."""
        out: Tensor = self.activation(self.body(x) + self.short_cut(x))
        return out


class AnatomyNet(nn.Module):
    """Encoder and decoder at half resolution; the input itself joins the last block at full resolution."""

    def __init__(self, spec: NetSpec, *, width: int, blocks: int, reduction: int, stride: Triple) -> None:
        super().__init__()
        widths = [width, width + 2, width + 4, width + 6]
        self.stem = ConvNorm((spec.in_channels, width), stride=stride)
        self.encoder = nn.ModuleList([_stage((a, b), blocks, reduction) for a, b in pairwise(widths)])
        self.decoder = nn.ModuleList(
            [_stage((a + b, a), blocks, reduction) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)]
        )
        narrow = max(1, width // 2)
        self.upsample = nn.ConvTranspose3d(width, narrow, kernel_size=stride, stride=stride)
        self.merge = ExcitedBlock((narrow + spec.in_channels, narrow), 0, short_cut=(3, 3, 3))
        self.head = nn.Conv3d(narrow, spec.out_channels, kernel_size=3, padding=1)
        self.apply(initialise)

    def forward(self, image: Image) -> Logits:
        """Map ``(b, m, i, j, k)`` to ``(b, c, i, j, k)``; the size must be a multiple of the stride."""
        x = self.stem(image)
        skips = []
        for stage in self.encoder:
            skips.append(x)
            x = stage(x)
        for stage in self.decoder:
            x = stage(torch.cat([x, skips.pop()], dim=1))
        logits: Tensor = self.head(self.merge(torch.cat([self.upsample(x), image], dim=1)))
        return logits


def _stage(channels: tuple[int, int], blocks: int, reduction: int) -> nn.Sequential:
    first = ExcitedBlock(channels, reduction)
    return nn.Sequential(first, *[ExcitedBlock((channels[1], channels[1]), reduction) for _ in range(blocks - 1)])


@net
def anatomynet(spec: NetSpec, *, width: int = 28, blocks: int = 2, reduction: int = 15) -> nn.Module:
    """Squeeze-and-excitation residual U-Net that is down-sampled a single time, for many small organs (ours).

    For head and neck, whole volume in: choose a patch size as large as the volumes. With so few down-samplings it sees
    about 50 voxels each way, so smaller patches cost it little but what its channel gates average over.

    Held against the authors' program (wentaozhu/AnatomyNet-for-anatomical-segmentation, ``src/AnatomyNet.py``) for one
    channel and ten classes: the same kernels, the same channels from 28 to 34 and back to 14, and 734 478 parameters
    instead of 734 417. The difference is one gate: theirs reduce 16 times in the first block of each stage of the
    decoder, which leaves 30 channels one hidden unit instead of two. Instance normalisation takes the place of batch
    normalisation, which is the same in training for the published batches of one volume.

    Args:
        spec: The plan's numbers; of these the channels and the first down-sampling.
        width: Channels of the first stage; the next have 2, 4 and 6 more.
        blocks: Residual blocks per stage.
        reduction: How many times fewer channels a gate has inside.

    Paper: Zhu et al. 2019, AnatomyNet, Medical Physics 46, arXiv:1808.05238.
    """
    stride = spec.strides[1] if len(spec.strides) > 1 else (2, 2, 2)
    spec.require_context("anatomynet", stride)
    network = AnatomyNet(spec, width=width, blocks=blocks, reduction=reduction, stride=stride)
    return PadToMultiple(network, stride)
