"""Networks by name, built from the numbers of a plan; importing a chapter files its networks in the table."""

from medseg.nets import anatomynet, attention, mednext, residual_encoder, segresnet, transformers, unet, vnet
from medseg.nets.convolutions import keep_short_ones_whole
from medseg.nets.cost import Cost, estimate
from medseg.nets.table import NetSpec, build_net, deeply_supervised_nets, list_nets

__all__ = [
    "Cost",
    "NetSpec",
    "anatomynet",
    "attention",
    "build_net",
    "deeply_supervised_nets",
    "estimate",
    "keep_short_ones_whole",
    "list_nets",
    "mednext",
    "residual_encoder",
    "segresnet",
    "transformers",
    "unet",
    "vnet",
]
