"""NumPy's numbers in a foreign checkpoint: read as Python's own, by stand-ins that can do nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Kind:
    """In place of ``numpy.dtype``: the kind of a number, and its byte order."""

    def __init__(self, letters: str, *_: Any) -> None:
        if letters not in _KINDS:
            raise pickle.UnpicklingError(f"numpy.dtype {letters!r} is no kind of number")
        self.letters = letters

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.letters = f"{'>' if state[1] == '>' else '<'}{self.letters}"


def _number(kind: _Kind, data: bytes) -> float:
    """In place of ``numpy.core.multiarray.scalar``."""
    value: float = np.frombuffer(data, dtype=kind.letters)[0].item()
    return value


def _named(stand_in: Any, module: str, name: str) -> Any:
    stand_in.__module__, stand_in.__qualname__ = module, name
    return stand_in


def _again(number: Callable[[_Kind, bytes], float]) -> Callable[[_Kind, bytes], float]:
    return lambda kind, data: number(kind, data)


_STAND_INS = [
    _named(_Kind, "numpy", "dtype"),
    *(_named(_again(_number), f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),  # NumPy 1 and 2
]


@contextmanager
def numpy_numbers() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read single numbers of NumPy's, within the block."""
    before = get_safe_globals()
    add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)
