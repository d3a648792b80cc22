"""Shapes are checked where there are some.

jaxtyping's import hook wraps every function of the package, with or without a shape, in some 20 µs a call and a
millisecond at import: that was a third of the time of all tests. What has no shape is mypy's to check.
"""

from __future__ import annotations

import functools
import re
from dataclasses import is_dataclass
from inspect import isclass
from typing import Any, get_args

import jaxtyping

_every = jaxtyping.jaxtyped


def check_shapes_only() -> None:
    """From now on jaxtyping's import hook leaves alone what has no shape in its annotations."""
    jaxtyping.jaxtyped = _jaxtyped


def _jaxtyped(thing: Any = None, *, typechecker: Any) -> Any:
    if thing is None:
        return functools.partial(_jaxtyped, typechecker=typechecker)
    return _every(thing, typechecker=typechecker) if has_shapes(thing) else thing


def has_shapes(thing: Any) -> bool:
    """Whether a function, a property or the fields of a dataclass are annotated with an array's shape."""
    if isclass(thing):
        return is_dataclass(thing) and has_shapes(thing.__init__)
    if isinstance(thing, property):
        return has_shapes(thing.fget)
    function = getattr(thing, "__func__", thing)
    words = {word for kind in function.__annotations__.values() for word in re.findall(r"\w+", str(kind))}
    return any(_is_shape(function.__globals__.get(word)) for word in words)


def _is_shape(kind: Any) -> bool:
    if isclass(kind) and issubclass(kind, jaxtyping.AbstractArray | jaxtyping.AbstractDtype):
        return True
    return any(map(_is_shape, get_args(kind)))
