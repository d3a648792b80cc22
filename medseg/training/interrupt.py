"""Why a training stops before its budget is spent: a signal asks, and what it has done is kept first."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from medseg.checkpoints.checkpoint import Checkpoint as Kept
from medseg.errors import InterruptionError
from medseg.training.ending import training_ends
from medseg.training.keep import KeepCheckpoints
from medseg.training.lightning import ask_nobody_for_signals, between_steps, forget_validation
from medseg.training.peers import any_process


class StopOnRequest(Checkpoint):
    """Has ``last.ckpt`` written when it is time, and on SIGTERM, Ctrl-C, SIGUSR1 or SIGUSR2, when it also stops.

    At the end of the step; within a validation of one process at once, and the resumed run repeats that validation. A
    last validation, when the budget is spent, is finished first. After SIGUSR1 or SIGUSR2 a SLURM job is requeued.

    Lightning's ``Checkpoint`` is it only to come after all that a checkpoint holds has been brought up to date.

    Args:
        keep: Writes the checkpoint.

    Raises:
        InterruptionError: While training, when it was asked to stop.
    """

    def __init__(self, keep: KeepCheckpoints) -> None:
        self.keep = keep
        self.signals = StopSignals()
        self._validating = False
        self._breaking_off = False  # of a validation, in order, as opposed to whatever else may end it

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch the signals, after Lightning has: its handlers would write from the middle of a step."""
        self.signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before the sanity check, which may be left out."""
        self.signals.install()
        ask_nobody_for_signals(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep or stop, unless a validation follows, which keeps anyway, or the end, which is validated."""
        if training_ends(trainer) or not between_steps(trainer):
            return
        due, asked = any_process(trainer, self.keep.due, self.signals.received is not None)
        if asked:
            self._leave(trainer)
            raise self._interrupted(trainer)
        if due:
            self.keep.write(trainer)

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
        if asked and not (self._validating and training_ends(trainer)):
            self._breaking_off = self._validating
            raise self._interrupted(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is finished, before anybody writes."""
        self._validating = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what a validation was begun with, when it was asked to stop."""
        if isinstance(exception, InterruptionError) and self._breaking_off:
            self._breaking_off = False
            self._leave(trainer)
        self.signals.restore()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let an unfinished validation begin anew in the resumed run."""
        if self._validating:
            forget_validation(Kept(self.keep.last, checkpoint).loops)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the signals."""
        self.signals.restore()

    def _leave(self, trainer: Trainer) -> None:
        self.keep.write(trainer)
        if self.signals.received in REQUEUE and trainer.is_global_zero:
            requeue()

    def _interrupted(self, trainer: Trainer) -> InterruptionError:
        signum = self.signals.received or signal.SIGTERM  # another process was asked, and it told
        if trainer.sanity_checking:
            return InterruptionError(signum, "before the first step", "Start again with the same command")
        told = f"after step {trainer.global_step}, which {self.keep.last} holds"
        return InterruptionError(signum, told, "Go on with --ckpt_path last")


STOP = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows knows no SIGUSR1
REQUEUE = tuple(signum for signum in STOP if signum.name.startswith("SIGUSR"))

_log = logging.getLogger(__name__)


class StopSignals:
    """Catches the signals of `STOP` while a training runs.

    The first one is only noted: whoever asks for `received` between two steps finds it there. A second SIGINT stops at
    once, for a user who cannot wait for the end of a step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Catch them, in place of whoever did; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in STOP:
            before = signal.signal(signum, self._note)
            self._before.setdefault(signum, before)

    def restore(self) -> None:
        """Give them back to whoever had them before the first `install`."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise InterruptionError(signum, "at once", "Go on from the last checkpoint with --ckpt_path last")
        self.received = self.received or signal.Signals(signum)


def requeue() -> bool:
    """Ask SLURM to start this job again from its beginning, as its script says.

    Returns:
        Whether there is such a job and SLURM accepted.
    """
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        _log.warning("job %s could not be requeued (%s)", job, error)
        return False
    if done.returncode:
        _log.warning("job %s could not be requeued (%s)", job, done.stderr.strip())
    return done.returncode == 0
