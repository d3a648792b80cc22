"""Checkpoints reach the disk whole or not at all, and are read back without running what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from medseg.checkpoints.reading import read_content
from medseg.machine.files import whole


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoint files here.

    Lightning's own way collects the file in memory and then in the folder for temporary files, from where it is moved;
    where that is another file system, the move is a copy, and a kill in its middle leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write beside the final name, force it to the disk, then rename, which is all or nothing.

        Raises:
            MachineError: The disk is full or the file cannot be written; what was there before is untouched.
        """
        remedy = "Free space and go on with --ckpt_path last"
        with whole(Path(path), remedy=remedy) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)  # not by name: torch's own writer does not say why it failed

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read as plain data and tensors whatever ``weights_only`` says: there is no other way to open one here.

        Raises:
            CheckpointError: As `medseg.checkpoints.reading.read_content`.
        """
        return read_content(Path(path))
