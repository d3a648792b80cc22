"""The folds of a cross-validation as one predictor: a list of checkpoints that `medseg predict --ckpt DIR` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.checkpoints.run import ENSEMBLE, Run
from medseg.experiments.results import Result
from medseg.experiments.sweep import Outcome
from medseg.machine.files import write_json


def write_ensemble(results: Sequence[Result], outcomes: Sequence[Outcome], output: Path) -> Path:
    """List the checkpoints of the finished folds in ``ensemble.json``, by paths relative to it.

    Returns:
        The file.
    """
    members = [Run(result.job.run).best.relative_to(output).as_posix() for result in results]
    lost = [outcome.job.title for outcome in outcomes if outcome.failure]
    path = output / ENSEMBLE
    write_json(path, {"checkpoints": members, "lost": lost})
    return path
