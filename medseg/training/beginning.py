"""Other weights to begin a training with: whose they are, what of them fits, and what that is said to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.checkpoints.reading import own_weights
from medseg.errors import CheckpointError, listed
from medseg.nets import NetSpec
from medseg.nnunet.folder import read_pickle
from medseg.nnunet.starting import is_foreign, weights_for


def take_over(task: Any, path: Path, spec: NetSpec) -> str:
    """Start from the network of a checkpoint; what gives the organs starts afresh, or in their new order.

    Weights that read the image are adapted to the number of modalities: each new one gets the mean of the old ones, in
    such a share that an image of equal channels gives what it gave.

    Args:
        task: A `medseg.training.task.SegmentationTask`.
        path: Of a checkpoint of medseg, of nnU-Net's trainer or of nnssl.
        spec: Of the task's network.

    Returns:
        What was done, in a line.

    Raises:
        CheckpointError: It cannot be read, or holds another network.
    """
    once = {f"net.{name}" for name, _ in (*task.net.named_parameters(), *task.net.named_buffers())}
    state = {name: weight for name, weight in task.state_dict().items() if name in once}
    kept, theirs = weights_to_start_from(path, state)
    adapted = _adapted(kept, state, _longer(task, replace(spec, in_channels=spec.in_channels + 1)))
    taken = {name: weight for name, weight in (kept | adapted).items() if weight.shape == state[name].shape}
    ours, notes = list(task.plan.organs), []
    heads = _longer(task, replace(spec, out_channels=spec.out_channels + 1))
    heads = {name: axis for name, axis in heads.items() if name in taken and theirs not in (None, ours)}
    if sorted(theirs or ()) == sorted(ours):
        order = _order(theirs or [], ours, task.plan.exclusive)
        taken |= {name: taken[name].index_select(axis, order) for name, axis in heads.items()}
        notes += [f"the {len(heads)} of the last layer follow the organs by name"] * bool(heads)
    else:
        taken = {name: weight for name, weight in taken.items() if name not in heads}
    notes += [f"{len(adapted)} are spread over {spec.in_channels} modalities"] * bool(adapted)
    if not taken:
        raise CheckpointError(
            path, "holds another network: none of its weights fit", "Start from one of the same net and net_options"
        )
    task.load_state_dict(taken, strict=False)
    return _told(path, [*taken], [*state], notes, theirs if theirs and sorted(theirs) != sorted(ours) else None)


def weights_to_start_from(path: Path, names: Iterable[str]) -> tuple[dict[str, Tensor], list[str] | None]:
    """The weights of a checkpoint by the names of a network, whatever their shape, and its organs if it says them.

    Raises:
        CheckpointError: It cannot be read, or is none of medseg's, nnU-Net's or nnssl's.
    """
    content = read_pickle(path)
    if is_foreign(content):
        return weights_for(path, content, names)
    kept, organs = own_weights(path, content)
    stems = {_stem(name): weight for name, weight in kept.items()}
    return {name: stems[_stem(name)] for name in names if _stem(name) in stems}, organs


def _adapted(kept: Mapping[str, Tensor], state: Mapping[str, Tensor], inputs: Mapping[str, int]) -> dict[str, Tensor]:
    """The weights that read the image, for another number of modalities."""
    found = {}
    for name, axis in inputs.items():
        if name in kept and name in state and _alike(kept[name], state[name], but=axis):
            count = state[name].shape[axis]
            spread = kept[name].sum(dim=axis, keepdim=True) / count
            found[name] = spread.repeat_interleave(count, dim=axis)
    return found


def _alike(one: Tensor, other: Tensor, *, but: int) -> bool:
    """Whether two shapes differ along one axis and no other."""
    same = [a == b for a, b in zip(one.shape, other.shape, strict=False)]
    return one.ndim == other.ndim and [axis for axis, equal in enumerate(same) if not equal] == [but]


def _told(path: Path, taken: list[str], names: list[str], notes: list[str], others: list[str] | None) -> str:
    """What came and what did not, in a line, and whether that is little."""
    fresh = [name for name in names if name not in set(taken)]
    said = f"{len(taken)} weights come from {path}, {len(fresh)} start afresh"
    if others:
        said += f", for other organs ({', '.join(others)})"
    if fresh:
        said += f": {listed(dict.fromkeys(_part(name) for name in fresh))}"
    few = ["fewer than half: is it the same net, with the same net_options and plan?"]
    return "; ".join([said, *notes, *few * (2 * len(taken) < len(names))])


def _part(name: str) -> str:
    """The part of a network that a weight belongs to, such as ``upsamples.2``.

    Example:
        >>> _part("net.net.net.upsamples.2.conv_block.conv1.conv.weight"), _part("net.net.head.bias")
        ('upsamples.2', 'head')
    """
    first, *further = _stem(name).removeprefix("net.").split(".")
    return f"{first}.{further[0]}" if further and further[0].isdecimal() else first


def _stem(name: str) -> str:
    """A weight's name without the wrappings around a network, which deep supervision has one more of."""
    while name.startswith("net.net."):
        name = name.removeprefix("net.")
    return name


def _longer(task: Any, spec: NetSpec) -> dict[str, int]:
    """The weights that are longer in a network of another spec, and along which axis."""
    with torch.random.fork_rng():
        more = task.build_net(spec).state_dict()
    return {
        f"net.{name}": next(axis for axis, size in enumerate(weight.shape) if size != more[name].shape[axis])
        for name, weight in task.net.state_dict().items()
        if name in more and weight.shape != more[name].shape
    }


def _order(theirs: list[str], ours: list[str], exclusive: bool) -> Tensor:
    """For each class of ours the place that it had there; the background, where there is one, comes first."""
    places = [theirs.index(organ) for organ in ours]
    return torch.tensor([0, *(place + 1 for place in places)] if exclusive else places)
