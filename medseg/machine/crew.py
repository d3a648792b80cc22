"""The same work for many cases in several processes: bounded, interruptible, and with a name for every failure."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from medseg.errors import DataError, MachineError, MedsegError, explaining
from medseg.machine.hardware import free_memory, usable_cores
from medseg.machine.progress import progress

T = TypeVar("T")
R = TypeVar("R")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MOST_TOLD = 5  # failures in one message; more would push the first of them off the screen
MEMORY_SHARE = 0.7  # of the free memory; the rest is for the page cache and everyone else


@dataclass(frozen=True)
class Done(Generic[R]):
    """What became of one case: a result, or why there is none.

    Attributes:
        name: The case.
        result: What the work returned.
        failure: Why there is no result.
        killed: The failure is that somebody ended the process.
    """

    name: str
    result: R | None
    failure: MedsegError | None = None
    killed: bool = False


@dataclass
class Finished(Generic[R]):
    """What became of all cases, by name."""

    results: dict[str, R] = field(default_factory=dict)
    failures: dict[str, MedsegError] = field(default_factory=dict)

    def or_raise(self, where: Path) -> dict[str, R]:
        """The results, or one error that tells every failure.

        Raises:
            DataError: At least one case failed.
        """
        if not self.failures:
            return self.results
        if len(self.failures) == 1:
            raise next(iter(self.failures.values()))
        told = [f"\n  {self.failures[name]}" for name in sorted(self.failures)[:MOST_TOLD]]
        if more := len(self.failures) - len(told):
            told.append(f"\n  And {more} more: medseg verify lists them all.")
        remedy = f"Mend or remove them, then run again:{''.join(told)}"
        raise DataError(where, f"has {len(self.failures)} cases that cannot be used", remedy.removesuffix("."))


def run_tasks(work: Callable[[T], R], tasks: Mapping[str, T], *, workers: int | None, title: str) -> Finished[R]:
    """Do the same work for every case and gather what comes of it; see `for_each_case`."""
    outcome: Finished[R] = Finished()
    for done in for_each_case(work, tasks, workers=workers, title=title):
        if done.failure is not None:
            outcome.failures[done.name] = done.failure
        else:
            outcome.results[done.name] = done.result  # type: ignore[assignment]  # no failure: there is a result
    return outcome


def for_each_case(
    work: Callable[[T], R], tasks: Mapping[str, T], *, workers: int | None = None, title: str = "Working"
) -> Iterator[Done[R]]:
    """Do the same work for every case, in the order in which they finish, with a progress bar on a terminal.

    Every process holds one case at a time, so a death (killed, out of memory, a crash in a library) is known to be that
    case's; the others go on in a fresh process. A case whose process was killed is tried once more at the end, alone.

    Args:
        work: A module-level function; a `MedsegError` or what the system refuses becomes the case's failure.
        tasks: Case name to argument.
        workers: Processes; None means one for each core that is ours, 1 works in this process.
        title: What the progress bar says.

    Yields:
        A result or a failure for every case. An error that is not a `MedsegError` is a mistake in the work: it is
        raised in this process, and ends another one, whose traceback is on stderr.

    Raises:
        MachineError: As soon as the work raises it, or if processes cannot be started; cases in work are finished.
    """
    count = min(workers or usable_cores(), len(tasks))
    finished = _in_this_process(work, tasks) if count <= 1 else _in_processes(work, tasks, count)
    with progress(title, len(tasks)) as advance:
        for done in finished:
            advance("")
            yield done


def default_workers(bytes_per_task: int) -> int:
    """As many processes as there are cores for us, fewer if their volumes would not fit into the free memory."""
    free = free_memory()
    if free is None or bytes_per_task <= 0:
        return usable_cores()
    return max(1, min(usable_cores(), int(free * MEMORY_SHARE) // bytes_per_task))


def _in_this_process(work: Callable[[T], R], tasks: Mapping[str, T]) -> Iterator[Done[R]]:
    for name, task in tasks.items():
        yield _settled(name, *_attempt(work, task))


def _attempt(work: Callable[[T], R], task: T) -> tuple[R | None, MedsegError | MemoryError | None]:
    try:
        with explaining():
            return work(task), None
    except (MedsegError, MemoryError) as error:
        return None, error


def _settled(name: str, result: Any, error: MedsegError | MemoryError | None) -> Done[Any]:
    if isinstance(error, MachineError):
        raise error
    if isinstance(error, MemoryError):
        error = DataError(name, "needs more memory than there is", "Use fewer workers, or a machine with more memory")
    return Done(name, result, error)


def _in_processes(work: Callable[[T], R], tasks: Mapping[str, T], count: int) -> Iterator[Done[R]]:
    suspects = []
    for done in _by_a_team(work, tasks, count):
        if done.killed:
            suspects.append(done.name)
        else:
            yield done
    for name in suspects:  # alone: what was killed for want of memory has all of it now
        yield from _by_a_team(work, {name: tasks[name]}, 1)


def _by_a_team(work: Callable[[T], R], tasks: Mapping[str, T], count: int) -> Iterator[Done[R]]:
    waiting = iter(tasks.items())
    with _team() as team:
        for name, task in islice(waiting, count):
            team.append(_Worker(work))
            team[-1].give(name, task)
        while busy := [worker for worker in team if worker.name]:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                done = worker.take()
                if done is None:
                    continue
                yield done
                following = next(waiting, None)
                if not worker.process.is_alive():
                    worker.end()
                    team.remove(worker)
                    if following:
                        team.append(worker := _Worker(work))
                if following:
                    worker.give(*following)


@contextmanager
def _team() -> Iterator[list[_Worker]]:
    """Processes that end when nobody needs them any more, whatever happens."""
    team: list[_Worker] = []
    try:
        yield team
    except MachineError:
        for worker in team:
            worker.leave()
        raise
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """One process and the case in its hands."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process that has threads may hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _single_threaded_children():
            self.process.start()
        theirs.close()  # so that the death of the process ends the connection
        self.started = False
        self.name = ""

    def give(self, name: str, task: Any) -> None:
        self.name = name
        with suppress(OSError):  # should it have died meanwhile, take() will say so
            self.connection.send(task)

    def take(self) -> Done[Any] | None:
        """What the process says of its case; None if it says no more than that it has started."""
        name = self.name
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            if not self.started and (self.process.exitcode or 0) >= 0:  # nobody killed it: it cannot
                remedy = "Call it under if __name__ == '__main__' in a script, or use 1 worker"
                raise MachineError(name, "cannot be worked on: worker processes do not start here", remedy) from None
            self.name = ""
            return _obituary(name, self.process.exitcode)
        if not self.started:
            self.started = True
            return None
        self.name = ""
        return _settled(name, *message)

    def leave(self) -> None:
        """Let it finish its case, whose result nobody waits for, and clean up after itself."""
        self.connection.close()
        self.process.join()

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection[Any, Any], work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent wants no more
        connection.send(None)
        while True:
            connection.send(_attempt(work, connection.recv()))


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)  # the parent was killed: nobody will ask for the result, and a long case would go on for nothing


def _obituary(name: str, exitcode: int | None) -> Done[Any]:
    killed = exitcode is not None and exitcode < 0
    often = "twice the process that worked on it" if killed else "the process that worked on it"  # it was tried again
    short = exitcode == -signal.SIGKILL
    remedy = "Use fewer workers, or more memory" if short else "Run again with 1 worker to see why"
    return Done(name, None, DataError(name, f"has no result: {often} {how_it_ended(exitcode)}", remedy), killed=killed)


def how_it_ended(status: int | None) -> str:
    """What the exit status of a process means, as the end of a sentence.

    Args:
        status: As `subprocess.Popen` and `multiprocessing.Process` have it: negative for a signal.

    Example:
        >>> how_it_ended(3), how_it_ended(-9)
        ('ended with exit status 3', 'was ended by SIGKILL, as the system does when memory is short')
    """
    if status is None or status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"signal {-status}"
    return f"was ended by {name}" + (", as the system does when memory is short" if name == "SIGKILL" else "")


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
