"""Legal knobs and their types: a wrong one is answered with the right ones before any training starts."""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from medseg.errors import nearest
from medseg.losses.table import Row


@dataclass(frozen=True)
class Interval:
    """Which numbers a knob takes, ends included; those that do not say are finite and at least 0."""

    low: float = 0.0
    high: float = sys.float_info.max


Share = Annotated[float, Interval(0.0, 1.0)]
"""A part of something."""

Real = Annotated[float, Interval(-sys.float_info.max)]
"""Any finite number."""

Extended = Annotated[float, Interval(0.0, math.inf)]
"""At least 0, or ``inf``."""

Weights = Sequence[float] | Tensor | None
"""A number per class, background included, or None for equal weights."""

SHARED_TYPES: dict[str, Any] = {
    "include_background": bool,
    "weight": Weights,
    "weight_mode": Literal["normalized", "plain"],
    "absent": Literal["keep", "ignore"],
    "normalize": Literal["voxels", "weights"],
    "batch": bool,
}


def checked_knobs(row: Row, knobs: dict[str, Any]) -> dict[str, Any]:
    """Refuse a knob the loss does not have, or a value of another type; whole numbers pass for real ones.

    Raises:
        ValueError: Naming the nearest legal knob and all of them, or the type expected.
    """
    for name, value in knobs.items():
        if name not in row.knobs:
            legal = list(row.knobs)
            guess = nearest(name, legal)
            hint = f"Did you mean {guess!r}? " if guess else ""
            raise ValueError(f"{row.name} has no knob {name!r}. {hint}Its knobs are: {', '.join(legal) or 'none'}.")
        expected = knob_type(row, name)
        if not fits(value, expected):
            raise ValueError(f"{row.name}({name}={value!r}): expected {words(expected)}")
    return {name: real(value, knob_type(row, name)) for name, value in knobs.items()}


def real(value: Any, expected: Any) -> Any:
    """Turn whole numbers into real ones where those are expected."""
    if isinstance(value, list | tuple):
        inner = [get_args(form)[0] for form in (expected, *get_args(expected)) if _is_sequence(form)]
        return [real(item, inner[0]) for item in value] if inner else value
    whole = isinstance(value, int) and not isinstance(value, bool)
    wanted = [_plain(form) for form in (expected, *get_args(expected))]
    return float(value) if whole and float in wanted and int not in wanted else value


def _plain(form: Any) -> Any:
    return get_args(form)[0] if get_origin(form) is Annotated else form


def _is_sequence(form: Any) -> bool:
    origin = get_origin(form)
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def knob_type(row: Row, name: str) -> Any:
    """The annotation of a knob."""
    hints = get_type_hints(inspect.unwrap(row.function), include_extras=True)
    if name in hints:
        return hints[name]
    owners = [part for part in row.parts if name in part.knobs]
    return knob_type(owners[0], name) if owners else SHARED_TYPES[name]


def fits(value: Any, expected: Any) -> bool:
    """Whether a literal is of a type.

    Example:
        >>> fits(1, float), fits(True, float), fits([1, -2], Sequence[float] | None), fits(2, Share)
        (True, False, False, False)
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is float:
        return fits(value, Annotated[float, Interval()])
    if origin is Annotated:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and arguments[1].low <= value <= arguments[1].high
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if _is_sequence(expected):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def words(expected: Any) -> str:
    """Say a type in words.

    Example:
        >>> words(Sequence[float] | None), words(Literal["a", "b"]), words(Share)
        ('a list (each a number of at least 0) or None', "one of 'a', 'b'", 'a number in [0, 1]')
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return {Share: "a number in [0, 1]", Real: "a number"}.get(expected, "a number of at least 0, or inf")
    if origin in (Union, types.UnionType):
        return " or ".join(words(option) for option in arguments if option is not Tensor)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in arguments)
    if _is_sequence(expected):
        return f"a list (each {words(arguments[0])})"
    if expected is float:
        return "a number of at least 0"
    names = {
        int: "a whole number",
        bool: "True or False",
        str: "a string",
        type(None): "None",
    }
    return names.get(expected, str(expected))
