"""Where a training begins: in a folder of its own, with a checkpoint or without, and with some weights that stay."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, Callback, Checkpoint, LearningRateFinder
from torch import Tensor, nn

from medseg.checkpoints.checkpoint import Checkpoint as Kept
from medseg.checkpoints.run import Run
from medseg.errors import MedsegError, UsageError
from medseg.machine.files import locked, require_writable, whole, write_text
from medseg.training.keep import CheckpointFiles
from medseg.training.lightning import rehearses
from medseg.training.log import forget_steps

_REMEDY = "Free space, or choose another folder with --run"


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        checkpoint: What it goes on from; None where it begins anew.
        step: The steps that are behind it there.
        files: Hold what was read of the checkpoint until Lightning asks for it.
    """

    checkpoint: Path | None = None
    step: int = 0
    files: CheckpointFiles | None = None


def find_start(run: Run, resume_from: str | None) -> Start:
    """Find what to go on from.

    ``last`` in a folder without checkpoints begins anew, so that a script may always ask for it; a job that SLURM
    requeued goes on with the run's own last, whatever it asked for when it began.

    Args:
        run: Where it will be.
        resume_from: ``last``, ``best``, a file, or None to begin anew.

    Raises:
        UsageError: The folder holds checkpoints and the run is not asked to go on from one of its own.
        CheckpointError: It is asked to go on from one that does not exist or cannot be read.
        DataError: The folder cannot be written.
    """
    found = [path for path in (run.last, run.best) if path.is_file()]
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and (found or resume_from is None):
        resume_from = "last"
    if resume_from is None:
        _require_fresh(run, None)
    require_writable(run.path, remedy="Choose another folder with --run")
    if resume_from is None:
        return Start()
    if resume_from == "last" and not found:
        rank_zero_info(f"{run.path} holds no checkpoint yet: training begins with the first step")
        return Start()
    # a kill between the very first best.ckpt and last.ckpt leaves only the one, which holds as much
    path = found[0] if resume_from == "last" else run.checkpoint(resume_from)
    _require_fresh(run, path)
    files = CheckpointFiles()
    step = files.read_ahead(path).steps
    rank_zero_info(f"training goes on after step {step}, from {path}")
    return Start(path, step, files)


@contextmanager
def taken(run: Run, start: Start) -> Iterator[None]:
    """Have a run folder for one training alone, in which nothing is changed; see `ChangeRun`.

    The system lets go of the folder when the process ends, however that comes about. The folders that are made here
    are gone again where the training was refused before its first number.

    Args:
        run: The folder.
        start: Where the training begins.

    Raises:
        UsageError: Another training has begun and ended in the folder meanwhile.
        DataError: Another process trains in the folder, or it cannot be written.
    """
    made = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run.lock):
            _require_fresh(run, start.checkpoint)
            yield
    except MedsegError:
        if made and not any(kept.is_file() for kept in (run.metrics, run.last, run.best)):
            shutil.rmtree(run.path, ignore_errors=True)
            with suppress(OSError):  # another training has begun in one of them
                for folder in made[1:]:
                    folder.rmdir()
        raise


def _require_fresh(run: Run, checkpoint: Path | None) -> None:
    """Refuse a folder with another training than the one that goes on from a checkpoint."""
    ours = checkpoint is not None and run.holds(checkpoint)
    if not ours and (run.last.is_file() or run.best.is_file()):
        raise UsageError(f"{run.path} already holds a training", "Go on with --ckpt_path last, or choose another --run")


class ChangeRun(Checkpoint):
    """Makes a run folder this training's: with its config, what it goes on from as its last, and no later log.

    Only when all is restored and nobody has refused: a folder where a training was refused is as it was before.
    Lightning's ``Checkpoint`` is it only to come after all others.

    Args:
        run: The folder.
        start: Where the training begins.
        config: The whole config.

    Raises:
        MachineError: A file cannot be written.
    """

    def __init__(self, run: Run, start: Start, config: str) -> None:
        self.run, self.start, self.config = run, start, config

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on at the rate that was found for the run, of which its config, where it is as it was, does not know."""
        kept = Kept(Path("--ckpt_path"), checkpoint)
        asked, rate = kept.config.get("model.lr"), kept.options.get("lr")
        if rate is not None and asked == pl_module.hparams["lr"] != rate:
            rank_zero_info(f"model.lr is {rate:g}, which was found when the run began, not the {asked:g} of the config")
            pl_module.hparams["lr"] = rate

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change it, in an order in which a kill leaves nothing that cannot be gone on from."""
        if not trainer.is_global_zero or rehearses(trainer):
            return
        if self.start.checkpoint not in (None, self.run.last):
            with whole(self.run.last, remedy=_REMEDY) as partial:
                shutil.copyfile(self.start.checkpoint, partial)
        forget_steps(self.run.metrics, since=self.start.step)
        write_text(self.run.config, self.config, remedy=_REMEDY)


def without_searches(callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks of a training that goes on: those that search by a training of their own did so at its beginning.

    Lightning's would put the weights and the steps of before that training in place of those that were just loaded.
    """
    given, searches = [*callbacks], (LearningRateFinder, BatchSizeFinder)
    for one in given:
        if isinstance(one, searches):
            rank_zero_info(f"{type(one).__name__} is left out: it searches where a training begins, this one goes on")
    return [one for one in given if not isinstance(one, searches)]


def frozen_norms(task: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Let weights stay as they are, and find the modules whose running statistics must stay too.

    Args:
        task: Whose weights they are.
        patterns: Of names, such as ``net.*downsamples*``.

    Raises:
        UsageError: A pattern freezes nothing, or no weight is left to train.
    """
    for pattern in patterns:
        named = [parameter for name, parameter in task.named_parameters() if fnmatch(name, pattern)]
        if not named:
            raise UsageError(f"model.freeze: no weight is called {pattern!r}", "Use a pattern such as net.*")
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise UsageError("model.freeze leaves no weight to train", "Freeze fewer, or score it with medseg test")
    return [
        module
        for name, module in task.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor) and _stays(name, module, patterns)
    ]


def _stays(name: str, module: nn.Module, patterns: Sequence[str]) -> bool:
    own = list(module.parameters(recurse=False))
    trained = any(parameter.requires_grad for parameter in own)
    return not trained and (bool(own) or any(fnmatch(f"{name}.running_mean", pattern) for pattern in patterns))


def arguments_of(kind: type) -> set[str]:
    """What a class is built with, and its parents too, as long as each passes on what it does not know."""
    names: set[str] = set()
    for one in kind.__mro__:
        if "__init__" in vars(one):
            parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names
