"""Work on many cases at once: bounded, interruptible, and with a name for every failure."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medseg.errors import DataError, MedsegError

T = TypeVar("T")
R = TypeVar("R")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MEMORY_SHARE = 0.7  # of the free memory; the rest is for the page cache and everyone else


class MachineError(DataError):
    """Not a case but the machine is at fault, such as a full disk: no other case would fare better."""


@dataclass
class Outcome(Generic[R]):
    """What became of each task, by name."""

    results: dict[str, R] = field(default_factory=dict)
    failures: dict[str, MedsegError] = field(default_factory=dict)

    def or_raise(self, where: Path) -> dict[str, R]:
        """The results, or one error that tells every failure.

        Raises:
            DataError: At least one task failed.
        """
        if not self.failures:
            return self.results
        if len(self.failures) == 1:
            raise next(iter(self.failures.values()))
        told = "".join(f"\n  {self.failures[name]}" for name in sorted(self.failures))
        raise DataError(
            where, f"has {len(self.failures)} cases that cannot be used:{told}\n", "Mend or remove them, then run again"
        )


def run_tasks(work: Callable[[T], R], tasks: Mapping[str, T], *, workers: int, title: str) -> Outcome[R]:
    """Do the same work for every task in worker processes, with a progress bar on a terminal.

    A case that fails is noted and the others go on. A worker that dies (killed, out of memory) takes nobody along: the
    cases that were in flight are tried again one by one, and the one that kills its worker again is named.

    Args:
        work: A module-level function; raises `MedsegError` when its case is at fault.
        tasks: Case name to argument.
        workers: Processes; 1 works in this process.
        title: What the progress bar says.

    Returns:
        Results and failures by name.

    Raises:
        MachineError: As soon as a task raises it; what is finished stays finished.
    """
    outcome: Outcome[R] = Outcome()
    with _progress(title, len(tasks)) as advance:
        if workers == 1 or len(tasks) == 1:
            for name, task in tasks.items():
                _settle(name, lambda task=task: work(task), outcome)  # type: ignore[misc]
                advance()
            return outcome
        remaining = dict(tasks)
        while remaining:
            suspects = _run_pool(work, remaining, min(workers, len(remaining)), outcome, advance)
            for name in suspects:
                _retry_alone(work, name, remaining.pop(name), outcome)
                advance()
    return outcome


def default_workers(bytes_per_task: int) -> int:
    """As many processes as there are cores for us, fewer if their volumes would not fit into the free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory()
    if free is None or bytes_per_task <= 0:
        return cores
    return max(1, min(cores, int(free * MEMORY_SHARE) // bytes_per_task))


def free_memory() -> int | None:
    """Bytes that may still be taken, by the machine's and the container's account; None where neither tells."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        found += [max(0, int(limit) - used)] if limit != "max" else []
    except OSError:
        pass  # another operating system, or no container
    return min(found) if found else None


def _run_pool(
    work: Callable[[T], R], remaining: dict[str, T], workers: int, outcome: Outcome[R], advance: Callable[[], None]
) -> list[str]:
    """Work until all is done or a worker dies; then name what was in flight. Done tasks leave `remaining`."""
    queue = iter(list(remaining))
    flying: dict[Future[R], str] = {}
    with _single_threaded_children(), _pool(workers) as pool:
        try:
            while True:
                for name in queue:
                    flying[pool.submit(work, remaining[name])] = name
                    if len(flying) > workers:  # one waits at the door so that no worker idles
                        break
                if not flying:
                    return []
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    name = flying[future]
                    _settle(name, future.result, outcome)
                    del flying[future], remaining[name]
                    advance()
        except BrokenProcessPool:
            return sorted(flying.values()) or [next(iter(remaining))]


def _retry_alone(work: Callable[[T], R], name: str, task: T, outcome: Outcome[R]) -> None:
    with _single_threaded_children(), _pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:
            remedy = "Call it under if __name__ == '__main__' in a script, or use 1 worker"
            raise MachineError(name, "cannot be worked on: worker processes do not start here", remedy) from None
        try:
            _settle(name, pool.submit(work, task).result, outcome)
        except BrokenProcessPool:
            outcome.failures[name] = DataError(
                name,
                "twice ended its worker process, most likely for want of memory",
                "Use fewer workers or more memory",
            )


def _settle(name: str, result: Callable[[], R], outcome: Outcome[R]) -> None:
    try:
        outcome.results[name] = result()
    except MachineError:
        raise
    except MedsegError as error:
        outcome.failures[name] = error
    except MemoryError:
        outcome.failures[name] = DataError(name, "needs more memory than there is", "Use fewer workers or more memory")


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)  # the parent was killed: nobody will ask for the result, and a waiting worker would stay for ever


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started meanwhile use one thread each: there are as many of them as cores."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal or total == 0) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
