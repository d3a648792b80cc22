"""One volume per thread: the kernels of this room leave the interpreter free, so threads are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
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
