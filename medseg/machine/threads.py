"""One volume per thread: the kernels of this room leave the interpreter free, so threads are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from threading import Thread
from typing import TypeVar

from medseg.machine.hardware import usable_cores

Job = TypeVar("Job")
Answer = TypeVar("Answer")

_sharing = [1]  # processes that work on this machine's cores together


def share_cores(processes: int) -> None:
    """Leave the other processes of a training on this machine their part of the cores, from now on."""
    _sharing[0] = max(1, processes)


def in_threads(function: Callable[[Job], Answer], jobs: Iterable[Job]) -> list[Answer]:
    """Apply a function to every job, on as many threads as there are cores for this process, and keep the order.

    The threads live for this call only: a pool kept for longer would be inherited, dead, by forked data workers.

    Args:
        function: Work that releases the interpreter lock, such as SciPy's and torch's array code.
        jobs: What to work on.

    Returns:
        One answer per job; the first exception raised by a job is raised here.

    Example:
        >>> in_threads(abs, [-1, 2, -3])
        [1, 2, 3]
    """
    todo = list(jobs)
    threads = min(len(todo), max(1, usable_cores() // _sharing[0]))
    if threads <= 1:
        return [function(job) for job in todo]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, todo))


def within(seconds: float, function: Callable[[], Answer]) -> Answer:
    """What a function gives, if it gives anything in time.

    A read from a dead disk never returns and cannot be ended. It has a thread of its own, which this process does not
    wait for, neither here nor at its end.

    Args:
        seconds: To wait at most.
        function: What may hang.

    Raises:
        TimeoutError: It has not come back.

    Example:
        >>> within(5.0, lambda: 1)
        1
    """
    answer: Future[Answer] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:  # raised where it is waited for
            answer.set_exception(error)

    Thread(target=call, daemon=True).start()
    try:
        return answer.result(seconds)
    except FutureTimeout:  # another before Python 3.11
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None
