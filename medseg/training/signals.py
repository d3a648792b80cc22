"""Signals that ask a training to stop: noted at once, obeyed between two steps."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from medseg.errors import InterruptionError

STOP = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows knows no SIGUSR1
REQUEUE = tuple(signum for signum in STOP if signum.name.startswith("SIGUSR"))

_log = logging.getLogger(__name__)


class StopSignals:
    """Catches the signals of `STOP` while a training runs.

    The first one is only noted: whoever asks for `received` between two steps finds it there. A second SIGINT stops at
    once, for a user who cannot wait for the end of a step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Catch them, in place of whoever did; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in STOP:
            before = signal.signal(signum, self._note)
            self._before.setdefault(signum, before)

    def restore(self) -> None:
        """Give them back to whoever had them before the first `install`."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise InterruptionError(signum, "at once", "Go on from the last checkpoint with --ckpt_path last")
        self.received = self.received or signal.Signals(signum)


def requeue() -> bool:
    """Ask SLURM to start this job again from its beginning, as its script says.

    Returns:
        Whether there is such a job and SLURM accepted.
    """
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        _log.warning("job %s could not be requeued (%s)", job, error)
        return False
    if done.returncode:
        _log.warning("job %s could not be requeued (%s)", job, done.stderr.strip())
    return done.returncode == 0
