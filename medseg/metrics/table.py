"""The table of metrics: a decorator files a function of one organ in one case, with what its numbers mean."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool

from medseg.errors import UsageError
from medseg.machine.dotted import named
from medseg.metrics.detection import Lesions, match_lesions
from medseg.metrics.elements import element_distances
from medseg.metrics.empty import Outcome
from medseg.metrics.overlap import Counts
from medseg.metrics.surface import Surfaces, surface_distances
from medseg.space.distance import Steps

Element = Literal["voxels", "areas"]
"""What a surface is made of: boundary voxels that count alike (MONAI), or faces that count by area (deepmind)."""

ELEMENTS: dict[str, Callable[..., Surfaces]] = {"voxels": surface_distances, "areas": element_distances}

F = TypeVar("F", bound=Callable[..., float])


@dataclass
class OrganPair:
    """One organ in one case: its two masks, cut to the box that holds both, and what several metrics read of them.

    Attributes:
        prediction: A mask.
        reference: A mask of the same shape.
        spacing_mm: Distance between voxel centres along each axis, or the matrix of the steps of a sheared grid.
        diagonal_mm: Of the whole image, see `medseg.metrics.empty`.
        element: What surfaces are made of.
        flat: The axis along which the image has one voxel only: surfaces are outlines across it.
    """

    prediction: Bool[np.ndarray, "*space"]
    reference: Bool[np.ndarray, "*space"]
    spacing_mm: Steps
    diagonal_mm: float
    element: str = "voxels"
    flat: int | None = None

    @cached_property
    def counts(self) -> Counts:
        """Voxels that both, only the prediction, and only the reference have."""
        masks = (self.prediction & self.reference, self.prediction, self.reference)
        tp, predicted, true = (int(np.count_nonzero(mask)) for mask in masks)
        return Counts(tp, predicted - tp, true - tp)

    @cached_property
    def surfaces(self) -> Surfaces:
        """The distances between both surfaces; neither mask may be empty."""
        one, other, steps = self.prediction, self.reference, self.spacing_mm
        if self.flat is not None:
            one, other = one.squeeze(self.flat), other.squeeze(self.flat)
            steps = np.delete(np.asarray(steps, dtype=np.float64), self.flat, axis=-1)
        return ELEMENTS[self.element](one, other, spacing_mm=steps)

    @cached_property
    def lesions(self) -> Lesions:
        """Connected components, matched."""
        return match_lesions(self.prediction, self.reference)


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of the table.

    Attributes:
        name: The function's own name: a column of cases.csv. A unit stands at its end.
        function: From an `OrganPair` and options to a number.
        best: The value of a perfect prediction; None where that depends on the organ.
        better: Whether ``higher`` or ``lower`` is better; ``neither`` for a quantity.
        empty: What an organ scores that one side or both lack: as an ``overlap`` (0, and 1 if both do), as a
            ``distance`` (the image's diagonal, and 0), or what the function says (``computed``).
        leading: Tables and figures show it first.
        symmetric: Prediction and reference may change places.
        options: The keyword arguments of the function with their defaults.
    """

    name: str
    function: Callable[..., float]
    best: int | float | None
    better: Literal["higher", "lower", "neither"]
    empty: Literal["overlap", "distance", "computed"]
    leading: bool
    symmetric: bool
    options: Mapping[str, Any]

    @property
    def meaning(self) -> str:
        """The first sentence of its docstring, without the full stop."""
        return (inspect.getdoc(self.function) or "").split("\n\n")[0].rstrip(".")

    @property
    def range(self) -> tuple[float, float]:
        """The least and the most that medseg's own metrics can be: what an organ scores that is missed, or is right."""
        ends = {"overlap": (0.0, 1.0), "distance": (0.0, math.inf)}
        return ends.get(self.empty, (-math.inf, math.inf))

    def value(self, pair: OrganPair, options: Mapping[str, Any]) -> float:
        """The metric of an organ, an empty side decided as everywhere."""
        if self.empty != "computed" and not (pair.counts.predicted and pair.counts.reference):
            absent = pair.counts.outcome is Outcome.ABSENT
            return float(absent) if self.empty == "overlap" else 0.0 if absent else pair.diagonal_mm
        return float(self.function(pair, **{name: options[name] for name in self.options if name in options}))


_ROWS: dict[str, MetricRow] = {}


def metric(
    *,
    better: Literal["higher", "lower", "neither"],
    empty: Literal["overlap", "distance", "computed"],
    best: int | float | None = None,
    leading: bool = False,
    symmetric: bool = False,
) -> Callable[[F], F]:
    """File the decorated function in the table under its own name; its arguments are columns of `MetricRow`."""

    def file(function: F) -> F:
        name, parameters = function.__name__, inspect.signature(function).parameters.values()
        if name in _ROWS and _ROWS[name].function.__module__ != function.__module__:
            raise ValueError(f"there is a metric {name} already; give yours another name")
        _ROWS[name] = MetricRow(
            name=name, function=function, best=best, better=better, empty=empty, leading=leading,
            symmetric=symmetric, options={p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY},
        )  # fmt: skip
        return function

    return file


def take_in(paths: Iterable[str] | None) -> None:
    """Import metrics of one's own by their dotted paths, so that every score of this process has them.

    Raises:
        UsageError: One cannot be imported, or is not filed under `metric`.

    Example:
        >>> take_in(["statistics.mean"])
        Traceback (most recent call last):
        medseg.errors.UsageError: --metric: statistics.mean is no metric. Put @medseg.metrics.metric above it.
    """
    for path in paths or ():
        function = named(path, option="--metric")
        if function not in [row.function for row in _ROWS.values()]:
            raise UsageError(f"--metric: {path} is no metric", "Put @medseg.metrics.metric above it")


def rows() -> dict[str, MetricRow]:
    """All metrics by name, in the order of their columns: those that lead first."""
    return dict(sorted(_ROWS.items(), key=lambda item: not item[1].leading))
