"""The loss of a step: over all levels of deep supervision, by a function of one's own, with classes weighed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Integer, Shaped
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.errors import UsageError
from medseg.losses import Criterion, NonFiniteLogitsError, build_loss
from medseg.losses.class_weights import class_weights, words_in
from medseg.patches.batch import Batch, Crops, target_of
from medseg.patches.datamodule import VolumesDataModule
from medseg.plan.plan import Plan
from medseg.space.labels import IGNORED
from medseg.types import Levels, Logits


def judge(loss: nn.Module, outputs: Logits | Levels, batch: Batch, membership: Tensor | None) -> Tensor:
    """The loss, each level with half the weight of the finer; the terms that it logs are those of the finest.

    Args:
        loss: A `medseg.losses.Criterion`, or what is called as one.
        outputs: Logits, or those of all levels, the finest first.
        batch: With the labels.
        membership: See `target_of`.
    """
    levels = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [0.5**depth for depth in range(len(levels))]
    total = torch.zeros((), device=batch.image.device)
    for logits, weight in reversed(list(zip(levels, weights, strict=True))):  # finest last: its terms remain
        target = target_at(batch, membership, logits.shape[1:])
        options: dict[str, Any] = {}
        if batch.weight is not None:
            options["voxel_weight"] = nearest_labels(batch.weight, logits.shape[2:])
        if batch.beforehand:
            options["beforehand"] = {
                wish: nearest_labels(found, logits.shape[2:]) for wish, found in batch.beforehand.items()
            }
        fine, coarse = batch.labels.shape[-3:], logits.shape[-3:]
        spacing_mm = batch.spacing_mm * torch.tensor([n / m for n, m in zip(fine, coarse, strict=True)])
        try:
            value = loss(logits, target, spacing_mm, class_mask=batch.class_mask, **options)
        except NonFiniteLogitsError:  # a gradient that is not finite either lets every process skip the step
            value = logits.sum() * math.nan
        total = total + weight / sum(weights) * value
    return total


def short_window(trainer: Trainer, batch_index: int) -> float:
    """What the loss of a batch is multiplied by, where an epoch ends before so many batches as a step accumulates.

    Lightning divides by the whole number whatever remains; a step is to be a mean over the batches that it has.
    """
    accumulated, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    rest = batches % accumulated if math.isfinite(batches) else 0
    return accumulated / rest if rest and batch_index >= batches - rest else 1.0


def target_at(batch: Batch, membership: Tensor | None, shape: torch.Size) -> Tensor:
    """What a loss is to hold logits of a shape ``(c, i, j, k)`` against: labels, or the mean of what raters drew."""
    if batch.raters is None:
        return target_of(nearest_labels(batch.labels, shape[1:]), membership)
    return mean_of(nearest_labels(batch.raters, shape[1:]), membership, classes=shape[0])


def mean_of(
    raters: Integer[Tensor, "b r *space"], membership: Tensor | None, *, classes: int
) -> Float[Tensor, "b c *space"]:
    """The share of raters who drew each class; -1 where none drew anything that counts.

    Args:
        raters: What each drew, as `target_of` takes labels; whoever ignored a voxel has no share in it.
        membership: As `target_of` takes it.
        classes: How many there are.

    Example:
        >>> mean_of(torch.tensor([[[0, 1, -1], [1, 1, -1]]]), None, classes=2).tolist()
        [[[0.5, 0.0, -1.0], [0.5, 1.0, -1.0]]]
    """
    table = torch.eye(classes, device=raters.device) if membership is None else membership.float()
    counts = (raters != IGNORED).sum(1, keepdim=True)
    shares = torch.zeros(len(raters), classes, *raters.shape[2:], device=raters.device)
    for one in raters.unbind(1):
        shares += table[:, one.clamp(min=0).long()].transpose(0, 1) * (one != IGNORED).unsqueeze(1)
    return torch.where(counts > 0, shares / counts.clamp(min=1), float(IGNORED))


def require_targets(datamodule: Any, loss: Any) -> None:
    """Refuse a loss for which the targets of the data have no meaning, before anything is computed.

    Raises:
        UsageError: The mean of raters is no target of it, or it is a function that is not told how voxels count.
    """
    soft, weighted = getattr(datamodule, "targets", (False, False))
    own = isinstance(loss, OwnLoss)
    if soft and (own or not loss.soft_allowed):
        problem = "the store holds the mean of several raters, and a term of the loss has no meaning for fractions"
        raise UsageError(
            "the loss is a plain function, which is given labels and no mean of raters" if own else problem,
            'Prepare with "raters": "majority", or use bce, cross_entropy, focal, dice(soft_target=True) or the like',
        )
    if weighted and own:
        problem = "the store holds weights of voxels, which a loss that is a plain function is not told"
        raise UsageError(problem, "Name a loss of medseg, or register yours with medseg.losses.table.loss")


def nearest_labels(labels: Shaped[Tensor, "b *fine"], shape: torch.Size) -> Shaped[Tensor, "b *coarse"]:
    """Labels at a coarser grid: of each of its voxels, the one in the middle of the finer voxels that it covers."""
    for axis, (fine, coarse) in enumerate(zip(labels.shape[-len(shape) :], shape, strict=True), start=-len(shape)):
        if fine != coarse:
            centres = (torch.arange(coarse, device=labels.device) + 0.5) * (fine / coarse)
            labels = labels.index_select(axis, centres.long())
    return labels


def tell_of_short_epochs(trainer: Trainer) -> None:
    """Say that no step is of as many batches as was asked for, where an epoch has fewer."""
    accumulated, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if accumulated > batches:
        rank_zero_info(
            f"an epoch has {batches} batches, so a step accumulates those and not trainer.accumulate_grad_batches "
            f"{accumulated}: for larger steps, raise data.steps_per_epoch"
        )


Own = Callable[[Tensor, Tensor], Tensor]
"""Logits (b, c, i, j, k) and labels (b, i, j, k) of int64, for overlapping regions maps (b, c, i, j, k) of float32,
both -1 where ignored -> a scalar."""


def name_of(given: Any) -> Any:
    """What stands for an object in a checkpoint, which holds plain data only: the dotted path of what it is.

    Example:
        >>> name_of("unet"), name_of(nn.Conv3d(1, 2, 1))
        ('unet', 'torch.nn.modules.conv.Conv3d')
    """
    if given is None or isinstance(given, str):
        return given
    kind = type(given) if isinstance(given, nn.Module) or not hasattr(given, "__qualname__") else given
    return f"{kind.__module__}.{kind.__qualname__}"


class OwnLoss(nn.Module):
    """A callable as the task takes its loss.

    Args:
        judge: See `Own`; a module's weights are trained with those of the network.
        mode: What its labels mean, as `medseg.losses.Criterion` has it; it is not told.
    """

    def __init__(self, judge: Own, mode: str = "multiclass") -> None:
        super().__init__()
        self.judge = judge
        self.mode, self.ignore_index, self.epoch = mode, IGNORED, 0
        self.terms: dict[str, Tensor] = {}

    def set_epoch(self, epoch: int) -> None:
        """Note it, for others: it has no schedule of its own."""
        self.epoch = epoch

    def forward(
        self, logits: Tensor, target: Tensor, spacing_mm: Any = None, *, class_mask: Tensor | None = None
    ) -> Tensor:
        """Ask it, in float32.

        Raises:
            UsageError: It does not take such arguments or answers with something else than a scalar, or organs of the
                batch are not annotated, which it is not told.
        """
        if class_mask is not None and not bool(class_mask.all()):
            raise UsageError(
                "not every case has all organs annotated, which a loss that is a plain function is not told",
                "Name a loss of medseg, or register yours with medseg.losses.table.loss",
            )
        target = target.long() if target.ndim < logits.ndim else target.float()  # as torch's own losses want them
        try:
            with torch.autocast(logits.device.type, enabled=False):
                value = self.judge(logits.float(), target)
        except NonFiniteLogitsError:
            raise
        except (AssertionError, IndexError, TypeError, ValueError) as error:
            told = f"the loss {name_of(self.judge)} does not take logits {tuple(logits.shape)}"
            told += f" with labels {tuple(target.shape)}, -1 where ignored ({str(error).rstrip('.')})"
            raise UsageError(told, "Wrap it in a function of the two; MONAI's want labels[:, None]") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the loss returned {found}", "Return a scalar tensor, such as a mean")
        return value.reshape(())


class WeighClasses(Callback):
    """Holds a loss against the data: refuses what it has no meaning for, and tells it the numbers behind its words.

    Numbers that were given count for more than all others. Of those that were counted, a run that goes on keeps what it
    began with, whatever cases have come since; any other training counts its own. They stand in the hyperparameters,
    and so in every checkpoint, beside those that were given; their words are under ``counted`` there.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the kind of targets, tell the loader what the loss asks for and the loss its numbers.

        Raises:
            UsageError: The loss cannot take such targets, or nobody can count the voxels.
        """
        if stage != "fit":
            return
        datamodule = getattr(trainer, "datamodule", None)
        require_targets(datamodule, pl_module.loss)
        if isinstance(pl_module.loss, Criterion) and isinstance(datamodule, VolumesDataModule):
            datamodule.wishes = pl_module.loss.wishes(datamodule.plan.num_classes)
        if trainer.ckpt_path is None:
            _weigh(pl_module, datamodule, {})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse crops, which nobody has made patches of.

        Raises:
            UsageError: The loader was given without its datamodule.
        """
        if isinstance(batch, Crops):
            problem = "the trainer was given a loader of crops, of which only their datamodule makes patches"
            raise UsageError(problem, "Give it the datamodule: trainer.fit(task, datamodule=data)")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell the loss the numbers that the run began with."""
        _weigh(pl_module, getattr(trainer, "datamodule", None), Checkpoint(Path("--ckpt_path"), checkpoint).counted)


def _weigh(task: LightningModule, datamodule: Any, before: Mapping[str, list[float]]) -> None:
    """Tell a loss the numbers behind its words: those that were given, else those of before, else those counted now."""
    options = task.hparams
    given = {w: n for w, n in (options["class_weights"] or {}).items() if w not in options.get("counted", ())}
    words = [word for word in words_in(options["loss"]) if word not in given]
    counted = {word: before[word] for word in words if word in before}
    counted |= _count(datamodule, [word for word in words if word not in before])
    options["counted"] = words
    if words:
        options["class_weights"] = given | counted
        task.loss.set_class_weights(given | counted)  # type: ignore[operator, union-attr]  # a Criterion


def _count(datamodule: Any, words: list[str]) -> dict[str, list[float]]:
    """The numbers of a datamodule's training cases behind some words, which are told."""
    if not words:
        return {}
    count = getattr(datamodule, "class_counts", None)
    if count is None:
        raise UsageError(
            f"the loss weighs classes by {words[0]}, but no datamodule counts the voxels of the training cases",
            "Give model.class_weights, as medseg.losses.class_weights tells them from your counts",
        )
    counts = count()
    weights = {word: class_weights(counts, word) for word in words}
    for word, numbers in weights.items():
        told = ", ".join(f"{number:.4g}" for number in numbers)
        rank_zero_info(f"class weights {word}, from {len(counts)} training cases: {told}")
    return weights


def build_task_loss(loss: str | Own, plan: Plan) -> Any:
    """The loss of a task: a `medseg.losses.Criterion`, or a function that is called as one.

    Raises:
        ValueError: The expression is malformed.
    """
    if not isinstance(loss, str):
        return OwnLoss(loss, plan.mode)
    return build_loss(loss, mode=plan.mode, ignore_index=IGNORED, counts=[1] * plan.num_classes)
