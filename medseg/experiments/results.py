"""What a finished job is worth: its scores, how it got there, and what each step cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import median

from medseg.checkpoints.run import Run
from medseg.experiments.job import Job
from medseg.report.record import Curve, read_columns
from medseg.report.scores import SavedScores, read_scores
from medseg.report.summary import Summary, summarise


@dataclass(frozen=True)
class Result:
    """A finished job: its scores, the Dice of validations as training went on, and its cost, where that is known.

    Attributes:
        dice_by_minute: ``val/dice`` over minutes of training, validations included.
        step_ms: Median over epochs of the median milliseconds of a step, without waiting for data; None if unknown.
        peak_gib: The most memory its process held; None if unknown.
    """

    job: Job
    scores: SavedScores
    dice_by_step: Curve = ()
    dice_by_minute: Curve = ()
    step_ms: float | None = None
    peak_gib: float | None = None

    @cached_property
    def summary(self) -> Summary:
        """The scores in few numbers."""
        return summarise(self.scores.rows)

    @property
    def minutes(self) -> float | None:
        """Minutes until the last validation; None if unknown."""
        return self.dice_by_minute[-1][0] if self.dice_by_minute else None

    @property
    def costs(self) -> tuple[float | None, float | None, float | None]:
        """Milliseconds of a step, GiB of memory, minutes of training."""
        return self.step_ms, self.peak_gib, self.minutes


def read_result(job: Job) -> Result:
    """Read a finished job's folder.

    Raises:
        DataError: It lacks a file, or holds one that cannot be read.
    """
    run = Run(job.run)
    curves = read_columns(run.metrics)
    dice, elapsed = curves.get("val/dice", ()), dict(curves.get("time/elapsed_s", ()))
    steps_s = [value for _, value in curves.get("time/compute_median_s", ())]
    return Result(
        job=job,
        scores=read_scores(run.test.path),
        dice_by_step=dice,
        dice_by_minute=tuple((elapsed[step] / 60, score) for step, score in dice if step in elapsed),
        step_ms=1000.0 * median(steps_s) if steps_s else None,
        peak_gib=max((value for _, value in curves.get("memory/peak_gib", ())), default=None),
    )
