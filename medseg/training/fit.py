"""One training from data, task and options to its last checkpoint: the trainer, its loggers, and how it is run."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from medseg.checkpoints.run import Run
from medseg.errors import UsageError, meant
from medseg.machine.hardware import PrecisionName, best_precision, memory_bytes
from medseg.machine.threads import share_cores
from medseg.machine.typed import to_plain
from medseg.nets import list_nets
from medseg.patches.datamodule import VolumesDataModule
from medseg.training.callbacks import of_run
from medseg.training.failures import in_sentences, require_memory, unusable_device
from medseg.training.keep import CheckpointFiles
from medseg.training.lightning import callbacks_of, rehearses
from medseg.training.log import RunLog
from medseg.training.loss import name_of
from medseg.training.peers import explain_deaths
from medseg.training.ranges import require_in_range
from medseg.training.start import ChangeRun, Start, find_start, taken, without_searches
from medseg.training.task import SegmentationTask

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]

_DEFAULT_EPOCHS = 1000  # Lightning's and nnU-Net's


class Trainer(pl.Trainer):
    """Lightning's trainer, which here also understands ``precision: auto``, and writes checkpoints whole or not."""

    def __init__(  # all that is looked at here is named, so that the command line knows its types
        self,
        *,
        precision: PrecisionName = "auto",
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        max_epochs: int | None = None,
        max_steps: int | float = -1,
        max_time: str | timedelta | dict[str, int] | None = None,
        **options: Any,
    ) -> None:
        """Resolve the precision before Lightning sees it.

        Args:
            precision: As Lightning's, or ``auto``: bf16-mixed where the hardware multiplies in bf16, 16-mixed on
                older GPUs, else 32.
            accelerator: As Lightning's.
            strategy: As Lightning's, but for those that spawn; ``fsdp`` is PyTorch's second.
            max_epochs: As Lightning's; 1000 where no budget is given.
            max_steps: As Lightning's; 1e3 is a number too.
            max_time: As Lightning's.
            options: As Lightning's.
        """
        quieten()
        accelerator = supported(accelerator)
        chosen = best_precision(accelerator) if precision == "auto" else precision
        if max_steps % 1:
            raise UsageError(f"trainer.max_steps is {max_steps}, expected a whole number", "Correct that value")
        if (max_epochs, max_time, max_steps) == (None, None, -1):
            max_epochs = _DEFAULT_EPOCHS
        if not str(strategy).startswith("deepspeed"):  # which writes folders of its own
            known = {"plugins": None, **options}
            options["plugins"] = [*as_list(known["plugins"]), CheckpointFiles()]
        if str(strategy).endswith("_spawn"):
            raise UsageError(f"trainer.strategy {strategy} is not supported", "Take ddp, which is faster")
        if strategy == "fsdp":  # which the task applies to the network
            strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
        if options.get("benchmark") is None and not options.get("deterministic"):
            options["benchmark"] = True  # patches have one size: cuDNN may look for its fastest convolution once
        super().__init__(
            precision=chosen,
            accelerator=accelerator,
            strategy=strategy,
            max_epochs=max_epochs,
            max_steps=int(max_steps),
            max_time=max_time,
            **options,
        )
        explain_deaths(self.strategy)


def build_trainer(
    run: Run,
    config: Mapping[str, Any],
    *,
    first_step: int = 0,
    minutes: float = 5.0,
    logger: Any = None,
    callbacks: Sequence[Callback] | Callback | None = None,
    **options: Any,
) -> Trainer:
    """The trainer of a fit that writes into a run folder.

    Args:
        run: The folder.
        config: The whole config as plain data, with which every checkpoint is signed.
        first_step: The step that the training goes on from.
        minutes: Between two writes of ``last.ckpt``, those after a validation aside.
        logger: As `loggers` takes it, beside the run's own ``metrics.csv``.
        callbacks: The user's, beside those of `medseg.training.callbacks`.
        options: As `Trainer` takes them.

    Raises:
        UsageError: An option is wrong, or means a device or a package that is not here.
    """
    if options.get("enable_checkpointing") is False:
        raise UsageError("trainer.enable_checkpointing false would keep nothing of the training", "Leave it out")
    if options.get("limit_val_batches") == 0:
        rank_zero_info("nothing is validated, so there will be no best.ckpt; score this with --ckpt_path last")
    bar = options.get("enable_progress_bar") is not False
    logs = [*loggers(logger, run, first_step=first_step), RunLog(run)]
    with usable(options):
        return Trainer(  # the task itself says in a line what a model summary would
            **{"enable_model_summary": False, **options, "default_root_dir": str(run.path), "logger": logs},
            callbacks=of_run(run, config, as_list(callbacks), minutes=minutes, bar=bar),
        )


