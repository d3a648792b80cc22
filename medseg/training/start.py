"""Where a training begins: in a folder of its own, with a checkpoint or without, and with some weights that stay."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from medseg.checkpoints.run import Run
from medseg.errors import MedsegError, UsageError
from medseg.machine.files import locked, require_writable, write_text
from medseg.training.keep import CheckpointFiles
from medseg.training.log import forget_steps


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
    requeued goes on without asking.

    Args:
        run: Where it will be.
        resume_from: ``last``, ``best``, a file, or None to begin anew.

    Raises:
        UsageError: The folder holds checkpoints and the run is not asked to go on from one.
        CheckpointError: It is asked to go on from one that does not exist or cannot be read.
        DataError: The folder cannot be written.
    """
    if resume_from is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        resume_from = "last"
    found = [path for path in (run.last, run.best) if path.is_file()]
    if resume_from is None:
        _require_fresh(run)
    require_writable(run.path, remedy="Choose another folder with --run")
    if resume_from is None:
        return Start()
    if resume_from == "last" and not found:
        rank_zero_info(f"{run.path} holds no checkpoint yet: training begins with the first step")
        return Start()
    # a kill between the very first best.ckpt and last.ckpt leaves only the one, which holds as much
    path = found[0] if resume_from == "last" else run.checkpoint(resume_from)
    files = CheckpointFiles()
    step = files.read_ahead(path).steps
    rank_zero_info(f"training goes on after step {step}, from {path}")
    return Start(path, step, files)


@contextmanager
def taken(run: Run, start: Start, config: str) -> Iterator[None]:
    """Have a run folder for one training alone: with its config in it, and without the log of what is done again.

    The system lets go of the folder when the process ends, however that comes about. A folder that is made here is gone
    again where the training was refused before its first number.

    Args:
        run: The folder.
        start: Where the training begins.
        config: The whole config.

    Raises:
        DataError: Another process trains in the folder, or it cannot be written.
    """
    new = not run.path.exists()
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run.lock):
            if start.checkpoint is None:  # another one may have begun and ended meanwhile
                _require_fresh(run)
            forget_steps(run.metrics, since=start.step)
            write_text(run.config, config, remedy="Free space, or choose another folder with --run")
            yield
    except MedsegError:
        if new and not any(kept.is_file() for kept in (run.metrics, run.last, run.best)):
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def _require_fresh(run: Run) -> None:
    if run.last.is_file() or run.best.is_file():
        raise UsageError(f"{run.path} already holds a training", "Go on with --ckpt_path last, or choose another --run")


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
