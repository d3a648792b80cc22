"""Where a training begins, and how it takes possession of its run folder: nothing is written before it may begin."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_info

from medseg.checkpoints.reading import read_to_go_on
from medseg.checkpoints.run import Run
from medseg.errors import CheckpointError, DataError, UsageError
from medseg.plan.plan import Plan
from medseg.training.metrics_log import forget_steps


@dataclass(frozen=True)
class Start:
    """Where a training begins: with a checkpoint and the steps that it has behind it, or with neither."""

    checkpoint: Path | None = None
    step: int = 0


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
    if resume_from is None and found:
        raise UsageError(f"{run.path} already holds a training", "Go on with --ckpt_path last, or choose another --run")
    _require_writable(run.path)
    if resume_from is None:
        return Start()
    if resume_from == "last" and not found:
        rank_zero_info(f"{run.path} holds no checkpoint yet: training begins with the first step")
        return Start()
    # a kill between the very first best.ckpt and last.ckpt leaves only the one, which holds as much
    path = found[0] if resume_from == "last" else run.checkpoint(resume_from)
    checkpoint = read_to_go_on(path)
    _require_plan(path, checkpoint["hyper_parameters"].get("plan"))
    rank_zero_info(f"training goes on after step {checkpoint['global_step']}, from {path}")
    return Start(path, checkpoint["global_step"])


@contextmanager
def taken(run: Run, start: Start, config: str) -> Iterator[None]:
    """Have a run folder for one training alone: with its config in it, and without the log of what is done again.

    The system lets go of the folder when the process ends, however that comes about.

    Args:
        run: The folder.
        start: Where the training begins.
        config: The whole config.

    Raises:
        UsageError: Another process trains in the folder.
        DataError: The folder cannot be written.
    """
    lock = FileLock(run.path / ".training.lock")
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another process trains in {run.path}", "Choose another --run, or wait until it has ended"
        ) from None
    except OSError as error:
        raise DataError(run.path, f"cannot be written ({error.strerror})", "Choose another folder with --run") from None
    try:
        forget_steps(run.metrics, since=start.step)
        try:
            unfinished = run.config.with_name(f".{run.config.name}.unfinished")
            unfinished.write_text(config, encoding="utf-8")
            os.replace(unfinished, run.config)
        except OSError as error:
            remedy = "Free space, or choose another folder with --run"
            raise DataError(run.config, f"could not be written ({error.strerror})", remedy) from None
        yield
    finally:
        lock.release()


def _require_writable(folder: Path) -> None:
    try:  # in what is there already: a run that is refused for another reason leaves no folder behind
        there = next(place for place in (folder, *folder.parents) if place.exists())
        there.mkdir(exist_ok=True)  # which a file does not allow
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DataError(folder, f"cannot be written ({error.strerror})", "Choose another folder with --run") from None


def _require_plan(path: Path, plan: Any) -> None:
    try:
        Plan.from_dict(plan)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        problem = f"holds no plan that this version of medseg understands ({' '.join(str(error).split())})"
        raise CheckpointError(path, problem, "Start from its weights with --model.init_from") from None
