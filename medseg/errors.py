"""The exceptions a user may see; each builds its own sentence: where, what is wrong, what to do."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class MedsegError(Exception):
    """Any failure that medseg explains to its user; the command line prints it as one line."""

    exit_status = 1


class DataError(MedsegError):
    """A file or folder on disk is at fault.

    Args:
        path: The file or folder.
        problem: What is wrong with it, as the end of a sentence ("has 3 axes, expected 4").
        remedy: What the user can do, as an imperative ("Re-export the case").

    Example:
        >>> print(DataError(Path("a.nii.gz"), "is truncated", "Download it again"))
        a.nii.gz is truncated. Download it again.
    """

    def __init__(self, path: str | Path, problem: str, remedy: str) -> None:
        self.path = Path(path)
        self.problem = problem = " ".join(problem.split())  # what libraries say may have lines
        self.remedy = remedy
        super().__init__(f"{path} {problem}. {remedy}.")

    def __reduce__(self) -> tuple[type[DataError], tuple[Path, str, str]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.path, self.problem, self.remedy)


class MachineError(DataError):
    """Not the data but the machine is at fault, such as a full disk: no other case would fare better."""


class CheckpointError(DataError):
    """A checkpoint is missing, foreign, unsafe or does not fit the data."""


class UsageError(MedsegError):
    """The command or the config is at fault, not the data.

    Example:
        >>> print(UsageError("--folds must be at least 2, got 1", "Choose 2 or more"))
        --folds must be at least 2, got 1. Choose 2 or more.
    """

    exit_status = 2

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}. {remedy}.")

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, str]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.problem, self.remedy)


class InterruptionError(MedsegError):
    """Training was asked to stop and did, at a moment from which it can go on.

    Args:
        signum: The signal that asked; the exit status is 128 + its number, as a shell has it.
        outcome: What became of the training, as the end of a sentence ("after step 20").
        remedy: What to do next, as an imperative.

    Example:
        >>> print(InterruptionError(15, "after step 20, which last.ckpt holds", "Go on with --ckpt_path last"))
        stopped by SIGTERM after step 20, which last.ckpt holds. Go on with --ckpt_path last.
    """

    def __init__(self, signum: int, outcome: str, remedy: str) -> None:
        self.signum = signal.Signals(signum)
        self.exit_status = 128 + signum
        super().__init__(f"stopped by {self.signum.name} {outcome}. {remedy}.")


_REFUSED = (
    "cannot be opened (permission denied)",
    "Ask for the rights, or copy it to where you have them",
)
_EXPLAINED = {
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
    errno.ENOENT: ("does not exist", "Check the path, or what names it"),
    errno.EISDIR: ("is a folder, though a file is expected there", "Name a file in it, or rename the folder"),
    errno.ENOTDIR: ("lies in something that is a file and no folder", "Check the path"),
    errno.ELOOP: ("is a link that leads back to itself", "Replace the link by the file"),
    errno.EMFILE: ("cannot be opened (too many files are open)", "Use fewer workers, or raise ulimit -n"),
}
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quota


def explained(error: OSError, path: str | Path | None = None) -> DataError:
    """What the system refused to do with a file, as the sentence that a user is told.

    Args:
        error: With an error number.
        path: The file, where the error does not name it.

    Example:
        >>> print(explained(OSError(13, "Permission denied", "a.nii.gz")))
        a.nii.gz cannot be opened (permission denied). Ask for the rights, or copy it to where you have them.
    """
    place = path or error.filename or "a file"
    if error.errno in _DISK_FULL:
        return MachineError(place, f"could not be written ({error.strerror})", "Free space and run this again")
    problem, remedy = _EXPLAINED.get(
        error.errno or 0, (f"cannot be used ({error.strerror})", "Check the path and its disk")
    )
    if error.errno == errno.ENOENT and os.path.islink(place):
        problem = f"is a link to {os.readlink(place)}, which does not exist"
    return DataError(place, problem, remedy)


@contextmanager
def explaining() -> Iterator[None]:
    """Turn what the system refuses meanwhile into a `DataError`; other programs' errors, without a number, pass."""
    try:
        yield
    except (BrokenPipeError, ConnectionError):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise explained(error) from None


def meant(word: object, legal: Iterable[str]) -> str:
    """The clause that ends a sentence about a word nobody knows, or an empty string.

    Example:
        >>> f"there is no loss 'dcie'{meant('dcie', ['dice', 'focal'])}"
        "there is no loss 'dcie', did you mean 'dice'"
    """
    found = nearest(str(word), list(legal))
    return f", did you mean {found!r}" if found else ""


def nearest(word: str, legal: list[str], *, alike: float = 0.5) -> str:
    """Name the legal word that a misspelt or abbreviated one was most likely meant to be, or an empty string.

    Args:
        word: What was written.
        legal: What could have been meant.
        alike: How much of two words must be the same, from 0 to 1.

    Example:
        >>> nearest("dcie", ["dice", "focal"]), nearest("ce", ["bce", "cross_entropy"])
        ('dice', 'cross_entropy')
    """
    import difflib

    abbreviated = [name for name in legal if "".join(part[:1] for part in name.split("_")) == word]
    if len(word) > 1 and abbreviated:
        return abbreviated[0]
    found = difflib.get_close_matches(word, legal, n=1, cutoff=alike)
    return found[0] if found else ""


def few(lines: Sequence[str], most: int = 5) -> list[str]:
    """The first few of many lines, and one that counts the others.

    Example:
        >>> few(["a", "b"]), few(["a", "b", "c"], most=1)
        (['a', 'b'], ['a', 'and 2 more'])
    """
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def listed(names: Iterable[object], most: int = 5) -> str:
    """Names for a sentence, the first few and a count of the others.

    Example:
        >>> listed("abc"), listed("abcdefg")
        ('a, b, c', 'a, b, c, d, e and 2 more')
    """
    known = [str(name) for name in names]
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
