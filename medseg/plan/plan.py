"""The plan: the numbers that training and prediction must share, as a short YAML that a person reads and edits."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from medseg.errors import DataError
from medseg.machine.documents import parse_document, read_text
from medseg.machine.files import write_text
from medseg.machine.typed import fields_of, misspelt, to_plain
from medseg.space.labels import IGNORED, LabelValue, Others, Painting, others_value, overlap, values_of
from medseg.space.labels import paint_order as default_order
from medseg.space.volume import STORED

Triple = tuple[int, int, int]

SCHEMA = 1
"""Version of the plan's layout; a plan of another version is refused with a sentence."""

SCHEMES = ("ct", "zscore", "zscore_nonzero", "rescale", "none")


@dataclass(frozen=True)
class Normalisation:
    """How the intensities of one modality become numbers around zero.

    Attributes:
        scheme: ``"ct"`` clips to [lower, upper], then (x − mean) / std with these constants; ``"zscore"`` uses each
            case's own mean and std; ``"zscore_nonzero"`` the same over its non-zero voxels, leaving the others at zero;
            ``"rescale"`` maps each case's [min, max] to [0, 1]; ``"none"`` leaves the values alone.
        lower: Lower clip in the unit of the image (only ``"ct"``).
        upper: Upper clip (only ``"ct"``).
        mean: Subtracted (only ``"ct"``).
        std: Divided by (only ``"ct"``).
    """

    scheme: str = "zscore"
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(misspelt("normalisation scheme", self.scheme, SCHEMES))
        finite = all(map(isfinite, (self.lower, self.upper, self.mean, self.std)))
        if self.scheme == "ct" and not (finite and self.upper > self.lower and self.std > 0):
            raise ValueError(
                f"normalisation ct needs lower < upper and std > 0, got lower {self.lower}, upper {self.upper}, "
                f"std {self.std}; measure them with medseg plan"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data: only the numbers that the scheme uses."""
        return asdict(self) if self.scheme == "ct" else {"scheme": self.scheme}

    @classmethod
    def from_dict(cls, data: Any) -> Normalisation:
        """Rebuild from plain data.

        Raises:
            ValueError: A key or a value is not one of ours; the sentence names the nearest.
        """
        return cls(**fields_of(cls, data, "normalisation"))


@dataclass(frozen=True)
class Plan:
    """Everything that preparation, training and prediction must agree on.

    Attributes:
        name: Name of the dataset.
        modalities: A name per image channel.
        labels: Organ name to the value, or (overlapping regions) the values, that it has in the label files; the
            background 0 is left out. The order is the order of the classes.
        orientation: Axis codes of the prepared grid, such as ``"RAS"``; or the letters of the files' own axes, such as
            ``"kji"``, where these are taken as stored, in this order.
        spacing_mm: Edge lengths of a voxel of the prepared grid.
        patch_size: Voxels of a training patch; a multiple of the product of the strides.
        batch_size: Patches per training step.
        normalisation: One per modality.
        strides: Per stage of the network; the first stage keeps the resolution.
        kernels: Convolution kernel per stage.
        features: Channels per stage.
        ignore: Value of voxels that were not annotated, or None.
        paint_order: For overlapping regions, the value that each organ is painted with, in class order, later over
            earlier; None when organs exclude each other.
        mirror_axes: Axes that augmentation and prediction may flip.
        swap_labels: Pairs of organ names that a flip of axis 0 exchanges.
        own_spacing: Axes along which each case keeps the spacing that it has, as a network of single slices wants it;
            ``spacing_mm`` then tells a usual one.
        independent: Whether each organ is decided for itself, as overlapping ones are, although none overlap.
        others: What the values of label files that ``labels`` leaves out count as; None where there may be none.
        schema: Version of this layout.
        reasons: Why each number is so, by field; written as comments, no part of equality.

    Raises:
        ValueError: The numbers contradict each other; the sentence says which and what to do.

    Example:
        >>> plan = Plan("toy", ("CT",), {"liver": 1, "spleen": 3}, "RAS", (1.0, 1.0, 1.0), (16, 16, 16), 2,
        ...             (Normalisation(),), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (8, 16))
        >>> plan.organs, plan.num_classes, plan.mode, plan.atoms
        (('liver', 'spleen'), 3, 'multiclass', (1, 3))
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    name: str
    modalities: tuple[str, ...]
    labels: dict[str, LabelValue]
    orientation: str
    spacing_mm: tuple[float, float, float]
    patch_size: Triple
    batch_size: int
    normalisation: tuple[Normalisation, ...]
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    features: tuple[int, ...]
    ignore: int | None = None
    paint_order: tuple[int, ...] | None = None
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    swap_labels: tuple[tuple[str, str], ...] = ()
    own_spacing: tuple[int, ...] = ()
    independent: bool = False
    others: Others | None = None
    schema: int = SCHEMA
    reasons: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_schema(self.schema)
        _check_labels(self)
        _check_grid(self)
        _check_network(self)

    @property
    def organs(self) -> tuple[str, ...]:
        """Organ names in class order, background left out."""
        return tuple(self.labels)

    @property
    def values(self) -> tuple[tuple[int, ...], ...]:
        """The label values of each organ, in class order."""
        return tuple(map(values_of, self.labels.values()))

    @property
    def exclusive(self) -> bool:
        """Whether no voxel can be decided to belong to two organs."""
        return not (self.independent or overlap(self.labels.values()))

    @property
    def atoms(self) -> tuple[int, ...]:
        """The label values told apart in the store: one per organ when exclusive, else each distinct value, sorted."""
        if self.exclusive:
            return tuple(values[0] for values in self.values)
        return tuple(sorted({value for values in self.values for value in values}))

    @property
    def painting(self) -> Painting:
        """What a voxel of some organs is called in predicted label files."""
        default = self.atoms if self.exclusive else default_order(self.values)
        return Painting(self.values, self.paint_order or default)

    @property
    def highest(self) -> int:
        """The highest value that a predicted label file may hold."""
        return int(max((*self.painted_classes, *(() if self.exclusive else map(max, self.values)))))

    @property
    def others_value(self) -> int | None:
        """The value that undeclared values of a label file count as, None where they are refused."""
        return others_value(self.others, self.ignore)

    @property
    def painted(self) -> dict[str, int]:
        """Organ → the value that it has in predicted label files; of overlapping ones, later over earlier."""
        alone = [self.painting.value((index,)) for index in range(len(self.organs))]
        return dict(zip(self.organs, alone if self.exclusive else self.painting.order, strict=True))

    @property
    def painted_classes(self) -> tuple[int, ...]:
        """The same by class of the network: background first where organs exclude each other."""
        return (0,) * self.exclusive + tuple(self.painted.values())

    @property
    def atom_of_value(self) -> dict[int, int]:
        """Label value in a file → index in the store: 0 background, k the k-th atom, −1 ignored."""
        if self.exclusive:
            table = {value: index for index, values in enumerate(self.values, start=1) for value in values}
        else:
            table = {value: index for index, value in enumerate(self.atoms, start=1)}
        return {0: 0} | table | ({} if self.ignore is None else {self.ignore: IGNORED})

    @property
    def mode(self) -> str:
        """``"multiclass"`` (softmax) when organs exclude each other, else ``"multilabel"`` (sigmoid)."""
        return "multiclass" if self.exclusive else "multilabel"

    @property
    def num_classes(self) -> int:
        """Output channels of the network: background and organs when exclusive, else organs."""
        return len(self.labels) + int(self.exclusive)

    @property
    def membership(self) -> Float[np.ndarray, "c atoms_and_background"]:
        """1 where the store's index (column, 0 is background) belongs to the class (row), else 0."""
        if self.exclusive:
            return np.eye(self.num_classes, dtype=np.float32)
        rows = [[0.0] + [float(atom in values) for atom in self.atoms] for values in self.values]
        return np.array(rows, dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: str, int, float, None, list and dict only, so that it loads under ``weights_only=True``."""
        told = [spec.name for spec in fields(self) if spec.name != "reasons"]
        told = [name for name in told if name not in _SELDOM or getattr(self, name)]
        data = {name: to_plain(getattr(self, name)) for name in told}
        return {"schema": data.pop("schema")} | data

    @classmethod
    def from_dict(cls, data: Any, *, reasons: Mapping[str, str] | None = None) -> Plan:
        """Rebuild from plain data, as `to_dict` writes it.

        Raises:
            ValueError: A key is missing or not one of ours (the sentence names the nearest), or a value has the wrong
                type or contradicts another.
        """
        _check_schema(data.get("schema", SCHEMA) if isinstance(data, Mapping) else SCHEMA)
        known = fields_of(cls, data, "the plan")
        missing = [key for key in REQUIRED if key not in known]
        if missing:
            raise ValueError(f"the plan lacks {', '.join(missing)}")
        return cls(**known | {"reasons": dict(reasons or {})})


def read_plan(path: str | Path) -> Plan:
    """Read a plan, its comments included.

    Raises:
        DataError: The file is missing, not YAML, or a number in it cannot be; the sentence says which.
    """
    remedy = "Compare with a plan written by medseg plan"
    return _parsed(Path(path), read_text(Path(path), remedy=remedy), remedy)


@functools.lru_cache(maxsize=8)  # a training asks for that of its store five times
def _parsed(path: Path, text: str, remedy: str) -> Plan:
    try:
        plan = Plan.from_dict(parse_document(path, text, remedy=remedy))
        marks = dict(_MARK.findall(text.partition("# as chosen: ")[2]))
        return replace(plan, reasons=_still_true(plan, _comments(text), marks))
    except ValueError as error:
        raise DataError(path, f"is not a usable plan: {error}", "Edit it or write it anew with medseg plan") from None


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as YAML, each number under the comment that says why it is so; whole or not at all."""
    write_text(path, _as_yaml(plan))


def _as_yaml(plan: Plan) -> str:
    lines = []
    for key, value in plan.to_dict().items():
        lines += textwrap.wrap(plan.reasons.get(key, ""), 116, initial_indent="# ", subsequent_indent="# ")
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict) for x in value))
        text = yaml.safe_dump(
            {key: value}, default_flow_style=None if nested else True, sort_keys=False, width=10_000, allow_unicode=True
        )
        lines.append(text.strip() if nested else text.strip()[1:-1])
    marks = " ".join(f"{key}={mark}" for key, mark in _marks(plan).items())
    lines += textwrap.wrap(marks, 100, initial_indent="# as chosen: ", subsequent_indent="# as chosen: ")
    return "\n".join(lines) + "\n"


