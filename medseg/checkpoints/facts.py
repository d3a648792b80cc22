"""What a checkpoint says of itself, read in a moment: without its weights, and without torch."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from medseg.checkpoints.checkpoint import Checkpoint, checked
from medseg.checkpoints.run import missing
from medseg.errors import CheckpointError

_DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
"""What zipfile, pickle and torch raise over files that are cut short, overwritten or something else."""


_NAMED = re.compile(r"GLOBAL ([\w.]+)|([\w.]+) is not plain data")
"""How torch and this file name what they refuse to load."""


class Weights(NamedTuple):
    """What stands for a tensor: its size, and where its numbers are, for one tensor may have several names."""

    shape: tuple[int, ...]
    place: tuple[Any, ...] = ()


def read_facts(path: Path) -> Checkpoint:
    """A checkpoint with `Weights` in the place of its tensors.

    The file that ``torch.save`` writes is an archive whose ``data.pkl`` names the tensors and holds all else. Nothing
    but dictionaries that count or keep their order and the recipes of tensors is understood, so no code in it can run.

    Raises:
        CheckpointError: The file is missing, unreadable, holds code, or is no checkpoint of medseg.
    """

    def read() -> Any:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                return _PlainData(file).load()

    return checked(path, explained(path, read))


def explained(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` finds in a checkpoint.

    Raises:
        CheckpointError: The file is missing, unreadable or holds code.
    """
    try:
        return read()
    except FileNotFoundError:
        raise missing(path) from None
    except pickle.UnpicklingError as error:
        told = _NAMED.search(str(error))
        named = f" ({told[1] or told[2]})" if told else ""
        problem = f"is not a checkpoint, or holds code that could run on loading{named}"
        raise CheckpointError(path, problem, "Use one that medseg wrote") from None
    except _DAMAGE as error:
        said = "" if isinstance(error, LookupError) else str(error).split("\n")[0].split(". ")[0]
        reason = said or "it is no file of torch.save, or not all of one"
        raise CheckpointError(path, f"is not a readable checkpoint ({reason})", "Copy it again") from None


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The few names that plain data and tensors need, none of torch's own."""
        if module == "collections" and name in ("OrderedDict", "Counter"):
            return {"OrderedDict": OrderedDict, "Counter": Counter}[name]
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _rebuild
        if module == "torch" and (name.endswith("Storage") or name in ("Size", "device")):
            return tuple if name == "Size" else _named
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")

    def persistent_load(self, pid: Any) -> Any:
        """Where the numbers would be: the name of their storage."""
        return pid[2]


def _rebuild(*recipe: Any) -> Any:
    """A tensor's recipe is (storage, offset, shape, ...); a parameter's begins with its tensor."""
    return recipe[0] if isinstance(recipe[0], Weights) else Weights(tuple(recipe[2]), recipe[:2])


def _named(*words: Any) -> tuple[Any, ...]:
    return words
