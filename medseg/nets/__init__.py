"""Networks by name, built from the numbers of a plan; importing a chapter files its networks in the table."""

from medseg.nets import unet, vnet
from medseg.nets.table import NetSpec, build_net, list_nets

__all__ = ["NetSpec", "build_net", "list_nets", "unet", "vnet"]
