"""Checkpoints as files: read so that no code in them can run, refused with a sentence when they are not ours."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from medseg.checkpoints.checkpoint import WEIGHTS, Checkpoint, checked, organs_of, require_ours
from medseg.checkpoints.facts import explained
from medseg.errors import CheckpointError


def read_content(path: Path) -> dict[str, Any]:
    """All that is in a checkpoint of medseg, as plain data and tensors on the CPU; nothing but that is checked.

    Raises:
        CheckpointError: The file is missing, unreadable, holds code, or is no checkpoint of medseg.
    """
    return require_ours(path, explained(path, lambda: read_plain(path)))


def read_plain(file: Path | IO[bytes]) -> Any:
    """What ``torch.save`` wrote, as plain data and tensors on the CPU; no code in it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on a foreign pickle's protocol; `explained` says more
        return torch.load(file, map_location="cpu", weights_only=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint with its tensors, on the CPU.

    Raises:
        CheckpointError: The file is missing, unreadable, holds code, or is no checkpoint of medseg.
    """
    content = read_content(path)
    return checked(path, content, explained(path, lambda: _digest(path)))


def read_to_go_on(path: Path) -> Checkpoint:
    """A checkpoint that a training can go on from: all of its parts are there, and its weights are numbers.

    Raises:
        CheckpointError: As `read_checkpoint`, or it lacks something.
    """
    content = read_content(path)
    Checkpoint(path, content).require_resumable()
    require_numbers(path, content[WEIGHTS])
    return checked(path, content)


def require_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse the weights of a training that has gone wrong, and what is no weights.

    Raises:
        CheckpointError: One is NaN or infinite, or no dense tensor.
    """
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            raise CheckpointError(path, f"holds something else than the numbers of {name}", "Use another checkpoint")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                path,
                f"holds weights that are NaN or infinite, such as {name}",
                "Use another one, such as best.ckpt, with a lower model.lr",
            )


def matching_weights(
    path: Path, state: Mapping[str, Tensor], prefix: str = "net."
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str] | None]:
    """The weights of a checkpoint that fit a network, for fine-tuning on other labels or channels.

    Args:
        path: The checkpoint to start from, of which nothing else is looked at.
        state: The weights of the new task, by name.
        prefix: Only names that begin so are taken: the network's, not the loss's.

    Returns:
        The weights whose name and shape fit, the names of the new task that keep their initial values, and the organs
        that the checkpoint was trained on, in the order of its classes; None if it does not say.

    Raises:
        CheckpointError: As `read_checkpoint`, or nothing fits: another network.
    """
    content = read_content(path)
    kept = content[WEIGHTS]
    require_numbers(path, kept)
    stems = {_stem(name): tensor for name, tensor in kept.items()}
    theirs = {name: stems[_stem(name)] for name in state if _stem(name) in stems}
    wanted = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    fitting = {
        name: theirs[name] for name, tensor in wanted.items() if name in theirs and theirs[name].shape == tensor.shape
    }
    if 2 * len(fitting) < len(wanted):
        raise CheckpointError(
            path,
            f"holds another network: {len(fitting)} of {len(wanted)} weights fit",
            "Start from a checkpoint of the same net and net_options",
        )
    return fitting, tuple(name for name in wanted if name not in fitting), organs_of(content)


def _digest(path: Path) -> str:
    """The content's name, from the lengths and check sums that its archive keeps of each part."""
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename.partition("/")[2], part.file_size, part.CRC) for part in archive.infolist()]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _stem(name: str) -> str:
    """A weight's name without the wrappings around a network, which deep supervision has one more of."""
    while name.startswith("net.net."):
        name = name.removeprefix("net.")
    return name
