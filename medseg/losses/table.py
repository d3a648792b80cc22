"""The table of losses: a decorator files a function under its name, with what a person must know to choose it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from jaxtyping import Float
from torch import Tensor

from medseg.machine.dotted import named
from medseg.types import PerClass, PerSample, PerVoxel

Family = Literal["distribution", "region", "boundary", "compound"]
Reduced = Float[Tensor, "*samples"]
"""A value already reduced as the comparison asks: a scalar, or one per sample (b,)."""

Mode = Literal["multiclass", "binary", "multilabel"]
MODES: tuple[Mode, ...] = get_args(Mode)
PER_CLASS_KNOBS: dict[str, Any] = {
    "include_background": True,
    "weight": None,
    "weight_mode": "normalized",
    "absent": "keep",
}
PER_VOXEL_KNOBS: dict[str, Any] = {"weight": None, "normalize": "voxels"}

F = TypeVar("F", bound=Callable[..., Tensor])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loss of the table.

    Args:
        name: The function's own name; what an expression calls it.
        function: The pure function; its first argument is a `Comparison`, the others are its own knobs.
        family: The chapter: distribution, region, boundary or compound.
        paper: Where it was published.
        modes: The modes it has a meaning in.
        own: The function's own knobs with their defaults.
        shared: The knobs the door adds and applies: background, class weights, absent classes, batch.
        soft: Whether fractional targets are meaningful ("soft_target" if only with that knob on).
        alone: Whether it trains a network without a companion.
        handles: Of "imbalance", "small", "boundary", "missing", those it was made for.
        cost: ``streamed``, ``maps`` (full probability maps), ``distance`` or ``sort``.
        range: The values it can take, as mathematics.
        parts: Rows of the losses it is made of, whose knobs it takes too.
        learnable: Names of keyword tensors the module learns, each mapped to the knob with its first value.
        excepts: Laws of the test suite it cannot keep ("law" or "law mode"), each with the reason.
    """

    name: str
    function: Callable[..., Tensor]
    family: Family
    paper: str
    modes: tuple[str, ...]
    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    yields: Any
    soft: bool | str = False
    alone: bool = True
    handles: tuple[str, ...] = ()
    cost: str = "streamed"
    range: str = "[0, ∞)"
    parts: tuple[Row, ...] = ()
    learnable: Mapping[str, str] = field(default_factory=dict)
    excepts: Mapping[str, str] = field(default_factory=dict)

    @property
    def knobs(self) -> dict[str, Any]:
        """Every legal keyword with its default; a function's own default wins over the shared one."""
        return {**self.own, **{k: v for k, v in self.shared.items() if k not in self.own}}

    def __reduce__(self) -> tuple[Callable[[str], Row], tuple[str]]:
        """Pickle as the name, which other processes look up, or import if it is a dotted path."""
        return row_named, (self.name,)


_ROWS: dict[str, Row] = {}


def loss(
    *,
    family: Family,
    paper: str,
    modes: tuple[str, ...] = MODES,
    batch: bool | None = None,
    parts: tuple[Callable[..., Tensor], ...] = (),
    **about: Any,
) -> Callable[[F], F]:
    """File the decorated function in the table under its own name.

    Its return annotation says what the door still has to do: `PerClass` (b c) is averaged over classes and samples
    with the knobs ``include_background``, ``weight``, ``weight_mode`` and ``absent``; `PerVoxel` is averaged over
    voxels with ``weight`` and ``normalize``; `PerSample` and `Reduced` are left as they are. If the function lists
    one of those knobs itself, its own default holds and the value is handed to it as well.

    Args:
        family: The chapter.
        paper: Authors, year, title or venue, identifier.
        modes: The modes the loss has a meaning in.
        batch: Give it the knob ``batch`` with this default: whether its sums run over the batch and all ranks too.
        parts: Losses of the table it is made of: it takes their knobs too, as ``**knobs``, and its own defaults win.
        **about: The other columns of `Row`.
    """

    def file(function: F) -> F:
        name = function.__name__
        if name in _ROWS and _ROWS[name].function.__module__ != function.__module__:
            raise ValueError(f"there is a loss {name!r} already, in {_ROWS[name].function.__module__}: rename yours")
        made_of = tuple(row(part) for part in parts)
        _ROWS[name] = _read(function, name, batch, family=family, paper=paper, modes=modes, parts=made_of, **about)
        return function

    return file


def _read(function: Callable[..., Tensor], name: str, batch: bool | None, **about: Any) -> Row:
    """Make a row of what a function's signature says, and of what it cannot say."""
    own: dict[str, Any] = {}
    for knob in list(inspect.signature(function).parameters.values())[1:]:
        if knob.kind is inspect.Parameter.KEYWORD_ONLY and knob.default is not knob.empty:
            own[knob.name] = knob.default
        elif knob.kind is not inspect.Parameter.VAR_KEYWORD:
            raise ValueError(f"{name}: its knob {knob.name} must stand after a * and have a default")
    own = {knob: default for knob, default in own.items() if knob not in about.get("learnable", {})}
    for part in about.get("parts", ()):
        own |= {knob: default for knob, default in part.knobs.items() if knob not in own}
    try:
        yields = get_type_hints(function).get("return")
    except NameError as error:
        raise ValueError(f"{name}: an annotation cannot be read ({error})") from None
    if yields not in (PerClass, PerVoxel, PerSample, Reduced):
        raise ValueError(f"{name} must be annotated to return PerClass, PerVoxel, PerSample or Reduced, not {yields}")
    shared = dict(PER_CLASS_KNOBS if yields is PerClass else PER_VOXEL_KNOBS if yields is PerVoxel else {})
    if batch is not None:
        shared["batch"] = batch
    return Row(name=name, function=function, own=own, shared=shared, yields=yields, **about)


def rows() -> dict[str, Row]:
    """All losses by name, in the order of the chapters."""
    return dict(_ROWS)


def row(function: Callable[..., Tensor]) -> Row:
    """The row a function was filed under, or would be if its annotations were all there is to say."""
    filed = _ROWS.get(function.__name__)
    return filed if filed is not None and filed.function is function else _unfiled(function)


@cache
def _unfiled(function: Callable[..., Tensor]) -> Row:
    path = f"{function.__module__}.{function.__qualname__}"
    return _read(function, path, None, family="compound", paper="", modes=MODES)


def row_named(name: str) -> Row:
    """The row of a name of the table, or of a dotted path, whose file is imported.

    A function of one's own need not be decorated: its annotations say the rest.

    Raises:
        UsageError: The path cannot be imported.
        ValueError: What it names is no loss.
    """
    if "." not in name:
        return _ROWS[name]
    function = named(name, option="loss")
    if not inspect.isfunction(function):
        raise ValueError(f"{name} is no function from a Comparison to a loss")
    return replace(row(function), name=name)
