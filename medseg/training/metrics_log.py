"""``metrics.csv`` of a run: goes on over interruptions, and no kill and no full disk takes away what it holds."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from medseg.checkpoints.run import Run
from medseg.errors import MachineError
from medseg.machine.files import whole

Row = Mapping[str, Any]
_REMEDY = "Free space and go on with --ckpt_path last"


class RunCsvLogger(CSVLogger):
    """Lightning's CSV logger, writing ``metrics.csv`` into the run folder itself."""

    def __init__(self, run: Run) -> None:
        super().__init__(save_dir=run.path.parent, name=run.path.name, version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of this process."""
        if not isinstance(self._experiment, ExperimentWriter):
            self._experiment = _CarefulWriter(log_dir=self.log_dir)
        return self._experiment


class RateLog(LearningRateMonitor):
    """Lightning's log of the learning rate, on the step that it belongs to.

    Loggers have a count of steps of their own, which Lightning 2.6 restores one too low from the end of a run.
    """

    def __init__(self) -> None:
        super().__init__("step")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Put the count right, for all loggers; log."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        super().on_train_batch_start(trainer, pl_module, *batch)


def forget_steps(path: Path, *, since: int) -> None:
    """Take out of a log the steps that a resumed run does again, and a line that a kill cut short.

    Args:
        path: ``metrics.csv``; one that does not exist is nothing to do.
        since: The first step, counted from 0, to take out.
    """
    if path.is_file():
        keys, rows = _read(path)
        _write(path, keys, (row for row in rows if int(row["step"]) < since))


class _CarefulWriter(ExperimentWriter):
    """Goes on below the rows of an interrupted run, which Lightning's own writer would delete."""

    def save(self) -> None:
        """Append the new rows; where they bring a new column, write the file anew beside itself.

        Raises:
            MachineError: The disk is full; what the file held is whole.
        """
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        try:
            if self._record_new_keys() or not path.exists():
                rows = _read(path)[1] if path.exists() else []
                _write(path, self.metrics_keys, [*rows, *self.metrics])
            else:
                _append(path, self.metrics_keys, self.metrics)
        except OSError as error:
            problem = f"cannot be written ({error.strerror}); what it held before is whole"
            raise MachineError(path, problem, _REMEDY) from None
        self.metrics = []

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            self.metrics_keys = _read(path)[0]


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and the rows that are whole."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows: list[Row] = [row for row in reader if None not in row.values() and row.get("step", "").isdigit()]
        return list(reader.fieldnames or ()), rows


def _write(path: Path, keys: Iterable[str], rows: Iterable[Row]) -> None:
    with whole(path, remedy=_REMEDY) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(keys))
        writer.writeheader()
        writer.writerows(rows)


def _append(path: Path, keys: Iterable[str], rows: Iterable[Row]) -> None:
    whole = path.stat().st_size
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, fieldnames=list(keys)).writerows(rows)
    except OSError:
        os.truncate(path, whole)
        raise
