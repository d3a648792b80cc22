"""``medseg fit | validate | test``: what was told becomes data, a task and a trainer, and these are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import ProgressBar

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.origin import data_differs
from medseg.checkpoints.reading import read_checkpoint
from medseg.checkpoints.run import Run
from medseg.cli.command import report_failures, say
from medseg.cli.config import MedsegCLI
from medseg.cli.reading import FOR_ONE_COMMAND
from medseg.errors import InterruptionError, UsageError
from medseg.machine.dotted import Trust
from medseg.machine.hardware import keep_freed_memory
from medseg.metrics.table import take_in
from medseg.patches.datamodule import VolumesDataModule
from medseg.segmenter import Segmenter
from medseg.store.identity import identity
from medseg.store.store import Store
from medseg.training.belonging import already_seen, require_same_data
from medseg.training.failures import in_sentences
from medseg.training.fit import Trainer, as_list, build_trainer, loggers, quieten, run_fit, usable
from medseg.training.lightning import callbacks_of
from medseg.training.progress import CaseProgress
from medseg.training.signing import UnequalDataError
from medseg.training.task import SegmentationTask, judge_of


def run_lightning(words: Sequence[str]) -> int:
    """Run ``fit``, ``validate`` or ``test``, which the first word names, and give the exit status.

    Raises:
        UsageError: The config or the command line is at fault.
        MedsegError: The data or a checkpoint is at fault.
    """
    keep_freed_memory()
    quieten()
    return {"fit": fit, "validate": validate, "test": test}[words[0]](words[1:])


@dataclass(frozen=True)
class Fit:
    """A training that is built but for its trainer, and not begun; its config lacks what is for this command alone."""

    run: Run
    config: dict[str, Any]
    data: VolumesDataModule
    task: SegmentationTask
    options: Namespace

    def trainer(self) -> Trainer:
        """Build a trainer of its options, which takes the devices that it asks for.

        Raises:
            UsageError: An option is wrong, or means a device or a package that is not here.
        """
        return build_trainer(self.run, self.config, **vars(self.options.trainer))


def build_fit(words: Sequence[str]) -> Fit:
    """Parse what follows ``medseg fit`` and build it; nothing is written.

    Raises:
        UsageError: The config, the loss, the network or an option is at fault.
        MedsegError: The data are.
    """
    cli = MedsegCLI("fit", words)
    built = cli.built()
    _ = built.data.cases  # the fold exists and the cases are there
    told = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    config = {name: value for name, value in told.items() if name not in FOR_ONE_COMMAND}
    return Fit(Run(Path(built.run)), config, built.data, built.model, built)


def fit(words: Sequence[str]) -> int:
    """``medseg fit``; returns the exit status."""
    built = build_fit(words)
    options = vars(built.options.trainer)
    minutes, resume = built.options.checkpoint_minutes, built.options.ckpt_path
    try:
        run_fit(built.run, built.config, built.task, built.data, resume=resume, minutes=minutes, **options)
    except (InterruptionError, UnequalDataError) as error:  # of what every process knows, one tells
        if getattr(rank_zero_only, "rank", 0) == 0:
            raise
        return 0 if isinstance(error, InterruptionError) else error.exit_status
    return 0


def validate(words: Sequence[str]) -> int:
    """``medseg validate``; returns the exit status."""
    scored = _finished(words, "validate")
    with in_sentences(scored.trainer, scored.data.plan):
        scored.trainer.validate(judge_of(scored.segmenter), scored.data)
    return 0


def test(words: Sequence[str]) -> int:
    """``medseg test``: predict the held-back cases from their files, score and report them; returns the exit status."""
    from medseg.inference.writer import WritePredictions
    from medseg.report.evaluate import require_lengths
    from medseg.report.run_report import report_test

    scored = _finished(words, "test")
    require_lengths(scored.scoring["tolerance_mm"])
    store, trainer = Store(scored.data.store), scored.trainer
    console = next((one.console for one in callbacks_of(trainer) if isinstance(one, CaseProgress)), None)
    written = WritePredictions(scored.run.test.predictions, store, scored.segmenter, console)
    judge = judge_of(scored.segmenter)
    judge.judges_tests = scored.data.tests_voxels = False  # what is scored is what was written, on the images' grids
    callbacks_of(trainer).append(written)
    with in_sentences(trainer, scored.data.plan):
        trainer.test(judge, scored.data, verbose=False)
    status = report_failures(written.failures)
    trainer.strategy.barrier()  # the first process scores what all of them have written
    if trainer.is_global_zero:
        about = {"note": scored.note, "steps": scored.steps}
        evaluation = report_test(scored.run, store, scored.data.cases.val, about, console=console, **scored.scoring)
        status = max(status, evaluation.exit_status)
    trainer.strategy.barrier()
    return status


@dataclass(frozen=True)
class _Finished:
    run: Run
    data: VolumesDataModule
    segmenter: Segmenter
    trainer: Trainer
    note: str
    steps: int
    scoring: dict[str, Any]


def _finished(words: Sequence[str], command: str) -> _Finished:
    """A trained network, the cases that it is to be scored on, and a trainer that deals them out to processes."""
    cli = MedsegCLI(command, words)
    options = cli.config
    take_in(options.get("metric"))
    run = Run(Path(options.run))
    checkpoint = read_checkpoint(run.checkpoint(options.ckpt_path))
    segmenter = Segmenter.from_checkpoint(checkpoint, Trust.of(options.trust))
    built = cli.built()
    data: VolumesDataModule = built.data
    require_same_data(checkpoint.plan, data, prepared=command == "validate")
    note = _on_training_cases(checkpoint, data, allowed=options.on_training_cases)
    chosen = {**vars(built.trainer), "default_root_dir": str(run.path), "enable_checkpointing": False}
    chosen["logger"] = loggers(chosen["logger"], run) if chosen["logger"] else False
    callbacks = as_list(chosen["callbacks"])
    if chosen["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
        chosen["callbacks"] = [*callbacks, CaseProgress()]
    with usable(chosen):
        trainer = Trainer(**chosen)
    if trainer.is_global_zero:
        dice = checkpoint.scores.get("val/dice", float("nan"))
        told = f"{checkpoint.path} is scored, of step {checkpoint.steps} with val/dice {dice:.4f}"
        say(told + (f"; {note}" if note else ""))
        if checkpoint.cases and (moved := data_differs(checkpoint.cases, identity(Store(data.store)))):
            say(f"{data.store} is not as the store that it was trained on: {moved[0]}")
    scoring = {"tolerance_mm": options.nsd_mm, "element": options.surfaces} if command == "test" else {}
    return _Finished(run, data, segmenter, trainer, note, checkpoint.steps, scoring)


def _on_training_cases(checkpoint: Checkpoint, data: VolumesDataModule, *, allowed: bool) -> str:
    """Which of the cases to score the network was trained on, in words; empty for none, or if nobody knows.

    Raises:
        UsageError: There are some, and nobody allowed it.
    """
    note = already_seen(checkpoint.trained_on, data)
    before = {name: checkpoint.config.get(f"data.{name}") for name in ("fold", "folds", "seed")}
    moved = [name for name, value in before.items() if value is not None and value != getattr(data, name)]
    if not note and moved and not checkpoint.trained_on:  # as in checkpoints of 0.1.0
        was = ", ".join(f"data.{name} was {before[name]} and is {getattr(data, name)}" for name in moved)
        note = f"cases may have been trained on: {was}"
    if note and not allowed:
        raise UsageError(note, "Take the split that it was trained with, or allow it with --on_training_cases true")
    return note
