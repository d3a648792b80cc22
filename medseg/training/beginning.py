"""Other weights to begin a training with: whose they are, what of them fits, and what that is said to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.reading import Beginning, own_beginning
from medseg.errors import CheckpointError, listed
from medseg.nets import NetSpec
from medseg.nnunet.folder import read_pickle
from medseg.nnunet.starting import beginning_for, is_foreign


def take_over(task: Any, path: Path, spec: NetSpec) -> str:
    """Start from the network of a checkpoint; what gives the organs starts afresh, or in their new order.

    Weights that read the image follow the modalities by name. What is left of the old ones is dealt out evenly to those
    that are new, so that an image of equal channels gives what it gave. The task learns which cases its weights know.

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
    source = beginning_in(path, state)
    kept, theirs = source.weights, source.organs
    inputs = _longer(task, replace(spec, in_channels=2 * spec.in_channels))
    adapted, notes = _by_modality(kept, state, inputs, source.modalities, list(task.plan.modalities))
    taken = {name: weight for name, weight in (kept | adapted).items() if weight.shape == state[name].shape}
    ours = list(task.plan.organs)
    heads = _longer(task, replace(spec, out_channels=spec.out_channels + 1))
    heads = {name: axis for name, axis in heads.items() if name in taken and theirs not in (None, ours)}
    if sorted(theirs or ()) == sorted(ours):
        order = _order(theirs or [], ours, task.plan.exclusive)
        taken |= {name: taken[name].index_select(axis, order) for name, axis in heads.items()}
        notes += [f"the {len(heads)} of the last layer follow the organs by name"] * bool(heads)
    else:
        taken = {name: weight for name, weight in taken.items() if name not in heads}
    if not taken:
        raise CheckpointError(
            path, "holds another network: none of its weights fit", "Start from one of the same net and net_options"
        )
    task.load_state_dict(taken, strict=False)
    task.trained_on |= source.trained_on
    return _told(path, [*taken], [*state], notes, theirs if theirs and sorted(theirs) != sorted(ours) else None)


def remember(task: Any, checkpoint: Checkpoint, replaced: Collection[str]) -> None:
    """Have a task that was built of a checkpoint know what its own training found out, and was not told.

    Args:
        task: A `medseg.training.task.SegmentationTask`.
        checkpoint: Whose weights it has.
        replaced: Its arguments that were given anew.
    """
    task.last_scores, task.trained_on = checkpoint.scores, checkpoint.trained_on
    task.hparams["counted"] = [] if "class_weights" in replaced else [*checkpoint.counted]


def beginning_in(path: Path, names: Iterable[str]) -> Beginning:
    """What a checkpoint holds, its weights by the names of a network, whatever their shape.

    Raises:
        CheckpointError: It cannot be read, or is none of medseg's, nnU-Net's or nnssl's.
    """
    content = read_pickle(path)
    if is_foreign(content):
        return beginning_for(path, content, names)
    source = own_beginning(path, content)
    stems = {_stem(name): weight for name, weight in source.weights.items()}
    return replace(source, weights={name: stems[_stem(name)] for name in names if _stem(name) in stems})


def _by_modality(
    kept: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    inputs: Mapping[str, int],
    theirs: list[str] | None,
    ours: list[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that read the image, for other modalities or another order of them; and what is said of that."""
    found: dict[str, Tensor] = {}
    named: list[str] = []
    for name, axis in inputs.items():
        if name not in kept or not _alike(kept[name], state[name], but=axis):
            continue
        features = state[name].shape[axis] - len(ours)  # where the image joins others, it is the last of them
        count = kept[name].shape[axis] - features
        unnamed = theirs is None or not len(theirs) == len({*theirs}) == count
        if count < 1 or (count == len(ours) if unnamed else theirs == ours):
            continue
        named = [f"channel {number}" for number in range(count)] if unnamed else theirs or []
        before, image = kept[name].float().tensor_split([features], dim=axis)
        mixed = torch.tensordot(image, _shares(named, ours), dims=([axis], [1])).movedim(-1, axis)
        found[name] = torch.cat([before, mixed], dim=axis)
    return found, [f"the {len(found)} that read the image {_told_of_modalities(named, ours)}"] * bool(found)


def _told_of_modalities(theirs: list[str], ours: list[str]) -> str:
    """What becomes of the modalities of another training.

    Example:
        >>> _told_of_modalities(["T1", "T2"], ["T1", "PD", "CT"])
        'are of other modalities (T1, T2): T1 by name, the others spread over PD, CT'
        >>> _told_of_modalities(["T1", "T2"], ["T2", "T1"])
        'follow the modalities by name'
    """
    common, new = ([name for name in ours if (name in theirs) == known] for known in (True, False))
    gone = [name for name in theirs if name not in ours]
    told = [f"{listed(common)} by name"] * bool(common)
    if new:
        told += [f"{'the others ' * bool(common)}spread over {listed(new)}" if gone else f"{listed(new)} from zero"]
    others = f"are of other modalities ({', '.join(theirs)}): {', '.join(told)}"
    return others if new or gone else "follow the modalities by name"


def _shares(theirs: list[str], ours: list[str]) -> Tensor:
    """How much each modality of ours gets of each of theirs: all of its own, and if new, as much as any of the others.

    Example:
        >>> _shares(["T1", "T2"], ["T2", "T1"]).tolist(), _shares(["T1", "T2"], ["T1", "PD", "CT"]).tolist()
        ([[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.5], [0.0, 0.5]])
    """
    part = 1 / max(1, sum(our not in theirs for our in ours))
    rows = [[float(one == our) if our in theirs else part * (one not in ours) for one in theirs] for our in ours]
    return torch.tensor(rows)


def _alike(one: Tensor, other: Tensor, *, but: int) -> bool:
    """Whether two shapes differ along one axis at most."""
    rest = [[size for axis, size in enumerate(weight.shape) if axis != but] for weight in (one, other)]
    return one.ndim == other.ndim and rest[0] == rest[1]


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
