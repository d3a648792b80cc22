"""Weights parted over processes, for networks that one device cannot hold beside their gradients."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from medseg.errors import UsageError
from medseg.segmenter import lay_out

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


def require_shardable(*, averages: bool, learns: bool, compiles: bool, optimizer: str) -> None:
    """Refuse what does not go with parted weights.

    Args:
        averages: Whether averages of the weights are kept.
        learns: Whether the loss has numbers to learn.
        compiles: Whether the network is to be compiled.
        optimizer: Its name.

    Raises:
        UsageError: One of them is asked for.
    """
    if averages:
        raise UsageError("averages cannot be kept of weights that are sharded", "Set model.ema to 0, or use ddp")
    if learns:
        raise UsageError("a loss with numbers to learn cannot be sharded", "Use strategy ddp, or another loss")
    if optimizer == "muon":
        raise UsageError("muon looks at whole kernels, which fsdp parts", "Set model.optimizer to adamw, or use ddp")
    if compiles:
        raise UsageError("model.compile true does not go with strategy fsdp", "Leave it at false, or use ddp")


def gather(net: nn.Module) -> None:
    """Give every process all weights until `part`, all processes at once.

    Afterwards each can run the network as often as it likes: volumes have different numbers of windows, and a process
    that is still at work would wait for ever for the share of one that has finished.
    """
    for module in _sharded(net):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def part(net: nn.Module) -> None:
    """Leave each process its share again."""
    for module in _sharded(net):
        module.set_reshard_after_forward(module is not net, recurse=False)  # as `shard` leaves it
        module.reshard()


def _sharded(net: nn.Module) -> list[Any]:
    """The parts that `shard` has made; none where one process trains alone."""
    if not dist.is_available() or not dist.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in net.modules() if isinstance(module, FSDPModule)]


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