def fit(
    store: Path | str,
    run: Path | str = "data/runs/latest",
    *,
    resume: str | None = None,
    checkpoint_minutes: float = 5.0,
    seed_everything: int = 0,
    **options: Any,
) -> Run:
    """Train as ``medseg fit`` does, into a run folder that ``medseg test`` and ``medseg report`` understand.

    Args:
        store: The folder that ``medseg prepare`` wrote.
        run: The folder of the run.
        resume: ``last`` or ``best`` of that folder, or a checkpoint, to go on from.
        checkpoint_minutes: Minutes between two writes of ``last.ckpt``, those after a validation aside.
        seed_everything: Of weights and whatever else draws numbers.
        options: Those of ``data``, ``model`` and ``trainer`` on the command line, without these words before them:
            ``net="unet", loss="dice", fold=1, max_steps=1000``. Networks, losses, callbacks and loggers may be objects.

    Returns:
        The run; its ``best`` and ``last`` are checkpoints.

    Raises:
        UsageError: There is no such option, or one is wrong.
        MedsegError: The data or a checkpoint is at fault, or training failed.

    Example:
        >>> fit("store", max_step=10)
        Traceback (most recent call last):
        medseg.errors.UsageError: there is no option 'max_step', did you mean 'max_steps'. medseg fit --help lists them.
    """
    given: dict[str, dict[str, Any]] = {"data": {"store": str(store)}, "model": {}, "trainer": {}}
    known = {"data": (VolumesDataModule,), "model": (SegmentationTask,), "trainer": (Trainer, pl.Trainer)}
    legal = {name: part for part, kinds in known.items() for kind in kinds for name in signature(kind).parameters}
    for name, value in options.items():
        if name not in legal:
            raise UsageError(f"there is no option {name!r}{meant(name, legal)}", "medseg fit --help lists them")
        given[legal[name]][name] = to_plain(value)
    seed_everything = to_plain(seed_everything)
    require_in_range({"checkpoint_minutes": checkpoint_minutes, "seed_everything": seed_everything, **given})
    pl.seed_everything(seed_everything, verbose=False)
    try:
        data = VolumesDataModule(**given["data"])
        task = SegmentationTask(data.plan.to_dict(), **given["model"])
    except ValueError as error:
        raise UsageError(str(error).rstrip(".?"), "Correct the options") from None
    told = {**given, "model": {**given["model"], "net": task.hparams["net"]}}  # as its checkpoints call it
    config = {"seed_everything": seed_everything, **{part: _plain(told[part], *known[part]) for part in told}}
    run_fit(Run(Path(run)), config, task, data, resume=resume, minutes=checkpoint_minutes, **given["trainer"])
    return Run(Path(run))


def run_fit(
    run: Run,
    config: Mapping[str, Any],
    task: SegmentationTask,
    data: VolumesDataModule,
    *,
    resume: str | None = None,
    **options: Any,
) -> None:
    """Train into a run folder, which no other training has at the same time; no file of it changes until it begins.

    Args:
        run: The folder.
        config: The whole config as plain data.
        task: What learns.
        data: What it learns from.
        resume: What to go on from, as `medseg.training.start.find_start` takes it.
        options: As `build_trainer` takes them.

    Raises:
        MedsegError: The training cannot begin, or failed.
    """
    start = find_start(run, resume)
    if start.checkpoint is not None:
        options["callbacks"] = without_searches(as_list(options.get("callbacks")))
    trainer = build_trainer(run, config, first_step=start.step, **options)
    written = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    callbacks_of(trainer).append(ChangeRun(run, start, written))
    with taken(run, start) if trainer.is_global_zero and not rehearses(trainer) else nullcontext():
        train(trainer, task, data, start)


def train(
    trainer: pl.Trainer,
    task: SegmentationTask,
    data: VolumesDataModule,
    start: Start = Start(),  # noqa: B008  frozen
) -> None:
    """Train; refuse what cannot fit into memory; say where nothing was done.

    Args:
        trainer: Of `build_trainer`.
        task: What learns.
        data: What it learns from.
        start: Where it begins.

    Raises:
        MedsegError: What torch or Lightning raised, where there is a sentence for it.
    """
    if trainer.strategy.root_device.type == "cpu" and task.hparams["net"] in list_nets():
        require_memory(task.net, data.plan, memory_bytes())
    require_logged(trainer, task, data)
    share_cores(trainer.num_devices)
    if start.files is not None:
        start.files.hand_over(trainer.strategy)
    with in_sentences(trainer, data.plan):
        trainer.fit(task, data, ckpt_path=start.checkpoint)
    if trainer.global_step == start.step and not rehearses(trainer):
        rank_zero_info(
            f"no step was taken, the budget is spent after step {start.step}: to train on, raise "
            "--trainer.max_steps, --trainer.max_epochs or --trainer.max_time"
        )


