"""What the weights of a training begin with: those of another checkpoint, and which of them stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.checkpoints.reading import matching_weights
from medseg.errors import UsageError
from medseg.nets import NetSpec


def frozen_norms(task: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Let weights stay as they are, and find the modules whose running statistics must stay too.

    Args:
        task: Whose weights they are.
        patterns: Of names, such as ``net.*downsamples*``.

    Raises:
        UsageError: A pattern freezes nothing, or no weight is left to train.
    """
    for pattern in patterns:
        named = [parameter for name, parameter in task.named_parameters() if fnmatch(name, pattern)]
        if not named:
            raise UsageError(f"model.freeze: no weight is called {pattern!r}", "Use a pattern such as net.*")
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise UsageError("model.freeze leaves no weight to train", "Freeze fewer, or score it with medseg test")
    return [
        module
        for name, module in task.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor) and _stays(name, module, patterns)
    ]


def take_over(task: Any, path: Path, spec: NetSpec) -> str:
    """Start from the network of a checkpoint; what gives the organs starts afresh, or in their new order.

    Args:
        task: A `medseg.training.task.SegmentationTask`.
        path: The checkpoint.
        spec: Of the task's network.

    Returns:
        What was done, in a line.

    Raises:
        CheckpointError: It cannot be read, or holds another network.
    """
    fitting, fresh, theirs = matching_weights(path, task.state_dict())
    said = f"{len(fresh)} start afresh"
    ours = list(task.plan.organs)
    if theirs is not None and theirs != ours:
        heads = {name: axis for name, axis in _heads(task, spec).items() if name in fitting}
        if sorted(theirs) == sorted(ours):
            for name, axis in heads.items():
                fitting[name] = fitting[name].index_select(axis, _order(theirs, ours, task.plan.exclusive))
            said += f"; the {len(heads)} of the last layer follow the organs by name"
        else:
            fitting = {name: weight for name, weight in fitting.items() if name not in heads}
            said = f"{len(fresh) + len(heads)} start afresh, for other organs ({', '.join(theirs)})"
    task.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} weights come from {path}, {said}"


def _stays(name: str, module: nn.Module, patterns: Sequence[str]) -> bool:
    own = list(module.parameters(recurse=False))
    trained = any(parameter.requires_grad for parameter in own)
    return not trained and (bool(own) or any(fnmatch(f"{name}.running_mean", pattern) for pattern in patterns))


def _heads(task: Any, spec: NetSpec) -> dict[str, int]:
    """The weights that give a number per class, and along which axis: those that one class more makes longer."""
    with torch.random.fork_rng():
        more = task.build_net(replace(spec, out_channels=spec.out_channels + 1)).state_dict()
    return {
        f"net.{name}": next(axis for axis, size in enumerate(weight.shape) if size != more[name].shape[axis])
        for name, weight in task.net.state_dict().items()
        if name in more and weight.shape != more[name].shape
    }


def _order(theirs: list[str], ours: list[str], exclusive: bool) -> Tensor:
    """For each class of ours the place that it had there; the background, where there is one, comes first."""
    places = [theirs.index(organ) for organ in ours]
    return torch.tensor([0, *(place + 1 for place in places)] if exclusive else places)
