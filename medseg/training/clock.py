"""What training costs: the time that a step waits for data and that it computes, and memory."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from medseg.machine.hardware import peak_memory_bytes

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
