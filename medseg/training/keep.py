"""Which checkpoints a run keeps and when it writes them: the best, and the last, often enough to lose little."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from medseg.errors import InterruptionError
from medseg.training.signals import REQUEUE, StopSignals, requeue

_GO_ON = "Go on with --ckpt_path last"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


class KeepCheckpoints(ModelCheckpoint):
    """Keeps ``best.ckpt``, by mean Dice, and ``last.ckpt``, from which a killed run goes on as if nothing had happened.

    ``last.ckpt`` is written after every validation, and between validations at the end of the first step after
    ``minutes``: a kill costs that much work at most, plus the validation that it hit. SIGTERM, Ctrl-C, SIGUSR1 and
    SIGUSR2 write it at the end of the step and stop; within a validation of one process they write it at once, and the
    resumed run repeats that validation. A last validation, when the budget is spent, is finished first. After SIGUSR1
    or SIGUSR2 a SLURM job is requeued.

    Args:
        folder: Where the two files are.
        minutes: Between two writes of ``last.ckpt``, validations apart; 0 writes after every step.

    Raises:
        InterruptionError: While training, when it was asked to stop.
    """

    def __init__(self, folder: Path, minutes: float = 5.0) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor="val/dice",
            mode="max",
            save_last=False,  # Lightning would write it only when the best is written too
            save_on_train_epoch_end=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.seconds = 60 * minutes
        self.signals = StopSignals()
        self._written = time.monotonic()
        self._step, self._best_step = 0, 0  # which the two files hold
        self._at_home = False
        self._validating = False
        self._breaking_off = False  # of a validation, in order, as opposed to whatever else may end it

    @property
    def last(self) -> Path:
        """The file that a killed run goes on from."""
        return Path(str(self.dirpath)) / "last.ckpt"

    def kept_before(self, step: int) -> str:
        """The file with the weights as they were after so many steps or fewer, if there is one."""
        if self.last_model_path and self._step <= step:
            return self.last_model_path
        return self.best_model_path if self._best_step <= step else ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch the signals, after Lightning has: its handlers would write from the middle of a step."""
        self.signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before the sanity check, which may be left out."""
        super().on_train_start(trainer, pl_module)
        self.signals.install()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time or if asked to stop, unless a validation follows, which writes anyway."""
        if _between_steps(trainer):
            self._write_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the last step has left, where no validation has."""
        if self._step != trainer.global_step and (_budget_spent(trainer) or _epochs_spent(trainer)):
            self._write_last(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, a checkpoint would be one of a validation that is not finished."""
        self._validating = not trainer.sanity_checking

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within a validation, where every process can: processes have cases of their own, and one can."""
        asked = self.signals.received is not None and trainer.world_size == 1
        if asked and not (self._validating and _budget_spent(trainer)):
            self._breaking_off = self._validating
            raise self._interrupted(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best if it is one, and the last."""
        self._validating = False
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before:
            self._best_step = trainer.global_step
        if not trainer.sanity_checking:
            self._write_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what a validation was begun with, when it was asked to stop."""
        if isinstance(exception, InterruptionError) and self._breaking_off:
            self._breaking_off = False
            self._write_last(trainer)
            self._requeue(trainer)
        self.signals.restore()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the log up to date first; let an unfinished validation begin anew in the resumed run."""
        for logger in trainer.loggers:
            logger.save()
        if self._validating:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # as Lightning knows a broken one
            none = dict.fromkeys(begun, 0)
            checkpoint["loops"]["fit_loop"][_VALIDATION] = {"total": begun, "current": none, "is_last_batch": False}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the signals."""
        self.signals.restore()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn whether the run goes on in its own folder."""
        resumed = trainer.ckpt_path
        self._at_home = resumed is not None and Path(resumed).resolve().parent == self.last.resolve().parent

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the best score again, also where the folder was moved; in another run's folder there is none yet."""
        if self._at_home:
            here, there = str(self.dirpath), str(state_dict.get("dirpath", self.dirpath))
            super().load_state_dict({name: _moved(value, there, here) for name, value in state_dict.items()})

    def _write_if_due(self, trainer: Trainer) -> None:
        asked = self.signals.received is not None
        if not _any(trainer, asked or time.monotonic() - self._written >= self.seconds):
            return
        stop = _any(trainer, asked)
        self._write_last(trainer)
        if stop:
            self._requeue(trainer)
            raise self._interrupted(trainer)

    def _write_last(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's connector
            return
        self.last_model_path = str(self.last)
        trainer.save_checkpoint(self.last, weights_only=False)
        self._written, self._step = time.monotonic(), trainer.global_step

    def _requeue(self, trainer: Trainer) -> None:
        if self.signals.received in REQUEUE and trainer.is_global_zero:
            requeue()

    def _interrupted(self, trainer: Trainer) -> InterruptionError:
        signum = self.signals.received or signal.SIGTERM  # another process was asked, and it told
        if trainer.sanity_checking:
            return InterruptionError(signum, "before the first step", "Start again with the same command")
        return InterruptionError(signum, f"after step {trainer.global_step}, which {self.last} holds", _GO_ON)


def _between_steps(trainer: Trainer) -> bool:
    """Whether the weights have just been updated, and the next thing is another batch."""
    loop = trainer.fit_loop.epoch_loop
    unfinished = loop._should_accumulate() or _budget_spent(trainer)
    fetcher = trainer.fit_loop._data_fetcher
    return not unfinished and fetcher is not None and not loop._should_check_val_fx(fetcher)


def _budget_spent(trainer: Trainer) -> bool:
    """Whether there will be no other step: a checkpoint of this moment would never see its validation."""
    return trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step


def _epochs_spent(trainer: Trainer) -> bool:
    done: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]  # of its subclass
    return trainer.max_epochs is not None and 0 < trainer.max_epochs <= done


def _any(trainer: Trainer, decision: bool) -> bool:
    """Whether any process decides so; all of them must ask at the same moment."""
    if trainer.world_size == 1:
        return decision
    return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


def _moved(value: Any, there: str, here: str) -> Any:
    """A path, or the keys of a mapping, as if they had been in another folder from the start."""
    if isinstance(value, str) and value.startswith(there):
        return here + value[len(there) :]
    if isinstance(value, dict):
        return {_moved(key, there, here): score for key, score in value.items()}
    return value
