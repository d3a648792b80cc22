"""Checkpoints as files: read so that no code in them can run, refused with a sentence when they are not ours."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from medseg.checkpoints.checkpoint import (
    WEIGHTS,
    Checkpoint,
    checked,
    modalities_of,
    organs_of,
    require_ours,
    traces_of,
)
from medseg.checkpoints.facts import explained
from medseg.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a training can begin with, and as much as is known of it.

    Attributes:
        weights: Name -> weight.
        organs: That it was trained on, in the order of its classes; None where it does not say.
        modalities: In the order of its channels; None where it does not say.
        trained_on: As `medseg.checkpoints.checkpoint.Checkpoint.trained_on`; empty where it does not say.
    """

    weights: dict[str, Tensor]
    organs: list[str] | None
    modalities: list[str] | None
    trained_on: set[str]


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


def own_beginning(path: Path, content: Any) -> Beginning:
    """What a training can begin with in a checkpoint of medseg, of which nothing else is looked at.

    Args:
        path: Its file.
        content: What was read from it.

    Raises:
        CheckpointError: It is no checkpoint of medseg, or its weights are no numbers.
    """
    kept = require_ours(path, content)[WEIGHTS]
    require_numbers(path, kept)
    return Beginning(kept, organs_of(content), modalities_of(content), traces_of(content))


def _digest(path: Path) -> str:
    """The content's name, from the lengths and check sums that its archive keeps of each part."""
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename.partition("/")[2], part.file_size, part.CRC) for part in archive.infolist()]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
