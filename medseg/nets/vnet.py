"""V-Net, the residual volumetric network that introduced the Dice loss."""

from __future__ import annotations

from torch import nn

from medseg.nets.padding import PadToMultiple
from medseg.nets.supervision import Supervised
from medseg.nets.table import NetSpec, net

_WIDTH = 16  # V-Net's first stage repeats its input channels up to 16, so their number must divide 16
_MULTIPLE = (16, 16, 16)  # four halvings


@net
def vnet(spec: NetSpec, *, dropout: float = 0.0, bias: bool = False, deep_supervision: bool = False) -> nn.Module:
    """V-Net with its published width of 16 to 256 channels and four halvings (MONAI `VNet`).

    To compare with the literature on the Dice loss; it cannot follow anisotropic strides.

    Args:
        spec: The plan's numbers; of these only the channels are used, the architecture is fixed.
        dropout: Probability of dropping a channel in the lower stages and on the skip connections.
        bias: Whether convolutions have a bias.
        deep_supervision: Return the half and quarter resolution too, in training.

    Paper: Milletari et al. 2016, arXiv:1606.04797.
    """
    from monai.networks.nets import VNet  # only here: importing MONAI takes seconds

    spec.require_context("vnet", _MULTIPLE)
    fits = _WIDTH % spec.in_channels == 0
    backbone = VNet(
        spatial_dims=3,
        in_channels=spec.in_channels if fits else _WIDTH,
        out_channels=spec.out_channels,
        dropout_prob_down=dropout or None,
        dropout_prob_up=(dropout, dropout),
        bias=bias,
    )
    for level in (backbone.up_tr256, backbone.up_tr128, backbone.up_tr64, backbone.up_tr32):
        level.dropout2.p = dropout  # of the skip connection: MONAI drops half of it, whatever it is asked for
    network: nn.Module = backbone
    if not fits:
        network = nn.Sequential(nn.Conv3d(spec.in_channels, _WIDTH, kernel_size=1), backbone)
    if deep_supervision:
        levels = [backbone.up_tr64, backbone.up_tr128]
        network = Supervised(network, levels=levels, channels=[64, 128], out_channels=spec.out_channels)
    return PadToMultiple(network, _MULTIPLE)
