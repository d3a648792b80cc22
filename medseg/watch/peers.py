"""Processes that train together and look after each other: when one dies, the others do not wait for it for ever."""

from __future__ import annotations

import os
import sys
import threading
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

PERIOD_S = 5.0
PATIENCE_S = 40.0


class WatchPeers(Callback):
    """Ends this process with a sentence when another one of the training has been silent for `PATIENCE_S`.

    Collective operations wait for half an hour, which a slow validation may need; a dead process is told apart from a
    slow one by its heartbeat, a counter in the key-value store through which the processes found each other. Each
    watches its neighbour and tells everyone.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the thread, where there is anybody to watch."""
        if trainer.world_size == 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            return
        self._over.clear()
        watch = (trainer.global_rank, trainer.world_size, os.getppid())
        self._thread = threading.Thread(target=self._watch, args=watch, daemon=True, name="watch-peers")
        self._thread.start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Whoever fails by itself has said so."""
        self._over.set()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The end: from now on silence is no sign of death."""
        self._over.set()

    def _watch(self, rank: int, ranks: int, parent: int) -> None:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        # a connection of its own: calls on the training's one wait for those of the main thread
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=PATIENCE_S))  # type: ignore[attr-defined]
        neighbour = (rank + 1) % ranks
        heard, silent = -1, 0.0  # counted in own beats: on a machine that is short of time, all are late alike
        while not self._over.wait(PERIOD_S):
            try:
                store.add(f"medseg/beat/{rank}", 1)
                lost = store.add("medseg/lost", 0)
                beat = store.add(f"medseg/beat/{neighbour}", 0)
            except RuntimeError:  # the process that keeps the store has gone
                lost, beat = int(silent >= 2 * PERIOD_S), heard
            silent = 0.0 if beat != heard else silent + PERIOD_S
            heard = beat
            if not lost and silent > PATIENCE_S:
                lost = neighbour + 1
                store.set("medseg/lost", str(lost))
            if lost or os.getppid() != parent:
                self._end(max(lost - 1, 0))

    def _end(self, dead: int) -> None:
        if self._over.is_set():
            return
        _leave(
            f"medseg: process {dead} of this training has died; the others cannot go on without it. "
            "Start all of them again with --ckpt_path last.\n"
        )


def _leave(sentence: str) -> NoReturn:
    """End at once: the main thread may be waiting in a collective operation that nothing else ends."""
    sys.stderr.write(sentence)
    sys.stderr.flush()
    os._exit(1)
