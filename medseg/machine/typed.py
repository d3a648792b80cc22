"""Plain data, as YAML, JSON and checkpoints hold them, to values of a type and back, a sentence for every mistake."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import isclass
from math import inf, isfinite
from sys import float_info
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from medseg.errors import meant


@dataclass(frozen=True)
class Interval:
    """Which numbers ``Annotated[float, Interval(...)]`` takes, ends included; those that do not say are finite."""

    low: float = -float_info.max
    high: float = float_info.max

    @property
    def words(self) -> str:
        """Say it in words."""
        if (self.low, self.high) == (-float_info.max, float_info.max):
            return "a finite number"
        least = f"a number of at least {self.low:g}"
        return {float_info.max: least, inf: f"{least}, or inf"}.get(
            self.high, f"a number in [{self.low:g}, {self.high:g}]"
        )


def typed(value: Any, wanted: Any) -> Any:
    """A value of plain data as a type: whole numbers pass for real ones and 2.0 for a whole one, lists for tuples.

    Args:
        value: What YAML, JSON, a literal in Python or a checkpoint holds.
        wanted: An annotation of numbers (in an `Interval`), text, ``Literal``, ``None``, lists, tuples, mappings and
            unions of these, or a class: one with ``from_dict`` is built by it.

    Raises:
        ValueError: It is none; the sentence says what was expected.

    Example:
        >>> typed([1, 2.0, 3], tuple[float, ...]), typed(2.0, int | None), typed("ct", Literal["ct", "mr"])
        ((1.0, 2.0, 3.0), 2, 'ct')
    """
    value, origin, parts = _from_numpy(value), get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _one_of(value, wanted, parts)
    if origin is Annotated and _is_number(value) and parts[1].low <= value <= parts[1].high:
        return float(value)
    if origin is tuple and isinstance(value, list | tuple):
        inner = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        if len(inner) == len(value):
            return tuple(map(typed, value, inner))
    elif is_sequence(wanted) and isinstance(value, list | tuple):
        return [typed(item, parts[0]) for item in value]
    elif isclass(origin) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {typed(key, parts[0]): typed(item, parts[1]) for key, item in value.items()}
    elif origin is Literal and value in parts and type(value) in map(type, parts):
        return value
    elif hasattr(wanted, "from_dict"):
        return wanted.from_dict(value)
    elif wanted is Any or (origin is None and _is_plain(value, wanted)):
        return _MAKE.get(wanted, _same)(value)
    raise ValueError(f"expected {words(wanted)}, got {value!r}")


def fields_of(kind: type[Any], data: Any, where: str) -> dict[str, Any]:
    """The arguments of a dataclass from a table; those that are left out are left out.

    Args:
        kind: The dataclass.
        data: The table.
        where: What it is, for the sentence ("the plan").

    Raises:
        ValueError: It is no table, a key is not a field (the sentence names the nearest), or a value has another type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a table of keys and values, got {data!r}")
    legal, hints = [spec.name for spec in fields(kind)], get_type_hints(kind)
    found = {}
    for key, value in data.items():
        if key not in legal:
            raise ValueError(misspelt(f"key of {where}", key, legal))
        try:
            found[key] = typed(value, hints[key])
        except ValueError as error:
            raise ValueError(f"{where}'s {key}: {error}") from None
    return found


def misspelt(what: str, word: object, legal: Sequence[str]) -> str:
    """The sentence that answers a word nobody knows with the one that was meant.

    Example:
        >>> misspelt("measure", "dcie", ["dice", "iou"])
        "measure 'dcie' is not known, did you mean 'dice'"
    """
    hint = meant(word, legal) or f", expected one of {', '.join(legal)}"
    return f"{what} {word!r} is not known{hint}"


def to_plain(value: Any) -> Any:
    """Tuples and NumPy's arrays to lists, values to tables, paths to text, all the way down; others stay.

    Example:
        >>> from pathlib import Path
        >>> to_plain({"a": (Path("b"), 1)})
        {'a': ['b', 1]}
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return _from_numpy(value)


def words(wanted: Any) -> str:
    """Say a type in words.

    Example:
        >>> words(Sequence[float] | None), words(Literal["a", "b"]), words(tuple[int, int])
        ('a list (each a number) or None', "one of 'a', 'b'", 'a list of 2 (each a whole number)')
    """
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(words(part) for part in parts if part in _WORDS or get_origin(part))
    if origin is Annotated:
        return str(parts[1].words)
    if origin is Literal:
        return "one of " + ", ".join(repr(part) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} (each {words(parts[0])})"
    if origin is tuple or is_sequence(wanted):
        return f"a list (each {words(parts[0])})"
    if isclass(origin) and issubclass(origin, Mapping):
        return f"a table (each {words(parts[1])})"
    return _WORDS.get(wanted, getattr(wanted, "__name__", str(wanted)))


def is_sequence(wanted: Any) -> bool:
    """Whether an annotation is one of a list of any length."""
    origin = get_origin(wanted)
    return isclass(origin) and issubclass(origin, Sequence)


def _one_of(value: Any, wanted: Any, parts: tuple[Any, ...]) -> Any:
    for part in parts:
        try:
            return typed(value, part)
        except ValueError:
            continue
    raise ValueError(f"expected {words(wanted)}, got {value!r}")


def _is_plain(value: Any, wanted: Any) -> bool:
    """Whether a value may stand for a plain type; a truth value is no number, and what is not finite neither."""
    if wanted in (int, float):
        return _is_number(value) and isfinite(value) and (wanted is float or value % 1 == 0)
    if wanted is str:
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    return value is None if wanted in (None, type(None)) else isclass(wanted) and isinstance(value, wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_numpy(value: Any) -> Any:
    """A number or an array of NumPy's as Python's own; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _same(value: Any) -> Any:
    return value


_MAKE: dict[Any, Callable[[Any], Any]] = {int: int, float: float, str: str}
_WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "text",
    None: "None",
    type(None): "None",
}
