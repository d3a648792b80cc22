"""The task: a network, a loss and an optimizer chosen by name, trained on patches, judged on whole volumes."""

from __future__ import annotations

import math
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Integer
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import medseg
from medseg.checkpoints.reading import matching_weights, read_checkpoint, require_same_training
from medseg.errors import CheckpointError, MedsegError, UsageError, listed
from medseg.losses import NonFiniteLogitsError, build_loss
from medseg.machine.hardware import peak_memory_bytes
from medseg.metrics import PerOrganDice
from medseg.nets import NetSpec, build_net
from medseg.patches.datamodule import Batch
from medseg.patches.interpolate import IGNORED
from medseg.patches.stitch import stitched_slabs, sweep_axis
from medseg.plan.plan import Plan
from medseg.training.callbacks import of_task
from medseg.training.optimise import (
    budget_spent,
    build_optimizer,
    find_optimizer,
    options_of,
    schedule_factor,
    seconds_left,
    take_up,
)
from medseg.training.pace import Auto, Pace, Trial, follow, lay_out, missing_compiler, set_pace
from medseg.training.sharding import gather, part, require_shardable, shard
from medseg.training.study import study_criteria
from medseg.types import Image, Labels, Levels, Logits


class SegmentationTask(pl.LightningModule):
    """Trains, validates and tests one segmentation network.

    Every argument is plain data, so that a checkpoint holds all of them and loads with ``weights_only=True``.

    Args:
        plan: The plan as plain data; on the command line it comes from the store.
        net: A name of `medseg.nets.list_nets` or the dotted path of an ``nn.Module``.
        net_options: Knobs of that network.
        loss: A weighted sum of names of `medseg.losses.list_losses`, such as ``dice + 0.5 * focal(gamma=2)``.
        optimizer: A name of `medseg.training.optimise.OPTIMIZERS` or the dotted path of an ``Optimizer``.
        optimizer_options: Keyword arguments of that optimizer.
        lr: Learning rate at its peak.
        weight_decay: Decay of the convolution weights.
        schedule: ``poly``, ``cosine``, ``linear`` or ``constant``, over the budget: steps, epochs or time, whichever
            is spent first.
        warmup: Share of the budget over which the learning rate rises from zero.
        ema: Decay per step of the averaged weights that are validated and kept; 0 trains without averaging.
        deep_supervision: Also judge the coarser outputs of the decoder, each level with half the weight of the finer.
        patience: Validations without a better ``val/dice`` after which training stops; None never stops early.
        init_from: A checkpoint whose network to start from; weights of another shape, such as those of the last layer
            for other labels, keep their initial values.
        freeze: Patterns of weights that stay as they are, such as ``net.*downsamples*``.
        bad_steps: Steps in a row with a gradient that is NaN or infinite which are skipped before training stops.
        overlap: Share by which neighbouring windows overlap when a whole volume is predicted.
        channels_last: Lay out activations with the channels innermost, which matrix units prefer; ``auto`` times both.
        compile: Compile the network for training; ``auto`` does where the time left repays it, and keeps it if faster.
        study: Losses whose value and gradient norms are recorded beside the training's own, ``[all]`` for every one;
            `medseg.training.study` says at what cost.
        study_every: Steps from one such record to the next.
        class_weights: Numbers behind words for class weights in the loss, such as ``balanced``; from the training cases
            if left out.

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
        deep_supervision: bool = False,
        patience: int | None = None,
        init_from: str | None = None,
        freeze: list[str] | None = None,
        bad_steps: int = 10,
        overlap: float = 0.5,
        channels_last: Auto = True,
        compile: Auto = False,  # noqa: A002  what everyone calls it
        study: list[str] | None = None,
        study_every: int = 1,
        class_weights: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # config.yaml of the run already has them
        self.plan = Plan.from_dict(plan)
        knobs = {**(net_options or {}), **({"deep_supervision": True} if deep_supervision else {})}
        self.net = build_net(net, net_spec(self.plan), knobs)
        self.loss = build_loss(loss, mode=self.plan.mode, ignore_index=IGNORED, counts=[1] * self.plan.num_classes)
        if class_weights:
            self.loss.set_class_weights(class_weights)
        self.schedule_factor = schedule_factor(schedule, warmup=warmup)
        find_optimizer(optimizer)  # a misspelt name is answered before anything is built on it
        study_criteria(study or (), mode=self.plan.mode, ignore_index=IGNORED)  # and so is a misspelt loss
        self.val_dice = PerOrganDice(class_values(self.plan), ignore=IGNORED)
        self.membership: Tensor
        self.register_buffer("membership", torch.from_numpy(self.plan.membership).bool(), persistent=False)
        self._scores: dict[str, float] = {}  # of a validation before a resumed run's first
        self.pace = Pace(channels_last=channels_last is not False, compiled=False)
        lay_out(self.net, channels_last=self.pace.channels_last)

    def forward(self, image: Image) -> Logits | Levels:
        """Map normalised intensities ``(b, m, i, j, k)`` to logits ``(b, c, i, j, k)``.

        With deep supervision and in training, to a tuple of logits, the finest first.
        """
        if self.pace.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        plain = self.pace.compiled and not self.training  # windows of volumes come in many shapes
        logits: Logits | Levels = self.net.forward(image) if plain else self.net(image)
        return logits

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One optimization step on a batch of patches."""
        loss = self._judge(self(batch.image), batch)
        terms = {"train/loss": loss.detach()}
        if len(self.loss.terms) > 1:
            terms |= {f"train/{name}": value for name, value in self.loss.terms.items()}
        self.log_dict(terms, prog_bar=True, batch_size=len(batch.id))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count one whole validation case; a process without one takes part with an empty batch."""
        if not batch.id:
            return
        decided = self.segment(batch.image)[0]
        self.val_dice.update(decided, batch.labels[0], batch.id[0], annotated=self._annotated(batch))

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Nothing: `medseg.inference.writer` predicts each case from its files, the very way `medseg predict` does."""

    def on_fit_start(self) -> None:
        """Say in a line what is trained."""
        weights = sum(parameter.numel() for parameter in self.net.parameters())
        patch = " x ".join(map(str, self.plan.patch_size))
        rank_zero_info(
            f"{self.hparams['net']} with {weights / 1e6:.1f} M weights learns {listed(self.plan.organs)} "
            f"from {self.plan.batch_size} patches of {patch} voxels a step by {self.hparams['loss']}"
        )
        self.pace = pace_together(self, self.pace)

    def on_train_start(self) -> None:
        """Tell the loss the epoch, which may go on in its middle, and the optimizer what the config says now."""
        self.loss.set_epoch(self.current_epoch)
        for config in self.trainer.lr_scheduler_configs:
            take_up(config.scheduler, self._asked)  # type: ignore[arg-type]  # of all schedulers, `LambdaLR` is ours

    def on_train_epoch_start(self) -> None:
        """Tell the loss the epoch, for weights that change over time."""
        self.loss.set_epoch(self.current_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Stop as for a spent time budget when the steps are spent: with a last validation and its checkpoint."""
        if 0 < self.trainer.max_steps <= self.trainer.global_step:
            self.trainer.should_stop = True

    def on_validation_start(self) -> None:
        """Have the whole network in each process, which has cases of its own."""
        gather(self.net)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over cases, per organ by name."""
        part(self.net)
        scores = self.val_dice.compute()
        self.val_dice.reset()
        mean = scores.pop("mean")
        self.log("val/dice", mean, prog_bar=True, sync_dist=True)
        self.log_dict({f"val/dice/{organ}": score for organ, score in scores.items()}, prog_bar=True, sync_dist=True)

    def segment(self, image: Image) -> Integer[Tensor, "1 i j k"] | Bool[Tensor, "1 c i j k"]:
        """Decide every voxel of one whole prepared volume ``(1, m, i, j, k)``, by overlapping windows.

        Logits are held for one window's depth of the volume only, so memory does not grow with classes times voxels.
        """
        shape, patch = tuple(image.shape[2:]), self.plan.patch_size
        axis = sweep_axis(shape, patch)
        whole = torch.empty(0)
        for where, slab in stitched_slabs(image, patch, self, overlap=self.hparams["overlap"], axis=axis):
            decided = decide(slab[None], self.plan)
            if not whole.numel():
                kind = torch.int16 if self.plan.exclusive else torch.bool
                whole = decided.new_empty((*decided.shape[:-3], *shape), dtype=kind)
            whole.narrow(axis - 3, where.start, where.stop - where.start).copy_(decided)
        return whole

    def target_of(self, labels: Integer[Tensor, "b *space"]) -> Integer[Tensor, "b *target"]:
        """Class indices as they are, or for overlapping regions a 0/1 map ``(b, c, i, j, k)``; ignored ones stay −1."""
        if self.plan.exclusive:
            return labels
        masks = self.membership[:, labels.clamp(min=0).long()].transpose(0, 1).to(torch.int8)
        return masks.masked_fill((labels == IGNORED).unsqueeze(1), IGNORED)

    def setup(self, stage: str) -> None:
        """Before training: take over weights, freeze some."""
        if stage != "fit":
            return
        if self.hparams["init_from"] is not None:
            fitting, fresh = matching_weights(Path(self.hparams["init_from"]), self.state_dict())
            self.load_state_dict(fitting, strict=False)
            rank_zero_info(f"{len(fitting)} weights come from {self.hparams['init_from']}, {len(fresh)} start afresh")
        for pattern in self.hparams["freeze"] or ():
            named = [parameter for name, parameter in self.named_parameters() if fnmatch(name, pattern)]
            if not named:
                raise UsageError(f"model.freeze: no weight is called {pattern!r}", "Use a pattern such as net.*")
            for parameter in named:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UsageError("model.freeze leaves no weight to train", "Freeze fewer, or score it with medseg test")

    def configure_model(self) -> None:
        """Under the strategy ``fsdp``, for training: part the weights over the processes."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or self.trainer.state.fn != "fit":
            return
        averages, compiles = bool(self.hparams["ema"]), self.hparams["compile"] is True
        require_shardable(averages=averages, learns=bool([*self.loss.parameters()]), compiles=compiles)
        shard(self.net, self.trainer.strategy.root_device.type)

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
        self._asked = options_of(optimizer)
        scheduler = LambdaLR(optimizer, lambda _: self.schedule_factor(budget_spent(self.trainer)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """While training: the watches, averaged weights and early stopping, where asked for."""
        return of_task(self.hparams) if self.trainer.training else []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on only with the labels, channels and optimizer that the checkpoint was trained on.

        Raises:
            CheckpointError: It was trained on others, or is not one of ours.
        """
        require_same_training(checkpoint, self.plan.to_dict(), self.hparams["optimizer"])
        self._scores = dict(checkpoint["medseg"].get("scores", {}))
        if "pace" in checkpoint["medseg"]:  # what was measured then holds on: it decides how sums are rounded
            self.pace = Pace(**checkpoint["medseg"]["pace"], reasons="as before")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint, so that a foreign one is told apart, and note how it scored."""
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name[:8] == "val/dice"}
        torch_version = torch.__version__.split("+")[0]
        signed = {"version": medseg.__version__, "torch": torch_version, "scores": scores or self._scores}
        peak_gib = peak_memory_bytes(self.device) / 2**30
        checkpoint["medseg"] = {**signed, "pace": self.pace.to_dict(), "peak_gib": peak_gib}

    def _judge(self, outputs: Logits | Levels, batch: Batch) -> Tensor:
        """The loss, over all levels of deep supervision; the terms that are logged are those of the finest."""
        levels = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [0.5**depth for depth in range(len(levels))]
        total = torch.zeros((), device=batch.image.device)
        for logits, weight in reversed(list(zip(levels, weights, strict=True))):  # finest last: its terms remain
            labels = nearest_labels(batch.labels, logits.shape[2:])
            fine, coarse = torch.tensor([batch.labels.shape[1:], logits.shape[2:]], device=total.device)
            spacing_mm, mask = batch.spacing_mm * (fine / coarse), batch.class_mask
            try:
                value = self.loss(logits, self.target_of(labels), spacing_mm, class_mask=mask)
            except NonFiniteLogitsError:  # a gradient that is not finite either lets every process skip the step
                value = logits.sum() * math.nan
            total = total + weight / sum(weights) * value
        return total

    def _annotated(self, batch: Batch) -> tuple[str, ...] | None:
        """The organs that were annotated in the one case of a batch, or None for all."""
        if batch.class_mask is None:
            return None
        covered = batch.class_mask[0, int(self.plan.exclusive) :].tolist()
        return tuple(organ for organ, known in zip(self.plan.organs, covered, strict=True) if known)


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


def nearest_labels(labels: Labels, shape: torch.Size) -> Integer[Tensor, "b *coarse"]:
    """Labels at a coarser grid: of each of its voxels, the one in the middle of the finer voxels that it covers."""
    for axis, (fine, coarse) in enumerate(zip(labels.shape[1:], shape, strict=True), start=1):
        if fine != coarse:
            centres = (torch.arange(coarse, device=labels.device) + 0.5) * (fine / coarse)
            labels = labels.index_select(axis, centres.long())
    return labels


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


def pace_together(task: SegmentationTask, kept: Pace) -> Pace:
    """Set how fast the network of a task runs, as the first process measures it; see `medseg.training.pace`.

    What ``auto`` stands for in a resumed run is what it was before, ``kept``.
    """
    trainer, plan, options = task.trainer, task.plan, task.hparams
    asked: dict[str, Auto] = {"compiling": options["compile"], "channels_last": options["channels_last"]}
    if isinstance(trainer.strategy, ModelParallelStrategy):  # a step there takes all processes
        if "auto" in asked.values():
            rank_zero_info("not compiled, and with channels last: under the strategy fsdp neither is timed")
        return Pace(kept.channels_last, compiled=False)
    if kept.reasons:
        possible = not missing_compiler(task.device.type)
        before = {"compiling": kept.compiled and possible, "channels_last": kept.channels_last}
        asked = {name: before[name] if value == "auto" else value for name, value in asked.items()}
    pace: Pace | None = None
    if trainer.global_rank == 0:
        shape = (plan.batch_size, len(plan.modalities), *plan.patch_size)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(task.device)
        context = trainer.precision_plugin.forward_context
        pace = set_pace(Trial(task.net, image, context, lambda step: seconds_left(trainer, step)), **asked)
    agreed = trainer.strategy.broadcast(pace) or kept  # never the latter: the first process has one
    if trainer.global_rank != 0:
        follow(task.net, agreed)
    if agreed.reasons:
        rank_zero_info(agreed.reasons)
    return agreed


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
