"""The task: a network, a loss and an optimizer chosen by name, trained on patches, judged on whole volumes."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Integer
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, Timer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import medseg
from medseg.errors import CheckpointError, MedsegError
from medseg.losses import Criterion, build_loss
from medseg.metrics import PerOrganDice
from medseg.nets import NetSpec, build_net
from medseg.optimise import build_optimizer, find_optimizer, schedule_factor
from medseg.patches.datamodule import Batch
from medseg.patches.stitch import sliding_window
from medseg.plan.plan import Plan
from medseg.types import Image, Logits

IGNORED = -1
"""What the store writes where a voxel was not annotated."""


class SegmentationTask(pl.LightningModule):
    """Trains, validates and tests one segmentation network.

    Every argument is plain data, so that a checkpoint holds all of them and loads with ``weights_only=True``.

    Args:
        plan: The plan as plain data; on the command line it comes from the store.
        net: A name of `medseg.nets.list_nets` or the dotted path of an ``nn.Module``.
        net_options: Knobs of that network.
        loss: A weighted sum of names of `medseg.losses.list_losses`, such as ``dice + 0.5 * focal(gamma=2)``.
        optimizer: A name of `medseg.optimise.OPTIMIZERS` or the dotted path of an ``Optimizer``.
        optimizer_options: Keyword arguments of that optimizer.
        lr: Learning rate at its peak.
        weight_decay: Decay of the convolution weights.
        schedule: ``poly``, ``cosine``, ``linear`` or ``constant``, over the budget: steps, epochs or time, whichever
            is spent first.
        warmup: Share of the budget over which the learning rate rises from zero.
        ema: Decay per step of the averaged weights that are validated and kept; 0 trains without averaging.
        overlap: Share by which neighbouring windows overlap when a whole volume is predicted.
        channels_last: Lay out activations with the channels innermost, which matrix units prefer.

    Raises:
        UsageError: A name or a knob is unknown.
        ValueError: The plan or the loss expression is malformed.
    """

    def __init__(
        self,
        plan: dict[str, Any],
        net: str = "unet",
        net_options: dict[str, Any] | None = None,
        loss: str = "dice + cross_entropy",
        optimizer: str = "sgd",
        optimizer_options: dict[str, Any] | None = None,
        lr: float = 0.01,
        weight_decay: float = 3e-5,
        schedule: str = "poly",
        warmup: float = 0.0,
        ema: float = 0.0,
        overlap: float = 0.5,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # config.yaml of the run already has them
        self.plan = Plan.from_dict(plan)
        self.net = build_net(net, net_spec(self.plan), net_options)
        self.loss: Criterion = build_loss(loss, mode=self.plan.mode, ignore_index=IGNORED)
        self.schedule_factor = schedule_factor(schedule, warmup=warmup)
        find_optimizer(optimizer)  # a misspelt name is answered before anything is built on it
        organs = class_values(self.plan)
        self.val_dice = PerOrganDice(organs, ignore=IGNORED)
        self.test_dice = PerOrganDice(organs, ignore=IGNORED)
        self.membership: Tensor
        self.register_buffer("membership", torch.from_numpy(self.plan.membership).bool(), persistent=False)
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # absent from stubs

    def forward(self, image: Image) -> Logits:
        """Map normalised intensities ``(b, m, i, j, k)`` to logits ``(b, c, i, j, k)``."""
        if self.hparams["channels_last"]:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        logits: Tensor = self.net(image)
        return logits

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One optimization step on a batch of patches."""
        target = self.target_of(batch.labels)
        loss: Tensor = self.loss(self(batch.image), target, batch.spacing_mm, class_mask=batch.class_mask)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(batch.id, self.loss.terms, self.global_step)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.id))
        if len(self.loss.terms) > 1:
            self.log_dict({f"train/{name}": value for name, value in self.loss.terms.items()}, batch_size=len(batch.id))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count one whole validation case."""
        self._count(batch, self.val_dice)

    def test_step(self, batch: Batch, batch_index: int) -> Logits:
        """Count one whole test case and hand out its logits, on the store's grid, for whoever writes predictions."""
        return self._count(batch, self.test_dice)

    def on_train_epoch_start(self) -> None:
        """Tell the loss the epoch, for weights that change over time."""
        self.loss.set_epoch(self.current_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Stop as for a spent time budget when the steps are spent: with a last validation and its checkpoint."""
        if 0 < self.trainer.max_steps <= self.trainer.global_step:
            self.trainer.should_stop = True

    def on_validation_epoch_end(self) -> None:
        """Log the mean over cases, per organ by name."""
        self._log_dice("val", self.val_dice)

    def on_test_epoch_end(self) -> None:
        """Log the mean over cases, per organ by name."""
        self._log_dice("test", self.test_dice)

    def predict_volume(self, image: Image) -> Logits:
        """Logits ``(1, c, i, j, k)`` of one whole prepared volume, by overlapping windows of the plan's patch size."""
        return sliding_window(image, self.plan.patch_size, self, overlap=self.hparams["overlap"])

    def target_of(self, labels: Integer[Tensor, "b *space"]) -> Integer[Tensor, "b *target"]:
        """Class indices as they are, or for overlapping regions a 0/1 map ``(b, c, i, j, k)``; ignored ones stay −1."""
        if self.plan.exclusive:
            return labels
        masks = self.membership[:, labels.clamp(min=0).long()].transpose(0, 1).to(torch.int8)
        return masks.masked_fill((labels == IGNORED).unsqueeze(1), IGNORED)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer by name, its learning rate a function of the budget that is spent."""
        options = self.hparams
        optimizer = build_optimizer(
            options["optimizer"],
            self.parameters(),
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            options=options["optimizer_options"] or {},
        )
        scheduler = LambdaLR(optimizer, lambda _: self.schedule_factor(budget_spent(self.trainer)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Averaged weights, where asked for."""
        decay = self.hparams["ema"]
        return [EMAWeightAveraging(decay=decay)] if decay and self.trainer.training else []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint, so that a foreign one is told apart, and note how it scored."""
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name[:8] == "val/dice"}
        torch_version = torch.__version__.split("+")[0]
        checkpoint["medseg"] = {"version": medseg.__version__, "torch": torch_version, "scores": scores}

    def _count(self, batch: Batch, metric: PerOrganDice) -> Logits:
        logits = self.predict_volume(batch.image)
        metric.update(decide(logits, self.plan)[0], batch.labels[0].long(), batch.id[0])
        return logits

    def _log_dice(self, stage: str, metric: PerOrganDice) -> None:
        scores = metric.compute()
        metric.reset()
        mean = scores.pop("mean")
        self.log(f"{stage}/dice", mean, prog_bar=True, sync_dist=True)
        self.log_dict(
            {f"{stage}/dice/{organ}": score for organ, score in scores.items()}, prog_bar=True, sync_dist=True
        )


class NonFiniteLossError(MedsegError):
    """The loss became NaN or infinite; names the step, the cases and the terms."""

    def __init__(self, cases: tuple[str, ...], terms: Mapping[str, Tensor], step: int) -> None:
        values = ", ".join(f"{name} = {float(value):g}" for name, value in terms.items())
        super().__init__(
            f"the loss is not finite at step {step} on the cases {', '.join(cases)} ({values}). "
            "Lower the learning rate, or train with --trainer.precision 32; "
            "the last good checkpoint is checkpoints/last.ckpt of the run."
        )


def net_spec(plan: Plan) -> NetSpec:
    """The plan's numbers that shape a network."""
    return NetSpec(
        in_channels=len(plan.modalities),
        out_channels=plan.num_classes,
        patch_size=plan.patch_size,
        strides=plan.strides,
        kernels=plan.kernels,
        features=plan.features,
    )


def class_values(plan: Plan) -> dict[str, int | tuple[int, ...]]:
    """Organ name -> its value, or values of a region, in the vocabulary of the store."""
    if plan.exclusive:
        return {organ: index for index, organ in enumerate(plan.organs, start=1)}
    return {
        organ: tuple(plan.atom_of_value[value] for value in values)
        for organ, values in zip(plan.organs, plan.values, strict=True)
    }


def decide(logits: Logits, plan: Plan) -> Integer[Tensor, "b *space"] | Bool[Tensor, "b c *space"]:
    """The class of each voxel, or for overlapping regions a mask per organ."""
    return logits.argmax(dim=1) if plan.exclusive else logits > 0


def budget_spent(trainer: pl.Trainer) -> float:
    """The share of the training budget that is spent, in [0, 1]: of steps, epochs or time, whichever is furthest."""
    spent = [0.0]
    steps = trainer.estimated_stepping_batches
    if math.isfinite(steps):
        spent.append(trainer.global_step / max(1, steps))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    timer = next((callback for callback in callbacks if isinstance(callback, Timer)), None)
    remaining = timer.time_remaining() if timer else None
    if timer and remaining is not None:
        spent.append(timer.time_elapsed() / max(1e-9, timer.time_elapsed() + remaining))
    return min(1.0, max(spent))


def load_task(path: Path) -> SegmentationTask:
    """The task of a checkpoint, weights loaded, in evaluation mode; nothing but the checkpoint is needed.

    Raises:
        CheckpointError: The file is missing, unreadable, holds code, or was not written by medseg.
    """
    checkpoint = read_checkpoint(path)
    try:
        task = SegmentationTask(**checkpoint["hyper_parameters"])
        task.load_state_dict(checkpoint["state_dict"])
    except (TypeError, ValueError, RuntimeError, KeyError, MedsegError) as error:
        raise CheckpointError(
            path,
            f"does not fit this version of medseg ({error})",
            f"Train again, or use the version that wrote it ({checkpoint['medseg']['version']})",
        ) from None
    return task.eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain data and tensors, read so that no code in it can run.

    Raises:
        CheckpointError: The file is missing, unreadable, holds code, or was not written by medseg.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on a foreign pickle's protocol; we say more below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(path, "does not exist", "Check the path; a run keeps checkpoints/best.ckpt") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            path, "is not a checkpoint, or holds code that could run on loading", "Use one that medseg wrote"
        ) from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(path, f"is not a readable checkpoint ({reason})", "Copy it again") from None
    if not isinstance(checkpoint, dict) or "medseg" not in checkpoint:
        raise CheckpointError(path, "was not written by medseg", "Use a checkpoint of a medseg run")
    return checkpoint
