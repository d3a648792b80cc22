"""``metrics.csv`` of a run: goes on over interruptions, and no kill and no full disk takes away what it holds."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import Logger

from medseg.checkpoints.run import Run
from medseg.errors import MachineError
from medseg.machine.files import whole
from medseg.training.lightning import count_steps_right

Row = Mapping[str, Any]
_REMEDY = "Free space and go on with --ckpt_path last"

_HELD = 100
"""Rows that wait for the next write, which a checkpoint brings about too."""


class RunLog(Logger):
    """The run's own record, in the first process; other loggers are beside it.

    A table that Lightning's logger of such files would begin anew goes on below its rows.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self._keys: list[str] | None = None  # the columns, once the file is known
        self._rows: list[Row] = []

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.run.path.name

    @property
    def version(self) -> str:
        """None: a run is its folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.run.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take a row."""
        self._rows.append({**metrics, "step": step or 0})
        if len(self._rows) >= _HELD:
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config of the run has them."""

    @rank_zero_only
    def save(self) -> None:
        """Append the new rows; where they bring a new column, write the file anew beside itself.

        Raises:
            MachineError: The disk is full; what the file held is whole.
        """
        if not self._rows:
            return
        path = self.run.metrics
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._keys is None:
                self._keys = _read(path)[0] if path.exists() else []
            keys = sorted({*self._keys, *(key for row in self._rows for key in row)})
            if keys != self._keys or not path.exists():
                _write(path, keys, [*(_read(path)[1] if path.exists() else []), *self._rows])
            else:
                _append(path, keys, self._rows)
        except OSError as error:
            problem = f"cannot be written ({error.strerror}); what it held before is whole"
            raise MachineError(path, problem, _REMEDY) from None
        self._keys, self._rows = keys, []

    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


class RateLog(LearningRateMonitor):
    """Lightning's log of the learning rate, on the step that it belongs to."""

    def __init__(self) -> None:
        super().__init__("step")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Put the count right, for all loggers; log."""
        count_steps_right(trainer)
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
