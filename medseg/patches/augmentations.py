"""The table of augmentations: a decorator files a function under its name, with all that drawing it needs to know.

The keyword arguments of the function are its settings: a pair is a range from which each patch (or each of its
modalities) draws a number, anything else is handed over as it is. The body sees what was drawn::

    @augmentation(probability=0.1)
    def speckle(volume: Volume, *, speckle_std: Drawn = (0.0, 0.1), generator: torch.Generator) -> None:
        volume.mul_(1 + speckle_std * torch.randn(volume.shape, generator=generator, device=volume.device))
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

Range = tuple[float, float]
"""A lowest and a highest number."""

Drawn = Any
"""A number, drawn for each patch or modality from the range that is the argument's default."""

Volume = Float[Tensor, "i j k"]
"""One modality of a patch: a function of it is called for each, with numbers of its own, and works in place."""

Image = Float[Tensor, "m i j k"]
"""All modalities of a patch, which share what was drawn; works in place."""

Matrix = Float64[np.ndarray, "3 3"]
"""From an offset to the patch's centre to the offset looked at, in millimetres."""

Field = Float32[np.ndarray, "3 g g g"]
"""Displacement of control points of a cubic spline that spans the patch, in voxels."""

KINDS: dict[str, Any] = {"volume": Volume, "image": Image, "matrix": Matrix, "field": Field}

F = TypeVar("F", bound=Callable[..., Any])
Draws = Callable[..., NDArray[Any]]
"""``(rng, chosen, geometry, value, **others)`` -> what was drawn, its first axis that of ``chosen``, the modalities."""

Reach = Callable[..., NDArray[np.float64]]
"""``(furthest_mm, geometry, **settings)`` -> how far one looks with it, along each axis, from how far without."""


