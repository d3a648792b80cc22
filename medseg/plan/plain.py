"""Plain data, as YAML, JSON and checkpoints hold them, to typed values and back, with a sentence for every mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from medseg.errors import nearest

Triple = tuple[int, int, int]


def misspelt(what: str, word: object, legal: tuple[str, ...]) -> str:
    """The sentence that answers a word nobody knows with the one that was meant."""
    meant = nearest(str(word), list(legal))
    hint = f"did you mean {meant}" if meant else f"expected one of {', '.join(legal)}"
    return f"{what} {word!r} is not known; {hint}"


def known_keys(kind: type[Any], data: Any, where: str) -> dict[str, Any]:
    """The table as a dict, every key of it a field of the kind.

    Raises:
        ValueError: It is no table, or a key is not one of ours; the sentence names the nearest.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a table of keys and values, got {data!r}")
    legal = tuple(spec.name for spec in fields(kind))
    for key in data:
        if key not in legal:
            raise ValueError(misspelt(f"key of {where}", key, legal))
    return dict(data)


def to_plain(value: Any) -> Any:
    """Tuples to lists, values to tables, all the way down."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def listed(value: Any, length: int | None = None) -> list[Any]:
    """A list, of a certain length if one is given."""
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise ValueError(f"expected a list{f' of {length}' if length else ''}, got {value!r}")
    return list(value)


def triple(value: Any) -> Triple:
    """Three whole numbers."""
    i, j, k = (whole(item) for item in listed(value, 3))
    return i, j, k


def whole(value: Any) -> int:
    """A whole number; 2.0 is one, 2.5 and true are not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(value)


def spacing(value: Any) -> tuple[float, float, float]:
    """Three floats."""
    i, j, k = (number(item) for item in listed(value, 3))
    return i, j, k


def number(value: Any) -> float:
    """A finite number; YAML reads 1e-3, without a point, as text."""
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not isfinite(found):
        raise ValueError(f"expected a number, got {value!r}")
    return found


def label_values(value: Any) -> int | tuple[int, ...]:
    """One label value or several."""
    return tuple(whole(item) for item in value) if isinstance(value, list | tuple) else whole(value)


def pair(value: Any) -> tuple[str, str]:
    """Two names."""
    left, right = (str(item) for item in listed(value, 2))
    if left == right:
        raise ValueError(f"expected two different names, got {left!r} twice")
    return left, right
