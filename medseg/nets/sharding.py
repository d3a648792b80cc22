"""Weights parted over processes, for networks that one device cannot hold beside their gradients."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from medseg.nets.pace import lay_out

_WORTH_PARTING = 100_000
"""Weights of a part of a network that is gathered and let go on its own; smaller ones come with what holds them."""


def shard(net: nn.Module, device: str) -> None:
    """Leave each process a share of the weights; they are gathered, part by part, while they are at work.

    Every process of the default group takes part, so that gradients are means over them, as without sharding. Weights
    lie channels-first afterwards, which sharding demands; activations need not.

    Args:
        net: The network, with the same weights in every process.
        device: Type of the device that it trains on: ``"cuda"`` or ``"cpu"``.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    lay_out(net, channels_last=False)
    for part in _parts(net):
        fully_shard(part, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _parts(net: nn.Module) -> list[nn.Module]:
    """The smallest modules that are called whole and hold enough weights, containers left out."""
    parts: list[nn.Module] = []
    for child in net.children():
        inner = _parts(child)
        parts += inner
        heavy = sum(p.numel() for p in child.parameters()) >= _WORTH_PARTING
        if not inner and heavy and type(child).forward is not nn.Module.forward and not _is_list(child):
            parts.append(child)
    return parts


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))
