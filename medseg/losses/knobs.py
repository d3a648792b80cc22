"""Legal knobs and their types: a wrong one is answered with the right ones before any training starts."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from medseg.errors import meant
from medseg.losses.table import Row
from medseg.machine.typed import Interval, is_sequence, typed, words

Amount = Annotated[float, Interval(0.0)]
"""At least 0: what ``float`` means in the signature of a loss."""

Share = Annotated[float, Interval(0.0, 1.0)]
"""A part of something."""

Real = Annotated[float, Interval()]
"""Any finite number."""

Extended = Annotated[float, Interval(0.0, math.inf)]
"""At least 0, or ``inf``."""

Weights = Sequence[float] | Tensor | None
"""A number per class, background included, or None for equal weights."""

SHARED: dict[str, tuple[Any, str]] = {
    "include_background": (bool, "Whether channel 0 counts (multiclass; the other modes have no such channel)."),
    "weight": (Weights, "One number per class, background included."),
    "weight_mode": (
        Literal["normalized", "plain"],
        "Divide by the sum of the weights (normalized) or by the number of classes (plain).",
    ),
    "absent": (Literal["keep", "ignore"], "Whether a class without a target voxel counts (keep) or not (ignore)."),
    "normalize": (
        Literal["voxels", "weights"],
        "Divide by the number of voxels, or by the sum of their class weights.",
    ),
    "batch": (bool, "Whether sums run over the batch, on all ranks, before the ratio is taken."),
}
"""Type and meaning of the knobs that the door adds."""


def checked_knobs(row: Row, knobs: dict[str, Any]) -> dict[str, Any]:
    """Refuse a knob the loss does not have, or a value of another type; whole numbers pass for real ones.

    Raises:
        ValueError: Naming the nearest legal knob and all of them, or the type expected.
    """
    checked = {}
    for name, value in knobs.items():
        if name not in row.knobs:
            legal = ", ".join(row.knobs) or "none"
            raise ValueError(f"{row.name} has no knob {name!r}{meant(name, row.knobs)}; its knobs are: {legal}")
        kind = knob_type(row, name)
        try:
            checked[name] = typed(value, kind)
        except (ValueError, OverflowError):
            raise ValueError(f"{row.name}({name}={value!r}): expected {words(kind)}") from None
    return checked


def knob_type(row: Row, name: str) -> Any:
    """The annotation of a knob."""
    hints = get_type_hints(inspect.unwrap(row.function), include_extras=True)
    if name in hints:
        return _bounded(hints[name])
    owners = [part for part in row.parts if name in part.knobs]
    return knob_type(owners[0], name) if owners else _bounded(SHARED[name][0])


def _bounded(kind: Any) -> Any:
    """An annotation in which every plain ``float`` is an `Amount`.

    Example:
        >>> words(_bounded(Sequence[float] | None))
        'a list (each a number of at least 0) or None'
    """
    if get_origin(kind) in (Union, types.UnionType):
        return reduce(or_, map(_bounded, get_args(kind)))
    if is_sequence(kind):
        return Sequence[_bounded(get_args(kind)[0])]  # type: ignore[misc]  # made at run time
    return Amount if kind is float else kind