def require_logged(trainer: pl.Trainer, task: SegmentationTask, data: VolumesDataModule) -> None:
    """Refuse to watch a number that will not be logged; of a task or a callback of one's own nobody knows.

    Raises:
        UsageError: A callback's ``monitor`` is none of the names.
    """
    callbacks = callbacks_of(trainer)
    known = ("medseg", "pytorch_lightning")
    if type(task) is not SegmentationTask or any(type(c).__module__.split(".")[0] not in known for c in callbacks):
        return
    organs, parts = task.plan.organs, sorted(set(data.datasets.values()))
    names = ["train/loss", "train/gradient_norm", "val/dice", *(f"val/dice/{organ}" for organ in organs)]
    names += [f"val/dice_by_dataset/{part}/{organ}" for part in parts for organ in organs]
    names += [f"time/{name}" for name in ("elapsed_s", "data_s", "compute_s", "compute_median_s")] + ["memory/peak_gib"]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        ours = str(monitor).removesuffix("_step").removesuffix("_epoch")
        if monitor is not None and ours not in names and not ours.startswith("train/"):
            told = f"{type(callback).__name__} watches {monitor!r}"
            raise UsageError(f"nothing logs what {told}{meant(monitor, names)}", f"Choose of {', '.join(names)}")


def loggers(chosen: Any, run: Run, *, first_step: int = 0) -> list[Logger]:
    """The loggers that a user asks for.

    Args:
        chosen: Names of `LoggerName`, loggers, or a list of both; None and True for TensorBoard, False for none.
        run: The folder of the run, whose name is that of the run elsewhere too.
        first_step: What a TensorBoard in the folder tells of it and of later steps is forgotten.

    Raises:
        UsageError: There is none of that name, or its package is not installed.
    """
    folder, name = run.path, run.path.name
    made: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder.parent, name, version="", purge_step=first_step),
        "wandb": lambda: WandbLogger(name, folder, project=os.environ.get("WANDB_PROJECT", "medseg")),
        "mlflow": lambda: MLFlowLogger("medseg", name, save_dir=str(folder / "mlruns")),
    }
    found: list[Logger] = []
    for each in ["tensorboard"] if chosen in (None, True) else [] if chosen is False else as_list(chosen):
        if each == "csv":  # metrics.csv, which is always there
            continue
        if isinstance(each, str) and each not in made:
            raise UsageError(
                f"there is no logger {each!r}{meant(each, [*made, 'csv'])}",
                f"Choose of {', '.join(made)} and csv, or give the class_path of a logger",
            )
        try:
            found.append(made[each]() if isinstance(each, str) else each)
        except ModuleNotFoundError:
            raise UsageError(f"trainer.logger {each} needs the package {each}", f"pip install {each}") from None
    return found


def supported(accelerator: str) -> str:
    """What Lightning is to take for ``auto``: a CUDA device or the CPU, not Apple's GPU.

    Raises:
        UsageError: Apple's GPU is asked for, which cannot add up in double precision as the losses do.
    """
    if accelerator == "mps":
        raise UsageError("Apple's GPUs (mps) are not supported", "Take --trainer.accelerator cpu")
    apple = accelerator == "auto" and torch.backends.mps.is_available() and not torch.cuda.is_available()
    return "cpu" if apple else accelerator


@contextmanager
def usable(options: Mapping[str, Any]) -> Iterator[None]:
    """Say in a sentence which of a trainer's options cannot be had here.

    Raises:
        UsageError: A trainer cannot be built of them.
    """
    try:
        yield
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        raise unusable_device(error, options) from None


def quieten() -> None:
    """Hide what Lightning says that a user can do nothing about."""
    for message in _UNHELPFUL:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_no_tip)


_UNHELPFUL = (
    ".*args parameter is intended to run from within Python.*",  # as we do
    ".*is not supported by the model summary.*",  # nobody asked for MB
    "Checkpoint directory .* exists and is not empty.*",  # a resumed run's
    "Grad strides do not match bucket view strides.*",  # of 1x1x1 kernels
    ".*LeafSpec.*",  # Lightning 2.6 on torch 2.13
    ".*`isinstance\\(treespec.*",  # the same
    ".*in eval mode at the start of training.*",  # what model.freeze holds
    ".*does not have many workers.*",  # volumes are cached in memory
    ".*smaller than the logging interval.*",  # short demo epochs
)


def _no_tip(record: logging.LogRecord) -> bool:
    """Matrix products stay exact: the losses add up by them, and networks multiply in 16 bits anyway."""
    return not any(words in record.getMessage() for words in ("Tip:", "set_float32_matmul_precision"))


def as_list(value: Any) -> list[Any]:
    """A list of what may be one thing, several or None."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _plain(given: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """The options of some classes with their defaults, as a config holds them."""
    defaults = {
        name: parameter.default
        for kind in kinds
        for name, parameter in signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }
    return {name: _as_text(value) for name, value in {**defaults, **given}.items()}


def _as_text(value: Any) -> Any:
    """A value as a config says it; for an object, which none can, a table that none takes."""
    if isinstance(value, Mapping):
        return {str(name): _as_text(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, timedelta):
        days, seconds = divmod(math.ceil(value.total_seconds()), 24 * 3600)
        return f"{days:02}:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if isinstance(value, str | int | float | None):
        return value
    named = isinstance(value, type | FunctionType) and "<" not in value.__qualname__
    return name_of(value) if named else {"given_in_python": name_of(value)}
