"""What a training writes down: metrics.csv, which no kill takes away, the learning rate, and what a step costs."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import Logger

from medseg.checkpoints.run import Run
from medseg.errors import MachineError
from medseg.machine.files import whole
from medseg.machine.hardware import peak_memory_bytes
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


_WORTH_A_WORD_S = 5.0  # of an epoch; below that nobody waits


class StepClock(Callback):
    """Logs what training costs: seconds of a step, seconds since the start, memory; says so when data are slow.

    Per epoch, ``time/data_s`` and ``time/compute_s`` are a step's mean, ``time/compute_median_s`` its median; with each
    validation, ``time/elapsed_s`` counts from the start of training, interruptions left out; ``memory/peak_gib`` is
    what `peak_memory_bytes` says. Waiting for data is what the loader says of itself: moving a batch to the device and
    augmenting it there are computing. Of a loader that is not medseg's nobody knows, all its time is computing.

    Args:
        tolerated: Share of the time that data may take without a word.
    """

    def __init__(self, tolerated: float = 0.1) -> None:
        self.tolerated = tolerated
        self._finished: float | None = None
        self._waited_before = 0.0  # as the loader counts
        self._waited = 0.0
        self._computed: list[float] = []
        self._begun: float | None = None
        self._earlier = 0.0  # seconds of interrupted sessions

    def state_dict(self) -> dict[str, Any]:
        """The seconds that have passed, for the session that goes on."""
        return {"elapsed_s": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._earlier = float(state_dict["elapsed_s"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The start."""
        self._begun = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the time beside the scores."""
        if not trainer.sanity_checking:
            pl_module.log("time/elapsed_s", self._elapsed(), rank_zero_only=True)

    def _elapsed(self) -> float:
        return self._earlier + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new count."""
        self._finished, self._waited, self._computed = None, 0.0, []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch of an epoch is here; what came before was the start of the loader."""
        if self._finished is None:
            self._finished, self._waited_before = time.perf_counter(), _waited_s(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        now, waited = time.perf_counter(), _waited_s(trainer)
        self._waited += waited - self._waited_before
        self._computed.append(now - (self._finished or now) - (waited - self._waited_before))
        self._finished, self._waited_before = now, waited

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is nobody's waiting."""
        self._finished = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log them, and say where the time went if it went to the data."""
        if not self._computed:
            return
        computed, steps = sum(self._computed), len(self._computed)
        pl_module.log("time/data_s", self._waited / steps, sync_dist=True)
        pl_module.log("time/compute_s", computed / steps, sync_dist=True)
        pl_module.log("time/compute_median_s", median(self._computed), sync_dist=True)
        pl_module.log("memory/peak_gib", peak_memory_bytes(pl_module.device) / 2**30, rank_zero_only=True)
        share = self._waited / max(1e-9, self._waited + computed)
        if share > self.tolerated and self._waited > _WORTH_A_WORD_S:
            rank_zero_info(
                f"{share:.0%} of epoch {trainer.current_epoch} was spent waiting for data: give it more processes with "
                "--data.workers, or keep the volumes in memory with --data.cache memory"
            )


def _waited_s(trainer: Trainer) -> float:
    """Seconds that this process has waited for training batches so far."""
    return float(getattr(trainer.train_dataloader, "waited_s", 0.0))
