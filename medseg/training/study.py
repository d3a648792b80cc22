"""What every loss would have said while one of them trains: values and gradient norms, step by step, in one table.

The network is run once per step, as always; all losses share one `Comparison` of its logits. The norm of the gradient
over the weights needs a backward pass of the network per loss, through the graph that training is about to use: a
recorded step costs about as many times the usual as there are losses. ``every`` spreads that out.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medseg.errors import DataError
from medseg.losses import Criterion, build_loss
from medseg.losses.inputs import compare
from medseg.losses.table import rows
from medseg.machine.files import whole
from medseg.training.loss import OwnLoss

TABLE = "loss_study.csv"
"""Its name in the folder of a run."""


@dataclass(frozen=True)
class Reading:
    """One loss at one step.

    Attributes:
        step: Optimizer steps that were done before.
        loss: Its expression.
        value: On the batch of that step.
        logit_gradient_norm: Euclidean norm of its gradient with respect to the logits.
        gradient_norm: Euclidean norm of its gradient with respect to all weights that train.
    """

    step: int
    loss: str
    value: float
    logit_gradient_norm: float
    gradient_norm: float


class LossStudy(Callback):
    """Records the value and the gradient norms of many losses on the batches that a training sees.

    Works on any module whose attribute ``loss`` is a `Criterion`, or `medseg.training.loss.OwnLoss`; what that one is
    called with, the others are asked about too (under deep supervision the finest level). Training itself is not
    changed by a bit. Learnable numbers of a loss keep their initial values. In several processes each looks at its own
    batch and the first one writes.

    Args:
        losses: Expressions; ``"all"`` stands for every loss that has a meaning in the mode at hand.
        every: Steps from one record to the next.

    Raises:
        ValueError: ``every`` is not positive; or, when training starts, an expression cannot be read.
    """

    def __init__(self, losses: Sequence[str] = ("all",), every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"the study needs 1 step or more from record to record, got {every}")
        self.losses, self.every = tuple(losses), every
        self._criteria: dict[str, Criterion] = {}
        self._seen: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._ear: RemovableHandle | None = None
        self._due = False
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the losses and listen to what the training's own is called with; forget records that will be redone."""
        own = _criterion_of(pl_module)
        self._criteria = study_criteria(self.losses, mode=own.mode, ignore_index=own.ignore_index)
        for criterion in self._criteria.values():
            criterion.to(pl_module.device)
        self._ear = own.register_forward_hook(self._remember, with_kwargs=True)
        if trainer.is_global_zero:
            _begin(Path(trainer.default_root_dir) / TABLE, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decide whether this step is one to record; of accumulated batches, the first."""
        self._due = trainer.global_step % self.every == 0 and trainer.global_step != self._last

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ask every loss, while the graph of the forward pass is there."""
        seen, self._seen = self._seen, None
        if not self._due or seen is None:
            return
        self._last = trainer.global_step
        own = _criterion_of(pl_module)
        spared = {id(parameter) for parameter in own.parameters()}
        weights = [p for p in pl_module.parameters() if p.requires_grad and id(p) not in spared]
        for criterion in self._criteria.values():
            criterion.set_epoch(own.epoch)
        readings = measure(self._criteria, *seen[0], weights=weights, step=trainer.global_step, **seen[1])
        if trainer.is_global_zero:
            with (Path(trainer.default_root_dir) / TABLE).open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(astuple(reading) for reading in readings)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening."""
        if self._ear is not None:
            self._ear.remove()

    def _remember(self, criterion: nn.Module, given: tuple[Any, ...], named: dict[str, Any], value: Tensor) -> None:
        if self._due and torch.is_grad_enabled():
            self._seen = given, named


def study_criteria(losses: Sequence[str], *, mode: str, ignore_index: int | None) -> dict[str, Criterion]:
    """The losses of a study by expression.

    Raises:
        ValueError: An expression cannot be read, or has no meaning in the mode.

    Example:
        >>> list(study_criteria(["dice", "dice + focal"], mode="binary", ignore_index=None))
        ['dice', 'dice + focal']
    """
    every = [row.name for row in rows().values() if mode in row.modes]
    expressions = [name for loss in losses for name in (every if loss == "all" else [loss])]
    return {name: build_loss(name, mode=mode, ignore_index=ignore_index) for name in dict.fromkeys(expressions)}


def measure(
    criteria: Mapping[str, Criterion],
    logits: Float[Tensor, "b c *s"],
    target: Tensor,
    spacing_mm: Any = None,
    *,
    weights: Sequence[Tensor],
    step: int = 0,
    **options: Any,
) -> list[Reading]:
    """Ask every criterion about one forward pass; its graph remains for others to use.

    Args:
        criteria: By the name that the readings are to carry, all of one mode.
        logits: Attached to the graph of the network.
        target: As the criteria take it.
        spacing_mm: As the criteria take it.
        weights: The tensors whose gradient is taken.
        step: Noted in the readings.
        options: ``class_mask`` and the like, as the criteria take them.
    """
    if not criteria:
        return []
    first = next(iter(criteria.values()))
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        shared = compare(
            leaf, target, mode=first.mode, ignore_index=first.ignore_index, spacing_mm=spacing_mm, **options
        )
        asked = [(name, criterion.judge(shared)) for name, criterion in criteria.items()]
    readings = []
    for name, value in asked:
        (slope,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
        at_logits, at_weights = _norms(logits, slope, weights)
        readings.append(Reading(step, name, float(value.detach()), at_logits, at_weights))
    return readings


def read_study(path: Path) -> list[Reading]:
    """The records of a run.

    Args:
        path: A ``loss_study.csv``, or the folder of the run that holds one.

    Raises:
        DataError: The file is missing or is no such table.
    """
    path = path / TABLE if path.is_dir() else path
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_reading(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            path, f"is no record of a loss study ({error})", "Train with --model.study, and name the run's folder"
        ) from None


def _reading(row: Mapping[str, str]) -> Reading:
    numbers = [float(row[name]) for name in ("value", "logit_gradient_norm", "gradient_norm")]
    return Reading(int(row["step"]), row["loss"], *numbers)


def _norms(logits: Tensor, slope: Tensor | None, weights: Sequence[Tensor]) -> tuple[float, float]:
    """Norms of a gradient at the logits and of what it becomes at the weights.

    The backward pass is linear: it is run on the gradient divided by its norm, which no 16-bit type can lose.
    """
    length = 0.0 if slope is None else float(slope.float().norm())
    if slope is None or length == 0 or not torch.isfinite(torch.tensor(length)):
        return length, length
    unit = (slope.float() / length).to(logits.dtype)
    found = torch.autograd.grad(logits, list(weights), unit, retain_graph=True, allow_unused=True)
    gradients = [gradient.float() for gradient in found if gradient is not None]
    return length, length * float(nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _criterion_of(module: LightningModule) -> Criterion | OwnLoss:
    criterion = getattr(module, "loss", None)
    if not isinstance(criterion, Criterion | OwnLoss):
        raise TypeError(f"{type(module).__name__}.loss is no Criterion: build it with medseg.losses.build_loss")
    return criterion


def _begin(path: Path, step: int) -> None:
    """Write the head of the table; of a run that goes on, keep what came before the step that it goes on from."""
    kept = [reading for reading in read_study(path) if reading.step < step] if step and path.is_file() else []
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(field.name for field in fields(Reading))
        table.writerows(astuple(reading) for reading in kept)
