"""What begins a training in a run folder, and what reports its test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback

from medseg.checkpoints.reading import read_to_go_on
from medseg.checkpoints.run import Run
from medseg.errors import DataError, UsageError
from medseg.plan.plan import Plan
from medseg.report.evaluate import Evaluation, evaluate
from medseg.report.html import write_report
from medseg.report.matching import References
from medseg.report.rows import write_text
from medseg.report.tables import print_summary
from medseg.store.store import Store
from medseg.training.metrics_log import forget_steps


@dataclass(frozen=True)
class Start:
    """Where a training begins: with a checkpoint and the steps that it has behind it, or with neither."""

    checkpoint: Path | None
    step: int


def prepare_fit(run: Run, resume_from: str | None) -> Start:
    """Find what to go on from, and take what came after it out of the log.

    ``last`` in a folder without checkpoints begins anew, so that a script may always ask for it; a job that SLURM
    requeued goes on without asking.

    Args:
        run: Where it will be.
        resume_from: What ``--ckpt_path`` says.

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
    start = Start(None, 0)
    if resume_from == "last" and not found:
        rank_zero_info(f"{run.path} holds no checkpoint yet: training begins with the first step")
    elif resume_from is not None:
        # a kill between the very first best.ckpt and last.ckpt leaves only the one, which holds as much
        path = found[0] if resume_from == "last" else run.checkpoint(resume_from)
        start = Start(path, read_to_go_on(path).steps)
        rank_zero_info(f"training goes on after step {start.step}, from {path}")
    rank_zero_only(forget_steps)(run.metrics, since=start.step)
    return start


def report_test(run: Run, store: Store, cases: Sequence[str], plan: Plan) -> Evaluation:
    """Score the predictions of `medseg test` against the source files, print the table, write the report.

    Args:
        run: Whose test.
        store: Knows where each reference is.
        cases: Those that were predicted.
        plan: Names the organs.
    """
    infos = {case: store.info(case) for case in cases}
    evaluation = evaluate(
        run.test.predictions,
        References(
            labels={case: Path(str(info.label)) for case, info in infos.items()},
            images={case: Path(info.images[0]) for case, info in infos.items()},
            organs=plan.labels,
            ignore=plan.ignore,
            all_expected=True,
            annotated={case: info.annotated for case, info in infos.items() if info.annotated is not None},
        ),
        output=run.test.path,
        cases=cases,
    )
    write_report(
        evaluation,
        run.report,
        run=run,
        plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
        commands=(
            f"medseg fit --config {run.config} --run {run.path}",
            f"medseg test --run {run.path}",
        ),
        title=plan.name,
    )
    print_summary(evaluation)
    return evaluation


def _require_writable(folder: Path) -> None:
    try:  # in what is there already: a run that is refused for another reason leaves no folder behind
        there = next(place for place in (folder, *folder.parents) if place.exists())
        there.mkdir(exist_ok=True)  # which a file does not allow
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DataError(folder, f"cannot be written ({error.strerror})", "Choose another folder with --run") from None


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` of the run folder, whole or not at all."""

    def __init__(self, parser: Any, config: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, in the first process; with what was left out, and where no logger would."""
        path = Path(trainer.default_root_dir) / self.config_filename
        try:
            write_text(path, self.parser.dump(self.config, skip_none=False))
        except OSError as error:
            remedy = "Free space, or choose another folder with --run"
            raise DataError(path, f"could not be written ({error.strerror})", remedy) from None
