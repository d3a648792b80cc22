"""Optimizers by name, learning-rate schedules over the share of the budget that is spent, and that budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Timer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medseg.errors import UsageError, meant
from medseg.machine.dotted import named

Schedule = Callable[[float], float]

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("torch.optim.SGD", {"momentum": 0.99, "nesterov": True}),  # nnU-Net's
    "adam": ("torch.optim.Adam", {}),
    "adamw": ("torch.optim.AdamW", {}),
    "nadam": ("torch.optim.NAdam", {"decoupled_weight_decay": True}),
    "rmsprop": ("torch.optim.RMSprop", {}),
}
"""Name -> class and the options it has unless the config says otherwise."""

SCHEDULES: dict[str, Schedule] = {
    "poly": lambda spent: (1 - spent) ** 0.9,
    "cosine": lambda spent: 0.5 * (1 + math.cos(math.pi * spent)),
    "linear": lambda spent: 1 - spent,
    "constant": lambda spent: 1.0,
}
"""Name -> factor on the learning rate, a function of the share of the budget that is spent, in [0, 1]."""


def find_optimizer(name: str) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """The class of an optimizer and the options it has by default.

    Args:
        name: One of `OPTIMIZERS`, or the dotted path of an ``Optimizer`` class.

    Raises:
        UsageError: There is none of that name.
    """
    path, defaults = OPTIMIZERS.get(name, (name, {}))
    if "." in path:
        return named(path, Optimizer, option="model.optimizer"), defaults
    raise UsageError(
        f"there is no optimizer {name!r}{meant(name, OPTIMIZERS)}",
        f"Choose one of {', '.join(OPTIMIZERS)}, or the dotted path of a torch.optim.Optimizer class",
    )


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, options: Mapping[str, Any]
) -> Optimizer:
    """Build an optimizer by name; see `find_optimizer`.

    Biases and normalisation scales, the parameters with one axis, are not decayed.

    Raises:
        UsageError: The name is unknown or an option is refused.
    """
    factory, defaults = find_optimizer(name)
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    try:
        return factory(groups, **{"lr": lr, **defaults, **options})
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {name!r} cannot be built ({error})", "Correct optimizer_options") from None


def schedule_factor(name: str, *, warmup: float = 0.0) -> Schedule:
    """The schedule of that name after a linear warm-up over the first share ``warmup`` of the budget.

    Raises:
        UsageError: The name is unknown.

    Example:
        >>> factor = schedule_factor("linear", warmup=0.1)
        >>> [round(factor(spent), 3) for spent in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if name not in SCHEDULES:
        problem = f"there is no schedule {name!r}{meant(name, SCHEDULES)}"
        raise UsageError(problem, f"Choose one of {', '.join(SCHEDULES)}")
    shape = SCHEDULES[name]

    def factor(spent: float) -> float:
        if spent < warmup:
            return max(spent / warmup, 0.01)  # never quite zero: the first step must move
        return shape(min(1.0, (spent - warmup) / (1 - warmup)))

    return factor


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group of an optimizer was built with, its parameters left out."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def take_up(scheduler: LambdaLR, asked: list[dict[str, Any]]) -> None:
    """Give an optimizer that was restored from a checkpoint the options and the rate that its run asks for now.

    A checkpoint brings its own: the rate at the end of its budget, which is not the one there in a longer budget, and
    the decay or momentum of the config it was written under. Where nothing has changed, nothing changes.

    Args:
        scheduler: Of the optimizer.
        asked: `options_of` the optimizer when it was built.
    """
    scheduler.base_lrs = [options["lr"] for options in asked]
    for group, options, factor in zip(scheduler.optimizer.param_groups, asked, scheduler.lr_lambdas, strict=True):
        rate = options["lr"] * factor(scheduler.last_epoch)
        group.update({**options, "initial_lr": options["lr"], "lr": rate})


def budget_spent(trainer: pl.Trainer) -> float:
    """The share of the training budget that is spent, in [0, 1]: of steps, epochs or time, whichever is furthest."""
    spent = [0.0]
    steps = trainer.estimated_stepping_batches
    if math.isfinite(steps):
        spent.append(trainer.global_step / max(1, steps))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    timer = next((callback for callback in callbacks if isinstance(callback, Timer)), None)
    duration: float | None = timer._duration if timer else None  # its public methods read the clock once each
    if timer and duration:
        spent.append(timer.time_elapsed() / duration)
    return min(1.0, max(spent))


def seconds_left(trainer: pl.Trainer, step_s: float) -> float:
    """The seconds that training may still take, steps of so many each: until its steps or its time are up."""
    left = [(trainer.estimated_stepping_batches - trainer.global_step) * step_s]
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    left += [c.time_remaining() or math.inf for c in callbacks if isinstance(c, Timer)]
    return max(0.0, min(left))
