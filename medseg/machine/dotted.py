"""Dotted paths: the only file that imports what a person or a file names, and the rule of whose word is enough."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import CheckpointError, UsageError

_FAULTS_OF_A_MODULE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)
"""What importing somebody's file may raise, beside ImportError."""


def see_working_directory() -> None:
    """Let modules in the working directory be imported, after all that are installed, here and in child processes.

    A console script does not see it, ``python -m medseg`` does. Workers that are spawned inherit the path.
    """
    here = str(Path.cwd())
    if here not in sys.path and not ("" in sys.path or "." in sys.path):
        sys.path.append(here)


def named(path: str, kind: type | None = None, *, option: str) -> Any:
    """What a dotted path names, imported and checked, not called.

    Args:
        path: Such as ``mynet.Plain``; the file may lie in the working directory.
        kind: The class that it must be a subclass of; None takes anything that can be called.
        option: What asked for it, such as ``model.net``, to begin the sentences with.

    Raises:
        UsageError: It is no such path, cannot be imported, or is something else.

    Example:
        >>> named("collections.OrderedDict", dict, option="model.net").__name__
        'OrderedDict'
        >>> named("os.system", dict, option="model.net")
        Traceback (most recent call last):
        medseg.errors.UsageError: model.net: os.system is no subclass of dict. Name such a class.
    """
    module_name, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module_name:
        raise UsageError(f"{option}: {path!r} is no dotted path", "Write it as module.Name, such as mynet.Plain")
    see_working_directory()
    importlib.invalidate_caches()  # a notebook may just have written the file
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        remedy = "Put its file into the working directory, or install it"
        raise UsageError(f"{option}: {path} cannot be imported ({error})", remedy) from None
    except _FAULTS_OF_A_MODULE as error:
        if isinstance(error, AttributeError) and module_name in sys.modules:
            raise UsageError(f"{option}: {module_name} has no {name}", "Check the dotted path") from None
        told = " ".join(f"{type(error).__name__} in {_place(error)}: {error}".split())
        raise UsageError(f"{option}: importing {module_name} fails ({told})", "Correct that file") from None
    if kind is not None and not (isinstance(found, type) and issubclass(found, kind)):
        full = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        raise UsageError(f"{option}: {path} is no subclass of {full}", "Name such a class")
    if not callable(found):
        raise UsageError(f"{option}: {path} cannot be called", "Name a class or a function")
    return found


@dataclass(frozen=True)
class Trust:
    """The dotted paths that may be imported although only a file names them: those that the user names too.

    A checkpoint may come from a stranger. Whatever it names beyond medseg's own tables is refused unless it is here.

    Attributes:
        paths: Such as ``mynet.Plain``, each of which the user has typed.
    """

    paths: frozenset[str] = frozenset()

    @classmethod
    def of(cls, paths: Iterable[str] | None) -> Trust:
        """Those of an option that may not have been given."""
        return cls(frozenset(paths or ()))

    def require(self, path: str, file: Path) -> None:
        """Refuse what a file names and the user does not.

        Raises:
            CheckpointError: It is not among them.
        """
        if path in self.paths:
            return
        raise CheckpointError(
            file,
            f"names {path}, which is no part of medseg and would be imported",
            f"If you trust that code, give --trust {path}",
        )


def _place(error: BaseException) -> str:
    """The file and line that an error came from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"
