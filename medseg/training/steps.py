"""What every step rests on: draws that a resumed run repeats, and gradients that do not spoil the weights."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from medseg.errors import MedsegError


class NonFiniteError(MedsegError):
    """Too many steps in a row had a gradient that is NaN or infinite; names step, cases, terms and last checkpoint."""

    def __init__(
        self, step: int, skipped: int, cases: tuple[str, ...], terms: dict[str, float], *, kept: str = ""
    ) -> None:
        values = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        good = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written before these steps"
        super().__init__(
            f"the gradient was not finite in {skipped} steps in a row, last at step {step} on the cases "
            f"{', '.join(cases)} ({values}). Lower model.lr, set trainer.gradient_clip_val, or train with "
            f"trainer.precision 32; {good}."
        )


class SkipBadSteps(Callback):
    """Leaves out optimizer steps whose gradient is NaN or infinite, and stops after too many in a row.

    The gradients are judged where every process holds the same ones, so all of them skip together. In fp16 the
    gradient scaler finds overflows by itself, leaves the step out and halves its scale; only those that are left when
    the scale is down at 1 are counted.

    Args:
        patience: Bad steps in a row that are forgiven.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.in_a_row = 0
        self._cases: tuple[str, ...] = ()
        self._first = 0  # of the steps in a row

    def state_dict(self) -> dict[str, Any]:
        """How many steps in a row were bad."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.in_a_row = int(state_dict["in_a_row"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember whose step it is."""
        self._cases = tuple(batch.id)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Judge the gradient; forget it if it is bad, so that the optimizer leaves the weights alone."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if not gradients or (scaler is not None and scaler.get_scale() > 1):
            return
        norm = nn.utils.get_total_norm(gradients)
        pl_module.log("train/gradient_norm", norm)
        if torch.isfinite(norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self._first = trainer.global_step if self.in_a_row == 1 else self._first
        if self.in_a_row > self.patience:
            terms = {name: float(value) for name, value in pl_module.loss.terms.items()}  # type: ignore[union-attr, operator]
            kept = next((path for c in trainer.checkpoint_callbacks if (path := _kept_before(c, self._first))), "")
            raise NonFiniteError(trainer.global_step, self.in_a_row, self._cases, terms, kept=kept)
        rank_zero_warn(f"step {trainer.global_step} was skipped: its gradient is not finite ({', '.join(self._cases)})")
        for parameter in pl_module.parameters():
            parameter.grad = None


def _kept_before(keeper: Callback, step: int) -> str:
    """The file in which a callback of ours kept the weights before a step; empty where it is not known to have."""
    kept: str = getattr(keeper, "kept_before", lambda step: "")(step)
    return kept


class SeedSteps(Callback):
    """Seeds every generator anew before each step, so that no generator's state needs to be carried along.

    A saved state would be that of one process and one device; a step's seed holds for any number of them. The run's
    own seed is in the checkpoint, for runs that drew theirs by chance.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The seed of the run."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed that the run began with; say so where this process was started with another."""
        self.seed = state_dict["seed"]
        if self.seed != (now := torch.initial_seed()):
            rank_zero_info(f"the steps draw by the seed that the run began with, {self.seed}, not by {now}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the seed that the process was started with, unless a checkpoint has told another."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch on every device, NumPy and Python."""
        drawn = np.random.SeedSequence((self.seed or 0, trainer.current_epoch, batch_idx, trainer.global_rank))
        seed = int(drawn.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
