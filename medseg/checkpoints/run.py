"""A run folder and a folder of scores: the only file that knows the names in them, and which checkpoint is meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import CheckpointError
from medseg.machine.files import read_json

ENSEMBLE = "ensemble.json"
"""In the folder of a cross-validation: the checkpoints that predict together, by paths relative to it."""


class _Part:
    """A file or folder of a fixed name in a folder that is a type."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get__(self, folder: Scores | Run, kind: type) -> Path:
        return folder.path.joinpath(*self.names)


@dataclass(frozen=True)
class Scores:
    """The folder of an evaluation."""

    path: Path

    summary = _Part("summary.json")
    """Scores per organ, and the cases without."""

    cases = _Part("cases.csv")
    """A row per case and organ."""

    predictions = _Part("predictions")
    """The label files that were scored, where a command wrote them itself."""

    report = _Part("report.html")
    """The page."""


@dataclass(frozen=True)
class Run:
    """The folder that one training writes."""

    path: Path

    def __fspath__(self) -> str:
        """The folder: a run stands for it wherever a path is taken."""
        return str(self.path)

    config = _Part("config.yaml")
    """The config of the training, with all defaults."""

    lock = _Part(".training.lock")
    """Held by the process that trains here, while it does."""

    metrics = _Part("metrics.csv")
    """What was logged, a row per step or validation."""

    report = _Part("report.html")
    """The page about training and test."""

    checkpoints = _Part("checkpoints")
    """The folder of `best` and `last`."""

    best = _Part("checkpoints", "best.ckpt")
    """The checkpoint with the highest mean Dice in a validation."""

    last = _Part("checkpoints", "last.ckpt")
    """The checkpoint that a training goes on from."""

    @property
    def test(self) -> Scores:
        """What `medseg test` predicted and scored."""
        return Scores(self.path / "test")

    @classmethod
    def holding(cls, checkpoint: str | Path) -> Run:
        """The run that a checkpoint was written by, if it lies where it was written."""
        return cls(Path(checkpoint).parent.parent)

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint lies in this folder, parts of which may be links to other places."""
        folder = checkpoint.parent.resolve()
        return folder == self.checkpoints.resolve() or folder.is_relative_to(self.path.resolve())

    def checkpoint(self, name: str | os.PathLike[str] | None = None) -> Path:
        """The checkpoint called ``best`` (the default) or ``last``, or any path.

        Raises:
            CheckpointError: There is none.
        """
        named = {None: self.best, "best": self.best, "last": self.last}
        path = Path(name) if isinstance(name, os.PathLike) else named.get(name) or Path(str(name))
        if path.is_file():
            return path
        problem = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        remedy = "Train first, or name the folder of the run with --run"
        if path == self.best and self.last.is_file():
            problem = "does not exist: no validation has finished in this folder"
            remedy = f"Take its last with --ckpt_path last, or by its path {self.last}"
        elif path == self.last and self.best.is_file():
            remedy = f"Take its best with --ckpt_path best, or by its path {self.best}"
        raise CheckpointError(path, problem, remedy)


def checkpoints_in(paths: Sequence[Path]) -> list[Path]:
    """The checkpoint files that some paths stand for.

    Args:
        paths: Checkpoints, run folders (their best), or folders of a cross-validation (the best of each fold).

    Raises:
        CheckpointError: One is not there, or a folder is neither a run nor a cross-validation.
    """
    if gone := next((path for path in paths if not path.exists()), None):
        raise missing(gone)
    return [checkpoint for path in paths for checkpoint in (_members(path) if path.is_dir() else [path])]


def missing(path: Path) -> CheckpointError:
    """What is said of a checkpoint that is not there."""
    return CheckpointError(path, "does not exist", "Check the path; a run keeps checkpoints/best.ckpt")


def _members(folder: Path) -> list[Path]:
    listed = folder / ENSEMBLE
    if Run(folder).checkpoints.is_dir():
        return [Run(folder).checkpoint()]
    remedy = "Give a .ckpt file, the folder of a run, or that of a medseg cross-validate that has finished"
    try:
        members = read_json(listed)["checkpoints"]
        found = [folder / str(member) for member in members]
    except FileNotFoundError:
        raise CheckpointError(folder, f"holds neither checkpoints/best.ckpt nor {ENSEMBLE}", remedy) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(listed, f"cannot be read ({error})", remedy) from None
    if not found:
        raise CheckpointError(listed, "lists no checkpoint", remedy)
    return found
