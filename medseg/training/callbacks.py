"""Every callback of a training, in the order in which they act, with the reason of that order.

Lightning asks the callbacks of the trainer first, then those of the task, and those that keep checkpoints last: what
`of_run` lists, then what `of_task` lists. A trainer of one's own gets those of the task as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.callbacks import Callback, ProgressBar

from medseg.checkpoints.run import Run
from medseg.training.averages import AveragedWeights
from medseg.training.ending import StopEarly, ValidateTheEnd
from medseg.training.interrupt import StopOnRequest
from medseg.training.keep import KeepCheckpoints
from medseg.training.log import RateLog, StepClock
from medseg.training.loss import WeighClasses
from medseg.training.peers import WatchPeers
from medseg.training.progress import FitProgress
from medseg.training.share import ShareTime, TellBudget
from medseg.training.signing import SignOrigin
from medseg.training.steps import SeedSteps, SkipBadSteps
from medseg.training.study import LossStudy


def of_run(
    run: Run, config: Mapping[str, Any], yours: Sequence[Callback] = (), *, minutes: float = 5.0, bar: bool = True
) -> list[Callback]:
    """What a run folder needs; the trainer is given them.

    Args:
        run: The folder.
        config: The whole config as plain data, with which every checkpoint is signed.
        yours: The callbacks that the user asks for.
        minutes: Between two writes of ``last.ckpt``, those after a validation aside.
        bar: Whether to show how far it is, unless ``yours`` do.
    """
    keep = KeepCheckpoints(run, minutes)
    shown = bar and not any(isinstance(callback, ProgressBar) for callback in yours)
    return [
        SignOrigin(config),  # first: it refuses data that differ between processes, before any waits for another
        WatchPeers(),  # before whatever may wait for another process
        *yours,
        RateLog(),  # puts the loggers' count of steps right, before anybody of the task logs
        *([FitProgress()] if shown else ()),
        keep,  # Lightning puts it last, with the next: it writes what all others, those of the task too, have left
        StopOnRequest(keep),  # after it: what a validation scored is kept before anybody may stop
    ]


def of_task(options: Mapping[str, Any]) -> list[Callback]:
    """What decides the weights and the scores, in whatever trainer; the task asks for them when a fit begins.

    Args:
        options: The arguments of `medseg.training.task.SegmentationTask`.
    """
    return [
        ShareTime(options["validation_share"]),  # before all that ask how often a training is validated
        SeedSteps(),  # before anything of the step draws a number
        ValidateTheEnd(),  # before all that ask whether the training ends
        SkipBadSteps(options["bad_steps"]),  # before the clock: a step that is left out is computed all the same
        StepClock(),
        TellBudget(),  # anywhere
        WeighClasses(),  # once, when training starts: classes are weighed by the voxels of all training cases
        *([AveragedWeights(decay=options["ema"])] if options["ema"] else ()),  # in place before a validation scores
        *([StopEarly(options["patience"])] if options["patience"] is not None else ()),  # decides before it is kept
        *([LossStudy(options["study"], options["study_every"])] if options["study"] else ()),
    ]
