"""Files appear whole or not at all, one process at a time works in a place, and content is known by its digest."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medseg.errors import DataError, MachineError

_HOST = socket.gethostname()[:40]
_PARTIAL = re.compile(r"\.partial-(?P<process>\d+)-\d+@")
_ABANDONED_S = 24 * 3600  # another machine's partial file that was not touched for so long
_count = itertools.count()


@contextmanager
def whole(target: Path, *, remedy: str = "Free space or choose another place") -> Iterator[Path]:
    """A hidden name beside the target, for a file or a folder; it becomes the target when the block ends well.

    Otherwise nothing is left, and what the target was before is untouched. What a killed process leaves is removed
    by the next one that writes into the folder.

    Args:
        target: Its folder is made where it is missing. A folder that is there already must be empty to be replaced.
        remedy: What the user can do about a failure, as an imperative.

    Raises:
        MachineError: The disk is full, or the place cannot be written to.
    """
    partial = target.with_name(_hidden(target.name))
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent)
            yield partial
            _force_to_disk(partial)
            os.replace(partial, target)
        finally:
            _remove(partial)
    except (OSError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        before = "; what it held before is whole" if os.path.isfile(target) else ""
        raise MachineError(target, f"cannot be written ({reason}){before}", remedy) from None


def write_text(path: Path, text: str, *, remedy: str = "Free space or choose another place") -> None:
    """Write a text file in UTF-8, whole or not at all; see `whole`."""
    with whole(path, remedy=remedy) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, content: Any, *, remedy: str = "Free space or choose another place") -> None:
    """Write plain data as JSON, whole or not at all; see `whole`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", remedy=remedy)


def read_json(path: Path | zipfile.Path) -> Any:
    """What `write_json` has written, or somebody else in its place.

    Raises:
        OSError: The file cannot be read.
        ValueError: As `parse_json`.
    """
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """Plain data from its JSON.

    Raises:
        ValueError: It is not JSON, or nests so deeply that nobody can read it.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder in a folder, which is made where it is missing, for what is needed only until the block ends."""
    place = folder / _hidden("scratch")
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    try:
        place.mkdir()
        yield place
    finally:
        _remove(place)


@lru_cache(maxsize=1024)
def sweep(folder: Path) -> None:
    """Remove, once, what killed processes of this machine left half-written in a folder, and others a day ago."""
    for path in folder.glob(".partial-*"):
        found = _PARTIAL.match(path.name)
        if found is None:
            continue
        ours = path.name[found.end() :].startswith(f"{_HOST}-")
        with suppress(OSError):
            if not _alive(int(found["process"])) if ours else time.time() - path.stat().st_mtime > _ABANDONED_S:
                _remove(path)


@contextmanager
def locked(file: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock file, which stays; the system lets go of it when the process ends, however it does.

    On a file system without locks nobody waits.

    Args:
        file: In a folder that exists.
        on_wait: Called once if another process holds it, before waiting. None: it is not waited for.

    Raises:
        DataError: Another process holds it, or the file cannot be made.
    """
    lock = FileLock(file)
    try:
        file.touch()
    except OSError as error:
        raise MachineError(file, f"cannot be written ({error.strerror})", "Choose another folder") from None
    try:
        with suppress(OSError, NotImplementedError):
            _acquire(lock, on_wait)
        yield
    finally:
        lock.release()


def require_writable(folder: Path, *, remedy: str = "Choose another --output") -> None:
    """Find out before anything is computed that files can be written to a folder; it is not made where it is missing.

    Raises:
        MachineError: They cannot.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        there.mkdir(exist_ok=True)  # which a file does not allow
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise MachineError(folder, f"cannot be written to ({error.strerror})", remedy) from None


def digest_of(path: Path, kind: str = "blake2b") -> str:
    """A file's content as hexadecimal digits, by an algorithm of `hashlib`."""
    content = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            content.update(block)
    return content.hexdigest()


def portable(path: Path, folder: Path) -> str:
    """How a description in a folder names a file: from the folder on, unless nothing but the disk's root holds both.

    Links in the folders on the way are followed, for ``..`` leads out of where they lead; a file that is one is not.
    """
    target = Path(os.path.realpath(path.parent)) / path.name
    start = Path(os.path.realpath(folder))
    together = target.drive == start.drive and target.parts[:2] == start.parts[:2]
    return Path(os.path.relpath(target, start) if together else target).as_posix()


def _acquire(lock: FileLock, on_wait: Callable[[], None] | None) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if on_wait is None:
            place = Path(lock.lock_file).parent
            remedy = "Wait until it is done, or end that process"
            raise DataError(place, "is being worked in by another process", remedy) from None
        on_wait()
        lock.acquire()


def _hidden(name: str) -> str:
    """A name of this process's own that keeps the ending, by which some libraries choose the format."""
    return f".partial-{os.getpid()}-{next(_count)}@{_HOST}-{name[-12:]}"


def _force_to_disk(path: Path) -> None:
    for file in (path,) if path.is_file() else sorted(path.rglob("*")):
        if file.is_file() and os.name == "posix":
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _reason(error: BaseException) -> str | None:
    """What the system said about a failed write, or None if it was something else that failed."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error.__context__, OSError):  # torch's writer fails once more while it closes the file
        return _reason(error.__context__)
    return "the file could not be written to its end" if "PytorchStreamWriter" in str(error) else None


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere signal 0 ends the process; leave it alone
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process, and alive
    return True
