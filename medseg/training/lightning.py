"""Every name of Lightning and torch that they do not promise: each in one place, tried by a test on every version."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.strategies import ParallelStrategy, Strategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher as ScriptLauncher
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ScriptLauncher"]

_OBSERVER = "child-process-observer"  # Lightning's thread, which looks at the processes every five seconds
_RESTORER = "pytorch_lightning.trainer.connectors.checkpoint_connector"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The trainer of a module, where it has one: the public property raises an error where it has none."""
    return module._trainer


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """The callbacks of a trainer, in their order; the list itself."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    return callbacks


def rehearses(trainer: pl.Trainer) -> bool:
    """Whether ``fast_dev_run`` is on, which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning's connector


def epochs_behind(trainer: pl.Trainer) -> int:
    """Whole epochs that are behind."""
    done: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]  # of its subclass
    return done


def epochs_done(trainer: pl.Trainer) -> float:
    """Epochs that are behind, with the share of the one that is going on."""
    done = epochs_behind(trainer)
    if trainer.fit_loop.epoch_progress.current.ready <= done:
        return float(done)
    batches = trainer.num_training_batches
    now: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return (done * batches + now) / batches


def count_epochs_right(trainer: pl.Trainer) -> None:
    """Count the epoch that a resumed run begins with, where its checkpoint was written at the last step of one before.

    Lightning 2.6 counts that one as done and leaves out the beginning of the next.
    """
    loop = trainer.fit_loop
    if loop.restarted_mid_epoch and loop.epoch_progress.current.ready <= epochs_behind(trainer):
        loop.epoch_progress.increment_ready()
        loop.epoch_progress.increment_started()


def epoch_ends(trainer: pl.Trainer) -> bool:
    """Whether the batch at hand is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def goes_on_behind_an_epoch(trainer: pl.Trainer) -> bool:
    """Whether a resumed run begins with an epoch that has all of its steps and its validation behind it."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    done: int = progress.current.processed  # type: ignore[attr-defined]  # of its subclass
    return trainer.fit_loop.restarted_mid_epoch and progress.is_last_batch and progress.current.completed >= done


def may_stop(trainer: pl.Trainer) -> bool:
    """Whether a wish to stop is heard: neither ``min_steps`` nor ``min_epochs`` forbid it."""
    return trainer.fit_loop._can_stop_early


def between_steps(trainer: pl.Trainer) -> bool:
    """Whether the weights have just been updated, and the next thing is neither a validation nor the end."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    return not loop._should_accumulate() and fetcher is not None and not loop._should_check_val_fx(fetcher)


def while_restoring(error: BaseException) -> bool:
    """Whether something was raised while Lightning gave everyone what a checkpoint holds of theirs."""
    trace = error.__traceback__
    while trace is not None:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
        if module == _RESTORER and code.co_name.lstrip("_").startswith("restore"):
            return True
        trace = trace.tb_next
    return False


def forget_validation(loops: dict[str, Any]) -> None:
    """Let a validation that a checkpoint was written in begin anew in the run that goes on from its loops."""
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # as Lightning knows a broken one
    none = dict.fromkeys(begun, 0)
    loops["fit_loop"][_VALIDATION] = {"total": begun, "current": none, "is_last_batch": False}


def count_steps_right(trainer: pl.Trainer) -> None:
    """Put right the loggers' own count of steps, which Lightning 2.6 restores one too low from the end of a run."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def time_spent(trainer: pl.Trainer) -> float:
    """The share of ``max_time`` that is spent by the clock of this process; 0 without such a budget."""
    timer, duration = _timer(trainer), time_budget_s(trainer)
    return timer.time_elapsed() / duration if timer and duration else 0.0


def time_budget_s(trainer: pl.Trainer) -> float:
    """Seconds of ``max_time``; 0 without such a budget."""
    timer = _timer(trainer)
    return float(timer._duration or 0) if timer else 0.0  # its public methods read the clock once each


def _timer(trainer: pl.Trainer) -> Timer | None:
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, Timer)), None)


def ask_nobody_for_signals(trainer: pl.Trainer) -> None:
    """Spare each step Lightning's question to the first process whether its own handler, which is ours, saw SIGTERM."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def has_clock(trainer: pl.Trainer) -> bool:
    """Whether there is a budget of time."""
    return _timer(trainer) is not None


def follow_all(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    """Move each average by a share of its way to its weight, all by a few launches where they lie on a GPU."""
    if averages:
        torch._foreach_lerp_(averages, weights, share)


def leave_scales_alone(optimizer: Optimizer) -> Optimizer:
    """Have fp16's scaler unscale the gradients of a fused optimizer too, or Lightning would refuse to clip them."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # set by torch where it is fused
    return optimizer


def change_launcher(strategy: Strategy, make: Callable[[ScriptLauncher], ScriptLauncher]) -> None:
    """Give a strategy that starts processes by Lightning's launcher another one in its place."""
    if isinstance(strategy, ParallelStrategy) and type(strategy.launcher) is ScriptLauncher:
        strategy._launcher = make(strategy.launcher)


def on_death(action: Callable[[], object]) -> None:
    """Have something else done when a process has died: Lightning ends all of them, this one too, without a word."""
    for thread in threading.enumerate():
        if thread.name == _OBSERVER:
            thread._terminate_all = action  # type: ignore[attr-defined]
