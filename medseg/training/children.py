"""The processes that one training starts on its machine: when one dies, it is said which, and of what."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.strategies import Strategy

from medseg.machine.crew import how_it_ended
from medseg.training.lightning import ScriptLauncher, change_launcher, on_death


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
