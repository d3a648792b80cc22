"""What a user sees while a network trains: one line that moves, and one that stays after each validation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from medseg.machine.progress import Advance, progress
from medseg.training.optimise import budget_spent

_REFRESH_S = 0.5  # reading a loss makes a GPU wait for it


class _Shown(ProgressBar):
    def __init__(self, console: Console | None) -> None:
        super().__init__()
        self.console = console or Console(stderr=True)
        self._shown = True

    def enable(self) -> None:
        """Show."""
        self._shown = True

    def disable(self) -> None:
        """Show nothing, as in every process but the first."""
        self._shown = False


class CaseProgress(_Shown):
    """Which cases of a validation are done, as `medseg.machine.progress` shows them; a test has a way of its own.

    Args:
        console: Where to write; the standard error if left out.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._open = ExitStack()
        self._advance: Advance | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        if self._shown:
            cases = int(sum(trainer.num_val_batches))
            self._advance = self._open.enter_context(progress("validating", cases, self.console))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One more; a process without a case has an empty batch."""
        if self._advance and batch.id:
            self._advance(", ".join(batch.id))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away, so that the reason can be read."""
        self._open.close()


class FitProgress(_Shown):
    """Epoch, step, terms of the loss, mean Dice and its lowest organ, and the time left of whichever budget ends first.

    The Dice of every organ, or of the five lowest, is in the line after each validation. Where the output is no
    terminal, such as a log file, only those lines are written.

    Args:
        console: Where to write; the standard error if left out.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._bar: Progress | None = None
        self._row = TaskID(0)
        self._begun, self._spent_before, self._refreshed = 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time."""
        self._begun, self._spent_before = time.monotonic(), budget_spent(trainer)
        if self._shown and self.console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(16), console=self.console, transient=True)
            self._row = self._bar.add_task("training", total=1.0)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        now = time.monotonic()
        if self._bar is not None and now - self._refreshed > _REFRESH_S:
            self._refreshed = now
            spent = budget_spent(trainer)
            metrics = trainer.callback_metrics  # the most important first: a narrow terminal cuts the line off
            told = [where(trainer), self._left(spent), losses(metrics), dice(metrics, most=1)]
            self._bar.update(self._row, completed=spent, description="  ".join(filter(None, told)))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say which case of the validation it is at."""
        if self._bar is not None and not trainer.sanity_checking:
            cases = int(sum(trainer.num_val_batches))
            self._bar.update(self._row, description=f"{where(trainer)}  validation, case {batch_idx + 1} of {cases}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line behind."""
        if self._shown and not trainer.sanity_checking and trainer.state.fn == "fit":
            measured = trainer.callback_metrics
            told = [where(trainer), losses(measured), dice(measured), pace(measured), self._left(budget_spent(trainer))]
            self.console.print("  ".join(filter(None, told)), highlight=False, markup=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the moving line away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the moving line away, so that the reason can be read."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, spent: float) -> str:
        now_spent = spent - self._spent_before
        if now_spent <= 0 or spent >= 1:
            return ""
        return f"{clock((1 - spent) / now_spent * (time.monotonic() - self._begun))} left"


def foreign_bar(trainer: Trainer) -> bool:
    """Whether a progress bar is shown that is not ours: Lightning then reads what is logged for it in every step."""
    return trainer.progress_bar_callback is not None and not isinstance(trainer.progress_bar_callback, FitProgress)


def where(trainer: Trainer) -> str:
    """Epoch and step, out of how many where that is known."""
    epochs = f"/{trainer.max_epochs}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
    steps = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{epochs}  step {trainer.global_step}{steps}"


def losses(metrics: Mapping[str, Any]) -> str:
    """The loss, and in brackets its terms where it has several.

    Example:
        >>> losses({"train/loss": 0.75, "train/dice": 0.5, "train/cross_entropy": 0.25})
        'loss 0.750 (dice 0.500, cross_entropy 0.250)'
    """
    of_training = {name[6:]: float(value) for name, value in metrics.items() if name.startswith("train/")}
    total = of_training.pop("loss", None)
    of_training.pop("gradient_norm", None)
    terms = ", ".join(f"{name} {value:.3f}" for name, value in of_training.items())
    return "" if total is None else f"loss {total:.3f}" + (f" ({terms})" if terms else "")


def dice(metrics: Mapping[str, Any], *, most: int = 5) -> str:
    """Mean Dice and that of every organ; of more than ``most`` the lowest and how many there are.

    Example:
        >>> dice({"val/dice": 0.7, "val/dice/liver": 0.9, "val/dice/spleen": 0.5}, most=1)
        'Dice 0.700 (lowest of 2: spleen 0.500)'
    """
    organs = {name[9:]: float(value) for name, value in metrics.items() if name.startswith("val/dice/")}
    if "val/dice" not in metrics:
        return ""
    many = f"lowest of {len(organs)}: " if len(organs) > most else ""
    shown = sorted(organs, key=lambda name: organs[name])[:most] if many else organs
    told = ", ".join(f"{name} {organs[name]:.3f}" for name in shown)
    return f"Dice {float(metrics['val/dice']):.3f} ({many}{told})"


def pace(metrics: Mapping[str, Any]) -> str:
    """Seconds that a step computes and those that it waits for data, in the epoch before."""
    if "time/compute_s" not in metrics:
        return ""
    return f"a step takes {metrics['time/compute_s']:.3g} s and waits {metrics['time/data_s']:.3g} s for data"


def clock(seconds: float) -> str:
    """A duration as a person says it.

    Example:
        >>> clock(59.0), clock(3725.0), clock(200000.0)
        ('0:59', '1:02:05', '2 days 7:33:20')
    """
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    short = f"{hours}:{rest // 60:02}:{rest % 60:02}" if days or hours else f"{rest // 60}:{rest % 60:02}"
    return f"{days} day{'s' if days > 1 else ''} {short}" if days else short
