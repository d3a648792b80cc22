"""One process at a time: whoever comes second waits, and a process that was killed holds nobody up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes are not kept apart there
    fcntl = None  # type: ignore[assignment]  # so that one test says which


@contextmanager
def one_at_a_time(file: Path, *, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock file, which is made and removed here; the system lets go of it when the process ends.

    On a file system without locks nobody waits.

    Args:
        file: In a folder that exists.
        on_wait: Called once if another process holds it.

    Yields:
        Whether nobody else can be at work now.

    Raises:
        OSError: The file cannot be made.
    """
    handle, alone = _take(file, on_wait)
    try:
        yield alone
    finally:
        with suppress(OSError):
            file.unlink()  # while we hold it: whoever waits for this one looks again
        os.close(handle)


def _take(file: Path, on_wait: Callable[[], None]) -> tuple[int, bool]:
    told = False
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is None:
            return handle, False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                told = True
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return handle, False
        if _is_still(file, handle):
            return handle, True
        os.close(handle)


def _is_still(file: Path, handle: int) -> bool:
    """Whether the file was not removed, or made anew, while we waited for it."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
