"""A run: the one folder a training writes, and where everything in it is."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from medseg.errors import CheckpointError, UsageError
from medseg.plan.plan import Plan
from medseg.report.evaluate import Evaluation, evaluate
from medseg.report.html import write_report
from medseg.report.matching import References
from medseg.report.tables import print_summary
from medseg.store.store import Store


@dataclass(frozen=True)
class Run:
    """The folder of one training: ``config.yaml``, ``metrics.csv``, ``checkpoints/``, ``test/``, ``report.html``."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where ``best.ckpt`` and ``last.ckpt`` are."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Where `medseg test` writes label files."""
        return self.path / "test" / "predictions"

    def checkpoint(self, name: str | None) -> Path:
        """The checkpoint called ``best`` (the default) or ``last``, or any path.

        Raises:
            CheckpointError: There is none.
        """
        path = self.checkpoints / f"{name or 'best'}.ckpt" if name in (None, "best", "last") else Path(str(name))
        if not path.is_file():
            raise CheckpointError(path, "does not exist", "Train first, or name the folder of the run with --run")
        return path

    def prepare_fit(self, resume_from: str | None) -> None:
        """Refuse to train over another training.

        Raises:
            UsageError: The folder holds checkpoints and the run is not asked to go on from one.
            CheckpointError: It is asked to go on from one that does not exist.
        """
        if resume_from is not None:
            self.checkpoint(resume_from)
        elif (self.checkpoints / "last.ckpt").exists():
            raise UsageError(
                f"{self.path} already holds a training", "Go on with --ckpt_path last, or choose another --run"
            )

    def report(self, store: Store, cases: Sequence[str], plan: Plan) -> Evaluation:
        """Score the predictions of `medseg test` against the source files, print the table, write the report.

        Args:
            store: Knows where each reference is.
            cases: Those that were predicted.
            plan: Names the organs.
        """
        infos = {case: store.info(case) for case in cases}
        evaluation = evaluate(
            self.predictions,
            References(
                labels={case: Path(str(info.label)) for case, info in infos.items()},
                images={case: Path(info.images[0]) for case, info in infos.items()},
                organs=plan.labels,
                ignore=plan.ignore,
                all_expected=True,
                annotated={case: info.annotated for case, info in infos.items() if info.annotated is not None},
            ),
            output=self.path / "test",
            cases=cases,
        )
        write_report(
            evaluation,
            self.path / "report.html",
            run=self.path,
            plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
            commands=(
                f"medseg fit --config {self.path / 'config.yaml'} --run {self.path}",
                f"medseg test --run {self.path}",
            ),
            title=plan.name,
        )
        print_summary(evaluation)
        return evaluation


class _AppendingWriter(ExperimentWriter):
    """Goes on below the rows of an interrupted run, which Lightning's own writer would delete."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class RunCsvLogger(CSVLogger):
    """Lightning's CSV logger, writing ``metrics.csv`` into the run folder itself."""

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run.parent, name=run.name, version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of this process."""
        if not isinstance(self._experiment, ExperimentWriter):
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment
