"""Fetch a Decathlon archive: resumed where it stopped, checked, unpacked without trusting it, whole or not at all."""

from __future__ import annotations

import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from medseg.datasets.msd import MIRROR, MsdTask, find_task
from medseg.errors import DataError
from medseg.machine.files import digest_of, locked, scratch, whole

_PIECE = 1 << 20
_TIMEOUT_S = 60

Advance = Callable[[int, int], None]
"""Told how many bytes are there, and how many there will be (0 while unknown)."""


def download(
    task: str | MsdTask, root: Path, *, mirror: str = MIRROR, attempts: int = 5, pause_s: float | int = 2
) -> Path:
    """Fetch and unpack a task of the Decathlon.

    What arrived before an interruption lies in ``<archive>.part`` and is continued by the next call. The folder of the
    task appears when it is complete; the archive is removed then. Of several processes that want one task in one
    folder, one fetches it and the others wait for it.

    Args:
        task: Name, number or organ of a task, or a task that the table does not have.
        root: Folder to unpack into.
        mirror: Address of the folder that holds the archives.
        attempts: How often to connect before giving up; a connection that brought new bytes does not count.
        pause_s: Wait between attempts in seconds, doubled each time.

    Returns:
        The folder of the task, with its ``dataset.json``; at once if it is there already.

    Raises:
        UsageError: There is no such task.
        DataError: The server cannot be reached or refuses, the disk is full, the checksum differs, or the archive holds
            anything but plain files below its own folder.
    """
    wanted = find_task(task) if isinstance(task, str) else task
    target = root / wanted.name
    if _is_there(target):
        return target
    part = root / f"{wanted.archive}.part"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{wanted.archive}.lock", on_wait=lambda: _say_waiting(target)):
            if _is_there(target):
                return target
            with _progress(wanted.name) as advance:
                _fetch(f"{mirror}/{wanted.archive}", part, advance, attempts=attempts, pause_s=pause_s)
            _require_md5(part, wanted)
            _unpack(part, target)
            part.unlink()
    except OSError as error:
        raise DataError(
            root, f"cannot take {wanted.archive} ({error.strerror or error})", "Free space or choose another folder"
        ) from None
    return target


def _is_there(target: Path) -> bool:
    if (target / "dataset.json").is_file():
        return True
    if target.exists():
        raise DataError(target, "exists, but holds no dataset.json", "Move it away, then download again")
    return False


def _say_waiting(target: Path) -> None:
    Console(stderr=True).print(
        f"{target} is being downloaded by another process; waiting for it", highlight=False, soft_wrap=True
    )


def _fetch(url: str, part: Path, advance: Advance, *, attempts: int, pause_s: float | int) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            _continue(url, part, advance)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise DataError(
                    url, f"is refused ({error.code} {error.reason})", "Check the mirror's address"
                ) from None
            cause = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            cause = str(getattr(error, "reason", "") or error or type(error).__name__)
        failures = failures + 1 if _size(part) == before else 0
        if failures >= attempts:
            raise DataError(
                url,
                f"cannot be fetched ({cause}); {_size(part):,} bytes are kept in {part}",
                "Check the network, then run the same command again: it continues there",
            )
        time.sleep(pause_s * 2 ** max(0, failures - 1))


def _continue(url: str, part: Path, advance: Advance) -> None:
    """Fetch what is missing; returns when the file is as long as the server says."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing lies beyond what we have
            raise
        length = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if length.isdigit() and int(length) != have:
            part.unlink()
            _continue(url, part, advance)
        return
    with reply:
        if have and reply.status != 206:  # the server starts over
            have = 0
        total = have + int(reply.headers.get("Content-Length") or 0)
        _require_space(part, total - have)
        with part.open("ab" if have else "wb") as file:
            while piece := reply.read1(_PIECE):  # whatever has come: a stalled connection must not lose it
                file.write(piece)
                have += len(piece)
                advance(have, total)
    if have < total:
        raise ConnectionError(f"the connection closed after {have:,} of {total:,} bytes")


def _require_space(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    needed = missing + _size(part) + missing  # the archive, and its content unpacked beside it
    if needed > free:
        raise DataError(
            part.parent, f"has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed", "Choose another folder"
        )


def _require_md5(part: Path, task: MsdTask) -> None:
    digest = digest_of(part, "md5")
    if digest != task.md5:
        part.unlink()  # to continue it would never make it right
        raise DataError(part, f"has the MD5 sum {digest}, expected {task.md5}", "It was removed; download it again")


def _unpack(archive: Path, target: Path) -> None:
    with scratch(target.parent) as folder:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(str(folder), filter=_only_files)
        except (tarfile.TarError, EOFError) as error:
            if isinstance(error, tarfile.FilterError):
                raise DataError(archive, f"is not safe: {error}", "Do not use this archive") from None
            reason = str(error).partition("\n")[0].rstrip(":")  # without what each way of unpacking says
            remedy = "Remove it, then download it again"
            raise DataError(archive, f"is not a readable archive ({reason})", remedy) from None
        if not (folder / target.name / "dataset.json").is_file():
            raise DataError(archive, f"holds no {target.name}/dataset.json", "Check the mirror's address")
        with whole(target) as place:
            (folder / target.name).rename(place)


def _only_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """What Python lets pass as data, without links, which no dataset needs, and without the companions of macOS."""
    if member.islnk() or member.issym():
        raise tarfile.SpecialFileError(member)
    return None if PurePosixPath(member.name).name.startswith("._") else tarfile.data_filter(member, folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _progress(name: str) -> Iterator[Advance]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(row, completed=have, total=total or None)
