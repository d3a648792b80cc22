"""The task: a network, a loss and an optimizer chosen by name, trained on patches, judged on whole volumes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Integer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

import medseg
from medseg.checkpoints.checkpoint import WEIGHTS, checked, sign, signature
from medseg.checkpoints.reading import read_checkpoint
from medseg.errors import CheckpointError, MedsegError, UsageError, listed
from medseg.machine.dotted import Trust
from medseg.machine.hardware import peak_memory_bytes
from medseg.machine.typed import to_plain
from medseg.metrics import PerOrganDice
from medseg.nets import NetSpec, build_net, keep_short_ones_whole
from medseg.patches.datamodule import Batch
from medseg.plan.plan import Plan
from medseg.segmenter import Segmenter, class_values, lay_out, net_spec, require_same_kinds
from medseg.space.labels import IGNORED
from medseg.training.beginning import remember, take_over
from medseg.training.belonging import already_seen, data_of, known_by, require_trusted, trainable_data
from medseg.training.callbacks import of_task
from medseg.training.lightning import count_epochs_right, trainer_of
from medseg.training.loss import Own, build_task_loss, judge, name_of, short_window, tell_of_short_epochs
from medseg.training.muon import mark_outputs
from medseg.training.optimise import FollowBudget, build_optimizer, find_optimizer, schedule_factor
from medseg.training.pace import start_compiler
from medseg.training.progress import foreign_bar
from medseg.training.sharding import gather, part, require_shardable, shard
from medseg.training.start import arguments_of, frozen_norms
from medseg.training.study import study_criteria
from medseg.types import Image, Levels, Logits


class SegmentationTask(pl.LightningModule):
    """Trains, validates and tests one segmentation network.

    Every argument is plain data, so that a checkpoint holds all of them and loads with ``weights_only=True``; of a
    network or a loss that is given as an object it holds the dotted path, and wants the object again when it is loaded.

    Args:
        plan: The plan as plain data; on the command line it comes from the store.
        net: A name of `medseg.nets.list_nets`, the dotted path of an ``nn.Module``, or a module.
        net_options: Knobs of that network.
        loss: A weighted sum of names of `medseg.losses.list_losses`, such as ``dice + 0.5 * focal(gamma=2)``, or a
            function of logits and labels, see `medseg.training.loss.Own`.
        optimizer: A name of `medseg.training.optimise.OPTIMIZERS` or the dotted path of an ``Optimizer``.
        optimizer_options: Keyword arguments of that optimizer, which count for more than ``lr`` and ``weight_decay``.
        lr: Learning rate at its peak.
        weight_decay: Decay of the convolution weights.
        schedule: ``poly``, ``cosine``, ``linear`` or ``constant``, over the budget: steps, epochs or time, whichever
            is spent first.
        warmup: Share of the budget over which the learning rate rises from zero.
        ema: Decay per step of the averaged weights that are validated and kept, after t steps at most
            (1 + t) / (10 + t); 0 trains without averaging.
        deep_supervision: Also judge the coarser outputs of the decoder, each level with half the weight of the finer.
        validation_share: Of the time that validation may take: where all cases after every epoch would take more, they
            are validated after every n-th, see `medseg.training.share.ShareTime`; 1 for every epoch.
        patience: Validations without a better ``val/dice`` after which training stops; None never stops early.
        init_from: A checkpoint of medseg, nnU-Net or nnssl whose network to start from, once, at the first step of all;
            weights of another shape keep their initial values, and so does the last layer for other organs.
        freeze: Patterns of weights that stay as they are, such as ``net.*downsamples*``; running statistics among them.
        bad_steps: Steps in a row with a gradient that is NaN or infinite which are skipped before training stops.
        overlap: Share by which neighbouring windows overlap when a whole volume is predicted.
        channels_last: Lay out activations with the channels innermost, which matrix units prefer.
        compile: Compile the network for training, which takes a minute or so and gains a few per cent of a step.
        study: Losses whose value and gradient norms are recorded beside the training's own, ``[all]`` for every one;
            `medseg.training.study` says at what cost.
        study_every: Steps from one such record to the next.
        class_weights: Numbers behind words for class weights in the loss, such as ``balanced``; left out, the data's.

    Raises:
        UsageError: A name or a knob is unknown.
        ValueError: The plan or the loss expression is malformed.
    """

    def __init__(
        self,
        plan: dict[str, Any],
        net: str | nn.Module = "unet",
        net_options: dict[str, Any] | None = None,
        loss: str | Own = "dice + cross_entropy",
        optimizer: str = "sgd",
        optimizer_options: dict[str, Any] | None = None,
        lr: float = 0.01,
        weight_decay: float = 3e-5,
        schedule: str = "poly",
        warmup: float = 0.0,
        ema: float = 0.0,
        deep_supervision: bool = False,
        validation_share: float = 0.1,
        patience: int | None = None,
        init_from: str | Path | None = None,
        freeze: list[str] | None = None,
        bad_steps: int = 10,
        overlap: float = 0.5,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002  what everyone calls it
        study: list[str] | None = None,
        study_every: int = 1,
        class_weights: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        given_net, given_loss = net, loss
        net, loss = name_of(net), name_of(loss)
        self.save_hyperparameters(logger=False)  # config.yaml of the run already has them
        self.hparams.update(to_plain({**self.hparams, "net": net, "loss": loss}))  # a subclass may hand on objects
        self.plan = Plan.from_dict(plan)
        self.net = self.build_net(net_spec(self.plan)) if isinstance(given_net, str) else given_net
        self.loss = build_task_loss(given_loss, self.plan)
        if class_weights:
            self.loss.set_class_weights(self.hparams["class_weights"])
        self.schedule_factor = schedule_factor(schedule, warmup=warmup)
        find_optimizer(optimizer)  # a misspelt name is answered before anything is built on it
        study_criteria(study or (), mode=self.plan.mode, ignore_index=IGNORED)  # and so is a misspelt loss
        self.val_dice = PerOrganDice(class_values(self.plan), ignore=IGNORED)
        self.membership: Tensor
        self.register_buffer("membership", torch.from_numpy(self.plan.membership).bool(), persistent=False)
        self.last_scores: dict[str, float] = {}  # of a validation before a resumed run's first
        self.trained_on: set[str] = set()  # as a checkpoint tells it
        self._begun = False  # with other weights than those that the network is built with
        self._start: str | CheckpointError = ""  # what came of `init_from`
        self._frozen: list[nn.Module] = []  # whose running statistics stay
        self._compiled = self._looked = False
        self.judges_tests = True
        lay_out(self.net, channels_last=channels_last is not False)  # an old checkpoint may say "auto"

    def build_net(self, spec: NetSpec) -> nn.Module:
        """A network as this task's, of its options, with its initial weights."""
        deep = {"deep_supervision": True} if self.hparams["deep_supervision"] else {}
        return build_net(self.hparams["net"], spec, {**(self.hparams["net_options"] or {}), **deep})

    def forward(self, image: Image) -> Logits | Levels:
        """Map normalised intensities ``(b, m, i, j, k)`` to logits ``(b, c, i, j, k)``.

        With deep supervision and in training, to a tuple of logits, the finest first.
        """
        if self.hparams["channels_last"] is not False:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        plain = self._compiled and not self.training  # windows of volumes come in many shapes
        logits: Logits | Levels = self.net.forward(image) if plain else self.net(image)
        return logits

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One optimization step on a batch of patches."""
        # the loader has looked at every label, and `SkipBadSteps` does at the gradient: a GPU is waited for once
        self.loss.looks, self._looked = self.device.type == "cpu" or not self._looked, True
        membership = None if self.plan.exclusive else self.membership
        loss = judge(self.loss, self(batch.image), batch, membership)
        terms = {"train/loss": loss.detach()}
        if len(self.loss.terms) > 1:
            terms |= {f"train/{name}": value for name, value in self.loss.terms.items()}
        self.log_dict(terms, prog_bar=foreign_bar(self.trainer), batch_size=len(batch.id))  # which reads them all
        return loss * short_window(self.trainer, batch_index)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count one whole validation case; a process without one takes part with an empty batch."""
        if batch.id:
            decided = self.segment(batch.image)[0]
            self.val_dice.update(decided, batch.labels[0], batch.id[0], annotated=self._annotated(batch))

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As in a validation, on the prepared grid; `medseg test` does without and scores on the grid of the images."""
        if self.judges_tests:
            self.validation_step(batch, batch_index)

    def predict_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        """The class of each voxel of a prepared volume ``(1, i, j, k)``; for overlapping regions a mask per organ."""
        return self.segment(batch.image) if batch.id else None

    def on_fit_start(self) -> None:
        """Say in a line what is trained, and from what; compile it where that is asked for."""
        if self._begin():
            rank_zero_info(self._begin())
        weights = sum(parameter.numel() for parameter in self.net.parameters())
        patch = " x ".join(map(str, self.plan.patch_size))
        rank_zero_info(
            f"{self.hparams['net']} with {weights / 1e6:.1f} M weights learns {listed(self.plan.organs)} "
            f"from {self.plan.batch_size} patches of {patch} voxels a step by {self.hparams['loss']}"
        )
        if self.hparams["compile"] is True:
            start_compiler(self.net, self.device.type)
            self._compiled = True

    def on_train_start(self) -> None:
        """Tell the loss the epoch, which may go on in its middle, and the optimizer what the config says now."""
        tell_of_short_epochs(self.trainer)
        self.loss.set_epoch(self.current_epoch)
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, FollowBudget):
                config.scheduler.take_up((self.hparams["optimizer_options"] or {}).get("lr", self.hparams["lr"]))
        count_epochs_right(self.trainer)  # after it: the batches of the epoch before are counted until the next one

    def on_train_epoch_start(self) -> None:
        """Tell the loss the epoch, for weights that change over time."""
        self.loss.set_epoch(self.current_epoch)

    def on_validation_start(self) -> None:
        """Have the whole network in each process, which has cases of its own; forget a validation that broke off."""
        self._begin()
        self.val_dice.reset()
        gather(self.net)

    def on_test_start(self) -> None:
        """Forget a validation that broke off."""
        self._begin()
        self.val_dice.reset()

    def on_predict_start(self) -> None:
        """Refuse to go on where the weights were to come from a file that cannot be read."""
        self._begin()

    def on_validation_epoch_end(self) -> None:
        """Log the mean over cases, per organ by name."""
        part(self.net)
        self._log_dice("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean over cases, per organ by name."""
        if self.judges_tests:
            self._log_dice("test")

    def _log_dice(self, stage: str) -> None:
        scores = self.val_dice.compute(getattr(getattr(self.trainer, "datamodule", None), "datasets", None))
        self.val_dice.reset()
        self.log(f"{stage}/dice", scores.pop("mean"), prog_bar=True, sync_dist=True)
        of_all = {organ: score for organ, score in scores.items() if organ in self.plan.organs}
        self.log_dict(
            {f"{stage}/dice/{organ}": score for organ, score in of_all.items()}, prog_bar=True, sync_dist=True
        )
        parts = {f"{stage}/dice_by_dataset/{of}": score for of, score in scores.items() if of not in of_all}
        self.log_dict(parts, sync_dist=True)

    def segment(self, image: Image) -> Integer[Tensor, "1 i j k"] | Bool[Tensor, "1 c i j k"]:
        """Decide every voxel of one whole prepared volume ``(1, m, i, j, k)``, by overlapping windows."""
        return Segmenter(self, self.plan, self.hparams["overlap"], channels_last=False).segment(image)

    def setup(self, stage: str) -> None:
        """Look at the trainer and the data; take over weights; before training, freeze some."""
        data = trainable_data(self, prepared=stage != "test" or self.judges_tests)
        if data is not None and stage == "fit":
            self.trained_on |= known_by(data, data.cases.train)
        if self.hparams["init_from"] is not None and not self._begun:
            try:
                self._start = take_over(self, Path(self.hparams["init_from"]), net_spec(self.plan))
            except CheckpointError as error:  # which nobody misses where a checkpoint is about to be loaded
                self._start = error
        if stage != "fit":
            if data is not None and stage != "predict" and (seen := already_seen(self.trained_on, data)):
                rank_zero_warn(seen)
            return
        keep_short_ones_whole(self.net)
        self._frozen = frozen_norms(self, self.hparams["freeze"] or ())
        self.train(self.training)

    def _begin(self) -> str:
        """What the weights begin with, in a line.

        Raises:
            CheckpointError: They were to come from one that cannot be had.
        """
        if isinstance(self._start, CheckpointError):
            raise self._start
        return self._start

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Take weights over, which no other start replaces from then on."""
        self._begun = True
        return super().load_state_dict(*args, **options)

    def train(self, mode: bool = True) -> SegmentationTask:
        """As PyTorch's; what is frozen does not follow the batches."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # what a checkpoint names is not built by Lightning
        cls, checkpoint_path: Any, map_location: Any = "cpu", *, trust: Iterable[str] = (), **options: Any
    ) -> Any:
        """The task as it was trained, with its weights; to predict, see `medseg.segmenter.Segmenter`.

        Args:
            checkpoint_path: The file.
            map_location: The device to put it on.
            trust: The dotted paths that it may name; see `medseg.machine.dotted.Trust`.
            options: Take the place of what the task was built with, such as a network or a loss that it names.

        Raises:
            CheckpointError: It cannot be read, names what is not trusted, or does not fit.
            UsageError: An option is unknown or wrong.
        """
        checkpoint = read_checkpoint(Path(checkpoint_path))
        require_trusted(checkpoint, Trust.of(trust), options)
        known = {name: value for name, value in checkpoint.options.items() if name in arguments_of(cls)}
        if unknown := [name for name in options if name not in arguments_of(cls)]:
            raise UsageError(
                f"{cls.__name__} has no {listed(unknown)}", "Leave it out: all weights are read, and no code"
            )
        remedy = f"train again, or use the version that wrote it ({checkpoint.signature['version']})"
        remedy = f"Correct what is given, or {remedy}" if options else remedy.capitalize()
        try:
            task = cls(**{**known, **options})
            require_same_kinds(task.state_dict(), checkpoint.state)
            task.load_state_dict(checkpoint.state)
        except (TypeError, ValueError, RuntimeError, KeyError, MedsegError) as error:
            given = f"the {listed(options)} that is given" if options else "this version of medseg"
            raise CheckpointError(checkpoint.path, f"does not fit {given} ({error})", remedy) from None
        remember(task, checkpoint, options)
        return task.to(map_location or "cpu")

    def configure_model(self) -> None:
        """Under the strategy ``fsdp``, for training: part the weights over the processes."""
        if not self._fits or not self._sharded:
            return
        averages, compiles = bool(self.hparams["ema"]), self.hparams["compile"] is True
        learns, optimizer = bool([*self.loss.parameters()]), self.hparams["optimizer"]
        require_shardable(averages=averages, learns=learns, compiles=compiles, optimizer=optimizer)
        shard(self.net, self.trainer.strategy.root_device.type)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer by name, its learning rate a function of the budget that is spent."""
        self._begin()
        mark_outputs(self.net, net_spec(self.plan).out_channels)
        options = self.hparams
        optimizer = build_optimizer(
            options["optimizer"],
            self.parameters(),
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            options=options["optimizer_options"] or {},
            fused=self.device.type == "cuda" and not self._sharded,
        )
        scheduler = FollowBudget(optimizer, self.schedule_factor, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """While training: the watches, averaged weights and early stopping, where asked for."""
        return of_task(self.hparams) if self.trainer.training else []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take only what was trained on the same labels and channels, and go on only with the same optimizer.

        Raises:
            CheckpointError: It was trained on others, or is not one of ours.
        """
        kept = checked(Path("--ckpt_path"), ({WEIGHTS: {}} if self._sharded else {}) | checkpoint)  # taken by Lightning
        kept.require_same_training(self.plan, self.hparams["optimizer"] if self._fits else None)
        self.last_scores, self.trained_on = kept.scores, self.trained_on | kept.trained_on
        self._start = ""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint, so that a foreign one is told apart, and note how it scored."""
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name[:8] == "val/dice"}
        signed = signature(
            version=medseg.__version__,
            torch=torch.__version__.split("+")[0],
            scores=scores or self.last_scores,
            peak_gib=peak_memory_bytes(self.device) / 2**30,
            flips=getattr(data_of(self), "flips", None),
            trained_on=self.trained_on,
        )
        sign(checkpoint, signed)

    @property
    def _fits(self) -> bool:
        return getattr(getattr(trainer_of(self), "state", None), "fn", "fit") == "fit"

    @property
    def _sharded(self) -> bool:
        return isinstance(getattr(trainer_of(self), "strategy", None), ModelParallelStrategy)

    def _annotated(self, batch: Batch) -> tuple[str, ...] | None:
        """The organs that were annotated in the one case of a batch, or None for all."""
        if batch.class_mask is None:
            return None
        covered = batch.class_mask[0, int(self.plan.exclusive) :].tolist()
        return tuple(organ for organ, known in zip(self.plan.organs, covered, strict=True) if known)


def judge_of(segmenter: Segmenter) -> SegmentationTask:
    """A task that validates a network, whatever it was trained with."""
    plan, net = segmenter.plan.to_dict(), segmenter.net
    return SegmentationTask(plan, net, overlap=segmenter.overlap, channels_last=segmenter.channels_last).eval()
