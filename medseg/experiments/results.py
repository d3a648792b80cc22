"""What a finished job is worth: its scores, how it got there, and what each step cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from medseg.checkpoints.run import Run
from medseg.errors import DataError
from medseg.experiments.job import Job
from medseg.report.matching import Failure
from medseg.report.record import Curve, read_curves
from medseg.report.rows import CaseRow, read_rows
from medseg.report.summary import Summary, summarise


@dataclass(frozen=True)
class Result:
    """A finished job.

    Attributes:
        job: It.
        rows: A row per held-out case and organ.
        summary: The same in few numbers.
        not_scored: Held-out cases without a score, and why.
        dice_by_step: ``val/dice`` over steps.
        dice_by_minute: ``val/dice`` over minutes of training, validations included.
        step_ms: Median over epochs of the median milliseconds of a step, without waiting for data; None if unknown.
        peak_gib: The most memory its process held; None if unknown.
    """

    job: Job
    rows: tuple[CaseRow, ...]
    summary: Summary
    not_scored: tuple[Failure, ...]
    dice_by_step: Curve
    dice_by_minute: Curve
    step_ms: float | None
    peak_gib: float | None

    @property
    def minutes(self) -> float | None:
        """Minutes until the last validation; None if unknown."""
        return self.dice_by_minute[-1][0] if self.dice_by_minute else None

    @property
    def mean_dice(self) -> float:
        """Mean over organs of their mean Dice; 0 without a case."""
        return self.summary.mean_dice or 0.0


def read_result(job: Job) -> Result:
    """Read a finished job's folder.

    Raises:
        DataError: It lacks a file, or holds one that cannot be read.
    """
    run = Run(job.run)
    curves = {name: line for chart in read_curves(run.metrics).values() for name, line in chart.items()}
    dice, elapsed = curves.get("val/dice", ()), dict(curves.get("time/elapsed_s", ()))
    rows = read_rows(run.test.cases)
    return Result(
        job=job,
        rows=rows,
        summary=summarise(rows),
        not_scored=_failures(run.test.summary),
        dice_by_step=dice,
        dice_by_minute=tuple((elapsed[step] / 60, score) for step, score in dice if step in elapsed),
        step_ms=_over_epochs(curves.get("time/compute_median_s", ()), scale=1000.0),
        peak_gib=max((value for _, value in curves.get("memory/peak_gib", ())), default=None),
    )


def _over_epochs(curve: Curve, *, scale: float) -> float | None:
    return scale * median(value for _, value in curve) if curve else None


def _failures(path: Path) -> tuple[Failure, ...]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["failures"]
        return tuple(Failure(failure["case"], failure["reason"]) for failure in listed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, f"cannot be read ({error})", "Remove it, and run the same command again") from None
