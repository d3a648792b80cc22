"""A job in the making: `medseg fit`, then `medseg test`, each a process of its own whose words go to the job's log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.checkpoints.run import Run
from medseg.errors import DataError
from medseg.experiments.job import LOCK, Job, State
from medseg.machine.crew import how_it_ended
from medseg.machine.documents import read_document
from medseg.machine.dotted import Trust
from medseg.machine.files import locked

PROGRAM = (sys.executable, "-m", "medseg")
"""What a job's commands begin with."""

_PATIENCE_S = 15.0  # for a training to end by itself once it is asked to


class Trial:
    """Does a job in this process's children, which get some variables more; calling it waits for them."""

    def __init__(self, job: Job, environment: Mapping[str, str] | None = None) -> None:
        self.job = job
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._program = PROGRAM  # travels along to other machines

    def __call__(self) -> str | None:
        """Do what is left of the job.

        Returns:
            Why it failed, in a sentence; None if it is done.
        """
        try:
            with locked(self.job.run / LOCK):
                return self._fit() or self._test()
        except DataError as error:
            return str(error)

    def stop(self) -> None:
        """End its processes; the job goes on from its last checkpoint another time."""
        self._stopped = True
        if self._process is not None:
            _end(self._process)

    def _fit(self) -> str | None:
        state = self.job.read_state()
        if state in (State.TRAINED, State.DONE):
            return None
        if state is State.NEW:
            self.job.clear()
        resumed = ["--ckpt_path", "last"] if state is State.INTERRUPTED else []
        failure = self._medseg(["fit", *self.job.words, "--run", str(self.job.run), *resumed])
        if failure is None:
            self.job.mark_trained()
        return failure

    def _test(self) -> str | None:
        if self.job.read_state() is State.DONE:
            return None
        failure = self._medseg(["test", "--run", str(self.job.run), "--ckpt_path", "best"])
        return None if self.job.read_state() is State.DONE else failure  # cases at fault are told by its summary.json

    def _medseg(self, words: Sequence[str]) -> str | None:
        """Run one command; its last sentence if it fails."""
        with self.job.log.open("ab") as log:
            begin = log.tell()
            log.write(f"$ {shlex.join(['medseg', *words])}\n".encode())
            log.flush()
            if self._stopped:
                return "was stopped"
            self._process = subprocess.Popen(
                [*self._program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", **self.environment},
                start_new_session=True,  # so that its data workers end with it
            )
            if self._stopped:  # between the question above and the start
                _end(self._process)
            status = self._process.wait()
        self._process = None
        return "was stopped" if self._stopped else explain_exit(status, self.job.log, begin)


def trusted_in(run: Path) -> Trust:
    """The network outside medseg that a sweep's own words named, as the config of a finished training tells."""
    config = read_document(Run(run).config)
    net = str(config.get("model", {}).get("net", "")) if isinstance(config, dict) else ""
    return Trust.of([net] if "." in net else [])


def explain_exit(status: int, log: Path, begin: int = 0) -> str | None:
    """Say why a command failed: the signal that killed it, or its last sentence, from a byte of its log on."""
    if status == 0:
        return None
    if status < 0:
        return how_it_ended(status)
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix("medseg: ") for line in lines if line.startswith("medseg: ")]
    return (ours or lines[1:] or [f"{how_it_ended(status)} and without a word"])[-1].rstrip(".")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its workers to end, and make them."""
    for wish in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process, wish)
        deadline = time.monotonic() + _PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is not None:
            break
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], wish: signal.Signals) -> None:
    try:
        os.killpg(process.pid, wish)
    except (ProcessLookupError, PermissionError):  # all of it has ended
        return
