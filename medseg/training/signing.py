"""Signs every checkpoint of a run with its origin, and says what is not as it was when the run goes on."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from medseg.checkpoints.checkpoint import Checkpoint, tell_origin
from medseg.checkpoints.origin import Origin, differences, origin
from medseg.checkpoints.plain import require_plain
from medseg.errors import DataError
from medseg.patches.datamodule import VolumesDataModule
from medseg.store.identity import identity
from medseg.store.store import Store
from medseg.training.belonging import already_seen


class UnequalDataError(DataError):
    """The processes of one training would train on different data; every one of them knows and says the same."""


class SignOrigin(Callback):
    """Puts `medseg.checkpoints.origin.origin` into every checkpoint, under ``origin``.

    Works on a `medseg.patches.datamodule.VolumesDataModule`, whose plan has the sizes that the config overrides.

    Args:
        config: The whole config as plain data.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.store: Store
        self.cases: dict[str, str] = {}
        self.origin: Origin

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the data, before a checkpoint is loaded that was written elsewhere.

        Raises:
            UsageError: The hyperparameters are nothing that a checkpoint may hold.
        """
        data: VolumesDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's connector
        require_plain({of.CHECKPOINT_HYPER_PARAMS_KEY: dict(of.hparams) for of in (pl_module, data)})
        self.store = Store(data.store)
        self.cases = identity(self.store)
        self.origin = origin(data.plan.to_dict(), config=self.config, cases=self.cases)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sign."""
        tell_origin(checkpoint, self.origin)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn in one sentence of all that is not as it was."""
        kept = Checkpoint(Path("--ckpt_path"), checkpoint)
        told = differences(kept.origin, self.origin, self.cases) if kept.origin else ()  # one's own trainer tells none
        if told:
            rank_zero_warn(f"this run goes on under other circumstances: {'; '.join(told)}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of validation cases that the weights know; compare the data of all processes.

        Raises:
            UnequalDataError: In every process, when they differ.
        """
        known: set[str] = pl_module.trained_on  # type: ignore[assignment]  # a `SegmentationTask`'s
        if seen := already_seen(known, trainer.datamodule):  # type: ignore[attr-defined]  # set by Lightning's connector
            rank_zero_warn(f"{seen}, by what the weights come from: val/dice is no measure of new cases")
        if trainer.world_size == 1:
            return
        mine = (socket.gethostname(), self.origin["data"]["digest"], len(self.cases), self.origin["plan"])
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, mine)
        host, digest, count, plan = everyone[0]
        for rank, (other, theirs, cases, their_plan) in enumerate(everyone):
            if (theirs, their_plan) != (digest, plan):
                what = "data" if theirs != digest else "plan"
                raise UnequalDataError(
                    self.store.path,
                    f"is not the same everywhere: process {rank} on {other} has {cases} cases and other {what} than "
                    f"process 0 on {host} with {count}",
                    "Copy the same store to every machine",
                )