def _marks(plan: Plan) -> dict[str, str]:
    """A few letters of every number that has a reason, and of what such a number was chosen for."""
    keys = {*plan.reasons, *(cause for key in plan.reasons for cause in CAUSES.get(key, ()))}
    told = {key: json.dumps(value) for key, value in plan.to_dict().items() if key in keys}
    return {key: hashlib.sha256(text.encode()).hexdigest()[:6] for key, text in told.items()}


def _still_true(plan: Plan, reasons: dict[str, str], written: Mapping[str, str]) -> dict[str, str]:
    """The reasons, where somebody has edited a number or what it was chosen for with a word about that."""
    marks = _marks(replace(plan, reasons=reasons))
    edited = [key for key, mark in written.items() if marks.get(key, mark) != mark]
    for key in reasons:
        causes = [cause for cause in CAUSES.get(key, ()) if cause in edited]
        if key in edited:
            reasons[key] = EDITED
        elif causes and not reasons[key].startswith((EDITED, STALE)):
            reasons[key] = f"{STALE} {' and '.join(causes)} was edited: {reasons[key]}"
    return reasons


def _comments(text: str) -> dict[str, str]:
    """The comment lines above each top-level key, joined."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            above.append(line.lstrip("# ").rstrip())
        elif ":" in line and not line.startswith((" ", "-")):
            if above:
                found[line.split(":")[0].strip()] = " ".join(above)
            above = []
    return found


CAUSES = {
    "patch_size": ("spacing_mm",),
    "batch_size": ("spacing_mm", "patch_size", "features"),
    "strides": ("spacing_mm", "patch_size"),
    "features": ("strides",),
}
"""What a number is chosen for: where that is edited, the number is as it was, and its reason says so."""

EDITED = "Edited by hand."
STALE = "Chosen before"
_MARK = re.compile(r"\b(\w+)=([0-9a-f]{6})\b")  # in the last lines of a plan

REQUIRED = tuple(spec.name for spec in fields(Plan) if spec.default is MISSING and spec.default_factory is MISSING)
_SELDOM = (
    "own_spacing",
    "independent",
    "others",
)  # written only where they say something: older versions do not know them
LEGAL_CODES = ({"L", "R"}, {"P", "A"}, {"I", "S"})


def _check_schema(schema: object) -> None:
    if schema != SCHEMA:
        raise ValueError(f"the plan has schema {schema!r}, this medseg reads {SCHEMA}")


def _check_labels(plan: Plan) -> None:
    if not plan.labels:
        raise ValueError("the plan names no organ under labels; add at least one, such as 'liver: 1'")
    for name, values in zip(plan.organs, plan.values, strict=True):
        if not values or min(values) < 1 or len(set(values)) != len(values):
            raise ValueError(f"label {name!r} must have one or more distinct positive values, got {list(values)}")
    if plan.ignore is not None and (plan.ignore == 0 or any(plan.ignore in values for values in plan.values)):
        raise ValueError(f"ignore {plan.ignore} is also a label; unannotated voxels need a value of their own")
    if plan.paint_order is not None and len(plan.paint_order) != len(plan.labels):
        raise ValueError(f"paint_order needs a value per organ ({len(plan.labels)}), got {len(plan.paint_order)}")
    for two in plan.swap_labels:
        if two[0] == two[1]:
            raise ValueError(f"swap_labels needs pairs of different names, got {two[0]!r} twice")
        for name in two:
            if name not in plan.labels:
                raise ValueError(misspelt("organ of swap_labels", name, plan.organs))


def _check_grid(plan: Plan) -> None:
    codes = plan.orientation
    anatomical = all(any(code in pair for code in codes) for pair in LEGAL_CODES)
    if len(codes) != 3 or not (anatomical or set(codes) == STORED):
        problem = f"orientation must have one of L/R, P/A and I/S each, such as RAS, got {codes!r}"
        raise ValueError(f"{problem}; or i, j and k once each: the axes as stored, in this order")
    if not all(np.isfinite(step) and step > 0 for step in plan.spacing_mm):
        raise ValueError(f"spacing_mm must be three positive numbers, got {plan.spacing_mm}")
    if not plan.modalities or len(plan.normalisation) != len(plan.modalities):
        raise ValueError(
            f"normalisation needs one entry per modality: {len(plan.modalities)} modalities, "
            f"{len(plan.normalisation)} entries"
        )
    for name, axes in (("mirror_axes", plan.mirror_axes), ("own_spacing", plan.own_spacing)):
        if len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"{name} must be distinct axes out of 0, 1 and 2, got {list(axes)}")


def _check_network(plan: Plan) -> None:
    stages = {"strides": len(plan.strides), "kernels": len(plan.kernels), "features": len(plan.features)}
    if len(set(stages.values())) != 1 or not plan.strides:
        raise ValueError(f"strides, kernels and features need one entry per stage each, got {stages}")
    numbers = [*plan.features, plan.batch_size, *np.ravel(plan.strides), *np.ravel(plan.kernels), *plan.patch_size]
    if min(numbers) < 1:
        raise ValueError("patch_size, batch_size, strides, kernels and features must be positive")
    if tuple(plan.strides[0]) != (1, 1, 1):
        raise ValueError(
            f"strides must begin with [1, 1, 1], the stage at full resolution, got {list(plan.strides[0])}"
        )
    if not all(size % 2 for kernel in plan.kernels for size in kernel):
        raise ValueError(f"kernels must be odd, so that they have a centre, got {[list(k) for k in plan.kernels]}")
    total = np.prod(plan.strides, axis=0)
    if any(size % step for size, step in zip(plan.patch_size, total, strict=True)):
        raise ValueError(
            f"patch_size {list(plan.patch_size)} must be a multiple of {total.tolist()}, the product of the strides"
        )
