"""Optimizers by name, learning-rate schedules over the share of the budget that is spent, and that budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medseg.errors import UsageError, meant
from medseg.machine.dotted import named
from medseg.training.lightning import epochs_done, has_clock, leave_scales_alone, time_spent

Schedule = Callable[[float], float]

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("torch.optim.SGD", {"momentum": 0.99, "nesterov": True}),  # nnU-Net's
    "adam": ("torch.optim.Adam", {}),
    "adamw": ("torch.optim.AdamW", {}),
    "muon": ("medseg.training.muon.Muon", {}),  # for few steps
    "nadam": ("torch.optim.NAdam", {"decoupled_weight_decay": True}),
    "rmsprop": ("torch.optim.RMSprop", {}),
}
"""Name -> class and the options it has unless the config says otherwise."""

FUSED = ("sgd", "adam", "adamw")
"""Those that torch has a fused kernel for."""

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
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    options: Mapping[str, Any],
    fused: bool = False,
) -> Optimizer:
    """Build an optimizer by name; see `find_optimizer`. With ``fused`` in one kernel for all weights where it has one.

    Biases and normalisation scales, the parameters with one axis, are not decayed. What ``options`` say of ``lr`` and
    ``weight_decay`` counts for more than the arguments of those names.

    Raises:
        UsageError: The name is unknown or an option is refused.
    """
    factory, defaults = find_optimizer(name)
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": options.get("weight_decay", weight_decay)},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    try:
        quick = {"fused": True} if fused and name in FUSED else {}
        return leave_scales_alone(factory(groups, **{"lr": lr, **defaults, **quick, **options}))
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
    return partial(_factor, name, warmup)  # which can be pickled, as a task then can


def _factor(name: str, warmup: float, spent: float) -> float:
    if spent < warmup:
        return max(spent / warmup, 0.01)  # never quite zero: the first step must move
    return SCHEDULES[name](min(1.0, (spent - warmup) / (1 - warmup)))


class FollowBudget(LambdaLR):
    """The learning rate as a function of the budget that is spent, the same in every process to the last bit.

    Args:
        optimizer: Whose rate it is.
        factor: Of the rate at its peak, by the share that is spent.
        trainer: Whose budget it is.
    """

    def __init__(self, optimizer: Optimizer, factor: Schedule, trainer: pl.Trainer) -> None:
        self._asked = [
            {name: value for name, value in group.items() if name != "params"} for group in _groups(optimizer)
        ]
        self._asked_before = self._asked
        super().__init__(optimizer, lambda _: factor(agreed_budget(trainer)))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: also what its run has asked for."""
        return {name: value for name, value in super().state_dict().items() if name != "_asked_before"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; know what was asked for then, of which a checkpoint of before tells nothing."""
        asked = self._asked
        super().load_state_dict(state_dict)
        self._asked, self._asked_before = asked, state_dict.get("_asked", [{} for _ in asked])

    def take_up(self, lr: float) -> None:
        """Give an optimizer that was restored from a checkpoint the options and the rate that its run asks for now.

        A checkpoint brings its own: the rate at the end of its budget, which is not the one there in a longer budget,
        and the decay or momentum of the config it was written under. What the config has not changed since stays as it
        was restored: an optimizer may have a running number of its own among its options.

        Args:
            lr: The rate at its peak.
        """
        self.base_lrs = [lr for _ in self._asked]
        asked = zip(self._asked, self._asked_before, strict=True)
        for group, (now, before), factor in zip(_groups(self.optimizer), asked, self.lr_lambdas, strict=True):
            changed = {name: value for name, value in now.items() if name not in before or before[name] != value}
            group.update({**changed, "initial_lr": lr, "lr": lr * factor(self.last_epoch)})


def budget_spent(trainer: pl.Trainer) -> float:
    """The share of the training budget that is spent, in [0, 1]: of steps, epochs or time, whichever is furthest.

    A budget of epochs is spent in epochs: how many steps an epoch has, and of how many batches a step consists, may
    change on the way. Time counts no faster than ``min_steps`` and ``min_epochs``, for which a training goes on longer.
    """
    time = [time_spent(trainer)]
    if trainer.min_steps:
        time.append(trainer.global_step / trainer.min_steps)
    if trainer.min_epochs:
        time.append(epochs_done(trainer) / trainer.min_epochs)
    spent = [min(time)]
    if trainer.max_steps > 0:
        spent.append(trainer.global_step / trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        spent.append(epochs_done(trainer) / trainer.max_epochs)
    return min(1.0, max(spent))


def agreed_budget(trainer: pl.Trainer) -> float:
    """`budget_spent` by one clock, that of the first process; all processes must ask at the same moment."""
    spent = budget_spent(trainer)
    if trainer.world_size == 1 or not has_clock(trainer):
        return spent
    told = spent if trainer.is_global_zero else 0.0
    of_the_first = torch.tensor(told, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(of_the_first, reduce_op="sum"))


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return optimizer.param_groups
