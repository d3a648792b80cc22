"""Jobs run to their end, however often that takes: the finished are kept, the interrupted go on, the dead are named."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from medseg.checkpoints.run import Run
from medseg.errors import listed
from medseg.experiments.executors import Executor, Handle
from medseg.experiments.job import Job, State
from medseg.report.record import read_columns
from medseg.report.tables import console_table, tell

_GLANCE_S = 1.0


@dataclass(frozen=True)
class JobEnd:
    """What became of a job: why it has no result, None if it has; whether an earlier sweep had finished it."""

    job: Job
    failure: str | None
    kept: bool = False


def run_sweep(jobs: Sequence[Job], executor: Executor, *, console: Console | None = None) -> tuple[JobEnd, ...]:
    """Do every job that is not done yet.

    A sweep remembers nothing: whatever it needs is read from the run folders, so the same call goes on where an earlier
    one was stopped. A job that fails is named and the others go on. An interrupt or SIGTERM ends all processes.

    Returns:
        What became of each job, in their order.

    Raises:
        UsageError: A folder holds a run of other settings; nothing was started.
        DataError: A folder holds a run on other data; nothing was started.
    """
    console = console or Console(stderr=True)
    unknown = [job.title for job in jobs if not job.claim() and job.data is not None]
    if unknown:
        tell(console, f"Whether the data are as they were cannot be told of {listed(unknown)}: they do not note them.")
    kept = {job.run for job in jobs if job.read_state() is State.DONE}
    handles: dict[Path, Handle] = {}
    with _terminated_as_interrupted():
        try:
            for job in jobs:
                if job.run not in kept:
                    handles[job.run] = executor.submit(job)
            _watch(jobs, handles, console)
        finally:
            _stop(handles)
    return tuple(
        JobEnd(job, None, kept=True) if job.run in kept else JobEnd(job, handles[job.run].failure()) for job in jobs
    )


def _stop(handles: Mapping[Path, Handle]) -> None:
    """End what still runs, all at the same time, each being given a while."""
    for handle in handles.values():
        if not (handle.running() or handle.done()):  # first, so that none of them takes the place of one that ends
            handle.stop()
    threads = [threading.Thread(target=handle.stop) for handle in handles.values() if not handle.done()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, in the main thread, which alone can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(jobs: Sequence[Job], handles: Mapping[Path, Handle], console: Console) -> None:
    """Tell how all jobs stand until they have ended: in a terminal by a table that stays, else by a line per change."""
    said: dict[Path, str] = {}
    live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
    with live or nullcontext():
        while True:
            finished = all(handle.done() for handle in handles.values())
            words = [(job, _word(job, handles.get(job.run))) for job in jobs]
            if live:
                rows = ((job.title, word, *progress_of(job.run)) for job, word in words)
                live.update(console_table(("job", "state", "step", "val/dice"), rows), refresh=True)
            for job, word in words:
                if live is None and said.get(job.run) != word:
                    said[job.run] = word
                    step, dice = progress_of(job.run)
                    detail = f", val/dice {dice} at step {step}" if dice else ""
                    tell(console, f"{job.title}: {word}{detail}")
            if finished:
                return
            time.sleep(_GLANCE_S)


def _word(job: Job, handle: Handle | None) -> str:
    if handle is None:
        return "done before"
    if handle.done():
        return "failed" if handle.failure() else "done"
    if not handle.running():
        return job.read_state().value
    return "training" if job.read_state() in (State.NEW, State.INTERRUPTED) else "testing"


def progress_of(run: Path) -> tuple[str, str]:
    """The last step and the last ``val/dice`` that a run has written, empty where there is none yet."""
    columns = read_columns(Run(run).metrics)
    steps = [curve[-1][0] for curve in columns.values()]
    scores = columns.get("val/dice")
    return f"{max(steps):.0f}" if steps else "", f"{scores[-1][1]:.3f}" if scores else ""


def print_failures(ends: Sequence[JobEnd], console: Console | None = None) -> None:
    """Name every job that failed, its last sentence and its log."""
    console = console or Console()
    failed = [end for end in ends if end.failure]
    if failed:
        console.print(f"[bold]{len(failed)} of {len(ends)} jobs failed:[/bold]")
    tell(console, *(f"  {end.job.title}: {end.failure}. See {end.job.log}" for end in failed))
