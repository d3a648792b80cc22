"""The table of losses: a decorator files a function under its name, with what a person must know to choose it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

from jaxtyping import Float
from torch import Tensor

from medseg.types import PerClass, PerSample, PerVoxel

Family = Literal["distribution", "region", "boundary", "compound"]
Reduced = Float[Tensor, "*samples"]
"""A value already reduced as the comparison asks: a scalar, or one per sample (b,)."""

ALL_MODES = ("multiclass", "binary", "multilabel")
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


_ROWS: dict[str, Row] = {}


def loss(
    *,
    family: Family,
    paper: str,
    modes: tuple[str, ...] = ALL_MODES,
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
        parameters = inspect.signature(function).parameters.values()
        learnable = about.get("learnable", {})
        made_of = tuple(row(part) for part in parts)
        own = {
            p.name: p.default
            for p in parameters
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in learnable
        }
        for part in made_of:
            own |= {name: default for name, default in part.knobs.items() if name not in own}
        yields = get_type_hints(function)["return"]
        shared: dict[str, Any] = {}
        if yields is PerClass:
            shared = dict(PER_CLASS_KNOBS)
        elif yields is PerVoxel:
            shared = dict(PER_VOXEL_KNOBS)
        elif yields not in (PerSample, Reduced):
            raise TypeError(f"{function.__name__} must return PerClass, PerVoxel, PerSample or Reduced, not {yields}")
        if batch is not None:
            shared["batch"] = batch
        name = function.__name__
        _ROWS[name] = Row(
            name=name, function=function, family=family, paper=paper, modes=modes, own=own, shared=shared,
            yields=yields, parts=made_of, **about,
        )  # fmt: skip
        return function

    return file


def rows() -> dict[str, Row]:
    """All losses by name, in the order of the chapters."""
    return dict(_ROWS)


def row(function: Callable[..., Tensor]) -> Row:
    """The row a function was filed under."""
    return _ROWS[function.__name__]
