"""Attention U-Net: gates on the skip connections."""

from __future__ import annotations

from torch import nn

from medseg.nets.padding import PadToMultiple
from medseg.nets.supervision import supervised
from medseg.nets.table import NetSpec, net

_FEWEST_STAGES = 2


@net
def attention_unet(
    spec: NetSpec, *, features: list[int] | None = None, dropout: float = 0.0, deep_supervision: bool = False
) -> nn.Module:
    """U-Net whose skip connections pass through attention gates, with batch normalisation (MONAI `AttentionUnet`).

    For small organs whose place the large ones around tell. It follows the plan's strides and channels, but not its
    kernels, and wants batches of a few patches.

    Args:
        spec: The plan's numbers.
        features: Channels per stage instead of the plan's.
        dropout: Probability of dropping a channel after each convolution.
        deep_supervision: Return coarser levels too, in training.

    Paper: Oktay et al. 2018, arXiv:1804.03999.
    """
    from monai.networks.nets import AttentionUnet  # only here: importing MONAI takes seconds

    spec = spec.reshaped(_FEWEST_STAGES, features)
    spec.require_context("attention_unet", spec.multiple)
    network: nn.Module = AttentionUnet(
        spatial_dims=3,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        channels=spec.features,
        strides=spec.strides[1:],
        dropout=dropout,
    )
    if deep_supervision:
        layers = [module for module in network.modules() if type(module).__name__ == "AttentionLayer"]  # finest first
        network = supervised(network, layers, spec)
    return PadToMultiple(network, spec.multiple)
