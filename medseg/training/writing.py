"""Checkpoints reach the disk whole or not at all, and are read back without running what they hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH

from medseg.checkpoints.reading import read_content
from medseg.errors import CheckpointError


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoint files here.

    Lightning's own way collects the file in memory and then in the folder for temporary files, from where it is moved;
    where that is another file system, the move is a copy, and a kill in its middle leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write beside the final name, force it to the disk, then rename, which is all or nothing.

        Raises:
            CheckpointError: The disk is full or the file cannot be written; what was there before is untouched.
        """
        target = Path(path)
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):  # such as: the folder is a file
                unfinished.unlink(missing_ok=True)
            reason = _reason(error)
            if reason is None:
                raise
            before = "the one from before is whole" if target.exists() else "none was there before"
            raise CheckpointError(
                target, f"could not be written ({reason}); {before}", "Free space and go on with --ckpt_path last"
            ) from None

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read as plain data and tensors whatever ``weights_only`` says: there is no other way to open one here.

        Raises:
            CheckpointError: As `medseg.checkpoints.reading.read_content`.
        """
        return read_content(Path(path))


def _reason(error: BaseException) -> str | None:
    """What the system said about a failed write, or None if it was something else that failed."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error.__context__, OSError):  # torch's writer fails once more while it closes the file
        return _reason(error.__context__)
    return "the file could not be written to its end" if "PytorchStreamWriter" in str(error) else None
