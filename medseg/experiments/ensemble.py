"""The folds of a cross-validation as one predictor: a list of checkpoints that `medseg predict --ckpt DIR` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import CheckpointError
from medseg.experiments.folds import checkpoint_of
from medseg.experiments.results import Result
from medseg.experiments.sweep import Outcome
from medseg.machine.files import write_json

FILE = "ensemble.json"


def write_ensemble(results: Sequence[Result], outcomes: Sequence[Outcome], output: Path) -> Path:
    """List the checkpoints of the finished folds in ``ensemble.json``, by paths relative to it.

    Returns:
        The file.
    """
    members = [checkpoint_of(result.job.run).relative_to(output).as_posix() for result in results]
    lost = [outcome.job.title for outcome in outcomes if outcome.failure]
    path = output / FILE
    write_json(path, {"checkpoints": members, "lost": lost})
    return path


def checkpoints_in(paths: Sequence[Path]) -> list[Path]:
    """The checkpoint files that some paths stand for.

    Args:
        paths: Checkpoints, run folders (their best), or folders of a cross-validation (the best of each fold).

    Raises:
        CheckpointError: A folder is neither a run nor a cross-validation.
    """
    return [checkpoint for path in paths for checkpoint in (_members(path) if path.is_dir() else [path])]


def _members(folder: Path) -> list[Path]:
    if checkpoint_of(folder).is_file():
        return [checkpoint_of(folder)]
    remedy = "Give a .ckpt file, the folder of a run, or that of medseg cross-validate"
    try:
        members = json.loads((folder / FILE).read_text(encoding="utf-8"))["checkpoints"]
        found = [folder / str(member) for member in members]
    except FileNotFoundError:
        raise CheckpointError(folder, f"holds neither checkpoints/best.ckpt nor {FILE}", remedy) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(folder / FILE, f"cannot be read ({error})", remedy) from None
    if not found:
        raise CheckpointError(folder / FILE, "lists no checkpoint", remedy)
    return found
