"""Processes that train together: when one dies, the others say so and of what, and do not wait for it for ever."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import Strategy

from medseg.machine.crew import how_it_ended
from medseg.training.lightning import ScriptLauncher, change_launcher, on_death

PERIOD_S = 5.0
PATIENCE_S = 30.0


class WatchPeers(Callback):
    """Ends this process with a sentence when another one of the training has been silent for `PATIENCE_S`.

    Collective operations wait for half an hour, which a slow validation may need; a dead process is told apart from a
    slow one by its heartbeat, a counter in the key-value store through which the processes found each other. Each
    watches its neighbour and tells everyone. One thread asks the store, for whose answer it may wait for ever where the
    process that keeps it has been stopped; another counts how long there was no news.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._launcher: object = None
        self._answers = 0  # of the store
        self._refused = False  # by the store, the last time it was asked
        self._beat = 0  # of the neighbour
        self._lost = 0  # one more than the number of the process that somebody has found dead

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the threads, where there is anybody to watch."""
        if trainer.world_size == 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            return
        self._over.clear()
        self._launcher = trainer.strategy.launcher
        rank, neighbour = trainer.global_rank, (trainer.global_rank + 1) % trainer.world_size
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        # a connection of its own: calls on the training's one wait for those of the main thread
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=PATIENCE_S))  # type: ignore[attr-defined]
        for work, words in ((self._ask, (store, rank, neighbour)), (self._watch, (store, neighbour, os.getppid()))):
            threading.Thread(target=work, args=words, daemon=True, name="watch-peers").start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Whoever fails by itself has said so."""
        self._over.set()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The end: from now on silence is no sign of death."""
        self._over.set()

    def _ask(self, store: Any, rank: int, neighbour: int) -> None:
        """Give a sign of life, and hear of those of others."""
        while not self._over.wait(PERIOD_S):
            try:
                store.add(f"medseg/beat/{rank}", 1)
                self._lost = store.add("medseg/lost", 0)
                self._beat = store.add(f"medseg/beat/{neighbour}", 0)
                self._answers, self._refused = self._answers + 1, False
            except RuntimeError:  # the process that keeps the store has gone
                self._refused = True

    def _watch(self, store: Any, neighbour: int, parent: int) -> None:
        """Count the time without news, in own beats: on a machine that is short of time, all are late alike."""
        answers, unanswered, beat, silent = 0, 0.0, 0, 0.0
        while not self._over.wait(PERIOD_S):
            if self._lost or os.getppid() != parent:
                self._end(max(self._lost - 1, 0))
            elif self._answers == answers:
                unanswered += PERIOD_S
                if unanswered > (3 * PERIOD_S if self._refused else PATIENCE_S):
                    self._end(0)
            else:
                answers, unanswered = self._answers, 0.0
                silent = 0.0 if self._beat != beat else silent + PERIOD_S
                beat = self._beat
                if silent > PATIENCE_S:
                    store.set("medseg/lost", str(neighbour + 1))
                    self._end(neighbour)

    def _end(self, dead: int) -> None:
        if not self._over.is_set():
            leave(f"process {dead} of this training has died or does not answer any more; {TOGETHER}", self._launcher)


def any_process(trainer: Trainer, *decisions: bool) -> tuple[bool, ...]:
    """Of each decision whether any process takes it; all of them must ask at the same moment, and a GPU waits once."""
    if trainer.world_size == 1:
        return decisions
    taken = trainer.strategy.reduce(torch.tensor(decisions, device=trainer.strategy.root_device).int(), reduce_op="max")
    return tuple(map(bool, taken.tolist()))


class ExplainingLauncher(ScriptLauncher):
    """Lightning's launcher of one process per device, which says why it ends all of them when one has died.

    Lightning's own kills the process that the user started as well, so that nobody is left to say a word.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, then run ``function`` in this one."""

        def observed(*args: Any, **kwargs: Any) -> Any:
            on_death(self.leave)
            return function(*args, **kwargs)

        return super().launch(observed, *args, trainer=trainer, **kwargs)

    def obituary(self, *, patience_s: float) -> str:
        """`obituary` of the processes that were started, as soon as there is one; empty if there is none in time."""
        until = time.monotonic() + patience_s
        while True:
            said = obituary([process.poll() for process in self.procs])
            if said or not self.procs or time.monotonic() > until:
                return said
            time.sleep(0.1)

    def leave(self) -> NoReturn:
        """End all of them and this process, with a sentence about the one that died."""
        leave(self.obituary(patience_s=1), self)


def explain_deaths(strategy: Strategy) -> None:
    """Let a strategy that starts processes by Lightning's launcher do so by ours."""
    change_launcher(
        strategy, lambda theirs: ExplainingLauncher(theirs.cluster_environment, theirs.num_processes, theirs.num_nodes)
    )


def leave(sentence: str, launcher: object = None) -> NoReturn:
    """End this process at once, and those it started: its main thread may wait in a collective operation for ever."""
    sys.stderr.write(f"medseg: {sentence}\n")
    sys.stderr.flush()
    if isinstance(launcher, ScriptLauncher):
        for process in launcher.procs:
            process.kill()
    os._exit(1)


def obituary(statuses: Sequence[int | None]) -> str:
    """Who of the processes 1, 2, ... has died, and of what; of several, one that a signal ended: others follow it.

    Args:
        statuses: Their exit statuses as `subprocess.Popen` has them, None for those that are alive.

    Example:
        >>> obituary([None, 0])
        ''
        >>> print(obituary([3, 0]).split(";")[0])
        process 1 of this training ended with exit status 3, see its own message
        >>> print(obituary([1, -9]).split(";")[0])
        process 2 of this training was ended by SIGKILL, as the system does when memory is short
    """
    dead = [(status, rank) for rank, status in enumerate(statuses, start=1) if status]
    if not dead:
        return ""
    status, rank = min(dead)
    how = how_it_ended(status) + ("" if status < 0 else ", see its own message")
    return f"process {rank} of this training {how}; {TOGETHER}"


TOGETHER = "the others cannot go on without it. Start all of them again with --ckpt_path last."
