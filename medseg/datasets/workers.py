"""The same work for many cases in several processes; a process that dies names the case it died of."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medseg.errors import DataError, MedsegError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Done(Generic[R]):
    """What became of one case: a result, or why there is none."""

    name: str
    result: R | None
    failure: MedsegError | None = None


def for_each_case(
    work: Callable[[T], R], tasks: Mapping[str, T], *, workers: int | None = None, title: str = "Working"
) -> Iterator[Done[R]]:
    """Do the same work for every case, in the order in which they finish, with a progress bar on a terminal.

    Every process holds one case at a time, so a death (killed, out of memory, a crash in a library) is known to be that
    case's; the others go on in a fresh process.

    Args:
        work: A module-level function; a `MedsegError` that it raises becomes the case's failure.
        tasks: Case name to argument.
        workers: Processes; None means one for each core that is ours, 1 works in this process.
        title: What the progress bar says.

    Yields:
        A result or a failure for every case. An error that is not a `MedsegError` is a mistake in the work: it is
        raised in this process, and ends another one, whose traceback is on stderr.
    """
    count = min(workers or available_cores(), len(tasks))
    finished = _in_this_process(work, tasks) if count <= 1 else _in_processes(work, tasks, count)
    with _progress(title, len(tasks)) as advance:
        for done in finished:
            advance()
            yield done


def available_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_this_process(work: Callable[[T], R], tasks: Mapping[str, T]) -> Iterator[Done[R]]:
    for name, task in tasks.items():
        yield _settled(name, *_attempt(work, task))


def _attempt(work: Callable[[T], R], task: T) -> tuple[R | None, MedsegError | MemoryError | None]:
    try:
        return work(task), None
    except (MedsegError, MemoryError) as error:
        return None, error


def _settled(name: str, result: Any, error: MedsegError | MemoryError | None) -> Done[Any]:
    if isinstance(error, MemoryError):
        error = DataError(name, "needs more memory than there is", "Use fewer workers, or a machine with more memory")
    return Done(name, result, error)


class _Worker:
    """One process and the case in its hands."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process that has threads may hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process ends the connection
        self.name = ""

    def give(self, name: str, task: Any) -> None:
        self.name = name
        with suppress(OSError):  # should it have died meanwhile, take() will say so
            self.connection.send(task)

    def take(self) -> Done[Any]:
        name, self.name = self.name, ""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Done(name, None, _obituary(name, self.process.exitcode))
        return _settled(name, result, error)

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection[Any, Any], work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_attempt(work, task))


def _in_processes(work: Callable[[T], R], tasks: Mapping[str, T], count: int) -> Iterator[Done[R]]:
    waiting = iter(tasks.items())
    team: list[_Worker] = []
    try:
        for name, task in [pair for _, pair in zip(range(count), waiting, strict=False)]:
            team.append(_Worker(work))
            team[-1].give(name, task)
        while busy := [worker for worker in team if worker.name]:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                yield worker.take()
                following = next(waiting, None)
                if not worker.process.is_alive():
                    worker.end()
                    team.remove(worker)
                    if following:
                        team.append(worker := _Worker(work))
                if following:
                    worker.give(*following)
    finally:
        for worker in team:
            worker.end()


def _obituary(name: str, exitcode: int | None) -> DataError:
    cause, remedy = f"exit status {exitcode}", "Run again with 1 worker to see why"
    if exitcode is not None and exitcode < 0:
        cause = f"signal {signal.Signals(-exitcode).name}"
        if -exitcode == signal.SIGKILL:
            cause, remedy = cause + ", most likely for want of memory", "Use fewer workers, or more memory"
    return DataError(name, f"ended the process that worked on it ({cause})", remedy)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal or not total) as bar:
        row = bar.add_task(title, total=total)
        yield lambda: bar.advance(row)
