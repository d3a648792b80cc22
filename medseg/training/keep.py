"""Which checkpoints a run keeps: the best, and the last, often enough to lose little; each on the disk whole or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.reading import read_content, read_to_go_on
from medseg.checkpoints.run import Run
from medseg.machine.files import whole
from medseg.training.ending import training_ends
from medseg.training.lightning import epochs_done, rehearses


class KeepCheckpoints(ModelCheckpoint):
    """Keeps ``best.ckpt``, by mean Dice, and ``last.ckpt``, from which a killed run goes on as if nothing had happened.

    ``last.ckpt`` is written after every validation, and between validations at the end of the first step after
    ``minutes``: a kill costs that much work at most, plus the validation that it hit. When between validations, and why
    a training ends, is the business of `medseg.training.interrupt`, where processes agree on both at once.

    Args:
        run: The folder whose two files these are.
        minutes: Between two writes of ``last.ckpt``, validations apart; 0 writes after every step.
    """

    def __init__(self, run: Run, minutes: float = 5.0) -> None:
        super().__init__(
            dirpath=run.checkpoints,
            filename=run.best.stem,
            monitor="val/dice",
            mode="max",
            save_last=False,  # Lightning would write it only when the best is written too
            save_on_train_epoch_end=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.last = run.last
        self._run = run
        self.seconds = 60 * minutes
        self._written = time.monotonic()
        self._step, self._best_step = 0, 0  # which the two files hold
        self._at_home = self._has_best = False

    def kept_before(self, step: int) -> str:
        """The file with the weights as they were after so many steps or fewer, if there is one."""
        if self.last_model_path and self._step <= step:
            return self.last_model_path
        return self.best_model_path if self._best_step <= step else ""

    def write(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``."""
        if rehearses(trainer):
            return
        self.last_model_path = str(self.last)
        trainer.save_checkpoint(self.last, weights_only=False)
        self._written, self._step = time.monotonic(), trainer.global_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write, by the clock of this process."""
        return time.monotonic() - self._written >= self.seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the last step has left, where no validation has."""
        spent = trainer.max_epochs is not None and 0 < trainer.max_epochs <= epochs_done(trainer)
        if self._step != trainer.global_step and (training_ends(trainer) or spent):
            self.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best if it is one, and the last."""
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before:
            self._best_step = trainer.global_step
        if not trainer.sanity_checking:
            self.write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the log up to date first."""
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn whether the run goes on in its own folder, and whether its best is there, in every process alike."""
        resumed = trainer.ckpt_path
        self._at_home = resumed is not None and self._run.holds(Path(resumed))
        self._has_best = bool(trainer.strategy.broadcast(self._run.best.is_file()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the best score again, also where the folder was moved; where its file is not, there is none yet."""
        if self._at_home:
            here, there = str(self.dirpath), str(state_dict.get("dirpath", self.dirpath))
            super().load_state_dict({name: _moved(value, there, here) for name, value in state_dict.items()})
            if not self._has_best:
                self.best_model_score, self.best_model_path, self.best_k_models = None, "", {}


def _moved(value: Any, there: str, here: str) -> Any:
    """A path, or the keys of a mapping, as if they had been in another folder from the start."""
    if isinstance(value, str) and value.startswith(there):
        return here + value[len(there) :]
    if isinstance(value, dict):
        return {_moved(key, there, here): score for key, score in value.items()}
    return value


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoint files here.

    Lightning's own way collects the file in memory and then in the folder for temporary files, from where it is moved;
    where that is another file system, the move is a copy, and a kill in its middle leaves half a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ahead: Checkpoint | None = None

    def read_ahead(self, path: Path) -> Checkpoint:
        """What a training can go on from, read now; whoever loads that file next gets it, and nobody after.

        Raises:
            CheckpointError: As `medseg.checkpoints.reading.read_to_go_on`.
        """
        self._ahead = read_to_go_on(path)
        return self._ahead

    def hand_over(self, strategy: Strategy) -> None:
        """Read for a strategy in place of its like; one that has a way of its own reads the file itself."""
        if isinstance(strategy.checkpoint_io, CheckpointFiles) and not isinstance(strategy, ModelParallelStrategy):
            strategy.checkpoint_io = self
        else:
            self._ahead = None

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
        ahead, self._ahead = self._ahead, None
        return dict(ahead.content) if ahead is not None and ahead.path == Path(path) else read_content(Path(path))
