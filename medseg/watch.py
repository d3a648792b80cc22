"""What looks on while a network trains: steps that would spoil the weights, and the time that data take."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from medseg.errors import MedsegError

_WORTH_A_WORD_S = 5.0  # of an epoch; below that nobody waits


class NonFiniteError(MedsegError):
    """Too many steps in a row had a gradient that is NaN or infinite; names the step, the cases and the terms."""

    def __init__(self, step: int, skipped: int, cases: tuple[str, ...], terms: dict[str, float]) -> None:
        values = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        super().__init__(
            f"the gradient was not finite in {skipped} steps in a row, last at step {step} on the cases "
            f"{', '.join(cases)} ({values}). Lower model.lr, set trainer.gradient_clip_val, or train with "
            "trainer.precision 32; the last good checkpoint is checkpoints/last.ckpt of the run."
        )


class SkipBadSteps(Callback):
    """Leaves out optimizer steps whose gradient is NaN or infinite, and stops after too many in a row.

    The gradients are judged where every process holds the same ones, so all of them skip together. In fp16 the
    gradient scaler finds overflows by itself and lowers its scale; those steps are not counted.

    Args:
        patience: Bad steps in a row that are forgiven.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.in_a_row = 0
        self._cases: tuple[str, ...] = ()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember whose step it is."""
        self._cases = tuple(batch.id)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Judge the gradient; forget it if it is bad, so that the optimizer leaves the weights alone."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if not gradients or trainer.precision == "16-mixed":
            return
        norm = nn.utils.get_total_norm(gradients)
        pl_module.log("train/gradient_norm", norm)
        if torch.isfinite(norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row > self.patience:
            terms = {name: float(value) for name, value in pl_module.loss.terms.items()}  # type: ignore[union-attr, operator]
            raise NonFiniteError(trainer.global_step, self.in_a_row, self._cases, terms)
        rank_zero_warn(f"step {trainer.global_step} was skipped: its gradient is not finite ({', '.join(self._cases)})")
        for parameter in pl_module.parameters():
            parameter.grad = None


class StepClock(Callback):
    """Logs the seconds that a step waits for data beside those that it computes, and says so when data are slow.

    Args:
        tolerated: Share of the time that data may take without a word.
    """

    def __init__(self, tolerated: float = 0.1) -> None:
        self.tolerated = tolerated
        self._finished: float | None = None
        self._started = 0.0
        self._waited = 0.0
        self._computed = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new count."""
        self._finished, self._waited, self._computed = None, 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is here."""
        self._started = time.perf_counter()
        if self._finished is not None:  # the first batch of an epoch also waits for the loader to start
            self._waited += self._started - self._finished

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        self._finished = time.perf_counter()
        self._computed += self._finished - self._started

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is nobody's waiting."""
        self._finished = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log both, and say where the time went if it went to the data."""
        steps = max(1, trainer.num_training_batches if trainer.num_training_batches != float("inf") else 1)
        pl_module.log("time/data_s", self._waited / steps, sync_dist=True)
        pl_module.log("time/compute_s", self._computed / steps, sync_dist=True)
        share = self._waited / max(1e-9, self._waited + self._computed)
        if share > self.tolerated and self._waited > _WORTH_A_WORD_S:
            rank_zero_info(
                f"{share:.0%} of epoch {trainer.current_epoch} was spent waiting for data: give it more processes with "
                "--data.workers, or keep the volumes in memory with --data.cache memory"
            )