@dataclass(frozen=True)
class Bounds:
    """What a number, or both ends of a range, may be.

    Example:
        >>> print(Bounds(0, 1, above=True), -1 in Bounds())
        above 0, at most 1 False
    """

    low: int | float = 0
    high: int | float = math.inf
    above: bool = False

    def __contains__(self, value: int | float) -> bool:
        """Whether it is finite and within."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        """Where it ends."""
        if math.isfinite(self.high - self.low) and not self.above:
            return f"between {self.low:g} and {self.high:g}"
        ends = [f"{'above' if self.above else 'at least'} {self.low:g}"] * math.isfinite(self.low)
        return ", ".join(ends + [f"at most {self.high:g}"] * math.isfinite(self.high))


@dataclass(frozen=True)
class Setting:
    """A default that says more than its value.

    Attributes:
        default: A number, or a range.
        bounds: What it may be.
        draws: How it is drawn, where that is not uniform in its range.
        neutral: Where nothing is changed; None if there is no such value.
    """

    default: Any
    bounds: Bounds = Bounds()
    draws: Draws | None = None
    neutral: float | None = None


@dataclass(frozen=True, kw_only=True)
class AugmentationRow:
    """One augmentation of the table.

    Attributes:
        name: The function's own name.
        function: What is applied; of a matrix or field, what is drawn.
        kind: One of `KINDS`: what it changes, or returns.
        settings: The function's keyword arguments and the probabilities, each with its default.
        presets: The presets in which it has its probability, each with the settings that differ there.
        reach: Of a matrix or field, how far it looks; None if no further than the patch.
        seeded: It takes a ``generator`` of the device where the patch is.
        excepts: Laws of the test suite it cannot keep, each with the reason.
    """

    name: str
    function: Callable[..., Any]
    kind: str
    settings: Mapping[str, Setting]
    presets: Mapping[str, Mapping[str, Any]]
    reach: Reach | None
    seeded: bool
    excepts: Mapping[str, str]

    @property
    def spatial(self) -> bool:
        """Whether it moves voxels."""
        return self.kind in ("matrix", "field")


_ROWS: dict[str, AugmentationRow] = {}


def augmentation(
    *,
    probability: float,
    channel_probability: float | None = None,
    presets: Mapping[str, Mapping[str, Any]] | Sequence[str] = ("full",),
    reach: Reach | None = None,
    excepts: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """File the decorated function in the table under its own name.

    A function whose first argument is a `Volume` or an `Image` changes intensities in place, on the device. One that
    returns a `Matrix` or a `Field` takes ``(rng, geometry, *, settings)`` and moves voxels, image and labels alike, in
    the one interpolation that all such share.

    Args:
        probability: Of a patch.
        channel_probability: Of each modality in such a patch; None changes all.
        presets: See `AugmentationRow`; names alone where nothing differs.
        reach: See `AugmentationRow`.
        excepts: See `AugmentationRow`.
    """

    def file(function: F) -> F:
        hints, name = get_type_hints(function), function.__name__
        parameters = list(inspect.signature(function).parameters.values())
        forms = hints.get("return"), hints.get(parameters[0].name)
        kind = next((kind for kind, form in KINDS.items() if any(form is one for one in forms)), None)
        if kind is None:
            raise TypeError(f"{name} must change a Volume or an Image, or return a Matrix or a Field")
        if name in _ROWS and _ROWS[name].function.__module__ != function.__module__:
            raise ValueError(f"there is an augmentation {name} already; give yours another name")
        shares = {"probability": probability, "channel_probability": channel_probability}
        settings = {key: Setting(float(value), Bounds(0, 1)) for key, value in shares.items() if value is not None}
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "generator"}
        settings |= {key: value if isinstance(value, Setting) else Setting(value) for key, value in own.items()}
        _ROWS[name] = AugmentationRow(
            name=name, function=function, kind=kind, settings=settings, reach=reach, excepts=excepts or {},
            presets=presets if isinstance(presets, Mapping) else {preset: {} for preset in presets},
            seeded="generator" in hints,
        )  # fmt: skip
        return function

    return file


def rows() -> dict[str, AugmentationRow]:
    """All augmentations by name, in the order in which they are applied."""
    return dict(_ROWS)


@dataclass(frozen=True)
class Strength:
    """An augmentation with the values of its settings, checked.

    Raises:
        ValueError: One is out of its bounds; its key begins the sentence.
    """

    row: AugmentationRow
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        defaults = {name: setting.default for name, setting in self.row.settings.items()}
        object.__setattr__(self, "values", {**defaults, **self.values})
        for name, value in self.values.items():
            check(key_of(self.row, name), value, self.row.settings[name].bounds)

    @property
    def probability(self) -> float:
        """Of a patch."""
        return float(self.values["probability"])

    @property
    def own(self) -> dict[str, Any]:
        """The settings of the function itself."""
        return {key: value for key, value in self.values.items() if not key.endswith("probability")}


def key_of(row: AugmentationRow, setting: str) -> str:
    """What a setting is called where all augmentations stand side by side.

    Example:
        >>> from medseg.patches import intensity
        >>> key_of(rows()["blur"], "probability"), key_of(rows()["blur"], "blur_sigma_voxels")
        ('blur_probability', 'blur_sigma_voxels')
    """
    return f"{row.name}_{setting}" if setting.endswith("probability") else setting


def check(key: str, value: Any, bounds: Bounds) -> None:
    """Refuse numbers that are not finite, out of bounds, or the wrong way round.

    Raises:
        ValueError: They are; the key begins the sentence.
    """
    numbers = value if isinstance(value, tuple) else (value,) if isinstance(value, int | float) else ()
    told = list(value) if isinstance(value, tuple) else value
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{key} is made of finite numbers, got {told}")
    if isinstance(value, tuple) and not (len(value) == 2 and value[0] <= value[1]):
        raise ValueError(f"{key} is a range [lowest, highest], got {told}")
    if not all(number in bounds for number in numbers):
        raise ValueError(f"{key} must be {bounds}, got {told}")
