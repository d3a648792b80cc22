"""How strongly patches are augmented: plain numbers, nnU-Net's by default, and four strengths by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from medseg.machine.dotted import named
from medseg.machine.typed import misspelt
from medseg.patches import intensity, moves  # noqa: F401  # they file their functions in the table
from medseg.patches.augmentations import AugmentationRow, Bounds, Strength, check, key_of, rows

WHOLE: dict[str, tuple[Any, str]] = {
    "mirror_probability": (0.5, "Chance of a flip along each axis that the plan allows."),
    "label_interpolation": ("linear", "`linear`: the label with the largest interpolated share; or `nearest`."),
    "margin": (
        0.25,
        "Voxels around a patch that are read so that rotation and shrinking show real ones, at most this share of the "
        "patch on each side.",
    ),
}
"""Settings of no single augmentation, with default and meaning."""


@dataclass(frozen=True)
class Augmentation:
    """Every augmentation of a training with its settings; made by `augmentation`.

    Each setting can be read by its name, as in ``settings.rotation_deg``.

    Attributes:
        strengths: In the order in which they are applied.
        mirror_probability: See `WHOLE`.
        label_interpolation: See `WHOLE`.
        margin: See `WHOLE`.

    Example:
        >>> augmentation("full").rotation_deg, augmentation("light").rotation_probability
        (30.0, 0.0)
    """

    strengths: tuple[Strength, ...]
    mirror_probability: float = WHOLE["mirror_probability"][0]
    label_interpolation: str = WHOLE["label_interpolation"][0]
    margin: float = WHOLE["margin"][0]

    def __post_init__(self) -> None:
        check("mirror_probability", self.mirror_probability, Bounds(0, 1))
        check("margin", self.margin, Bounds())
        if self.label_interpolation not in ("linear", "nearest"):
            raise ValueError(f"label_interpolation is 'linear' or 'nearest', got {self.label_interpolation!r}")

    def __getattr__(self, key: str) -> Any:
        """The value of a setting by its key."""
        for strength in self.__dict__.get("strengths", ()):
            for setting, value in strength.values.items():
                if key_of(strength.row, setting) == key:
                    return value
        raise AttributeError(key)

    def but(self, **changes: Any) -> Augmentation:
        """The same with other values by key, or with another augmentation by its dotted path and settings.

        Raises:
            ValueError: A key is not known (the nearest is given), or a value is out of its bounds.
            UsageError: A dotted path names nothing that can be imported.
        """
        taken = {strength.row.name: strength.row for strength in self.strengths}
        values = {strength.row.name: dict(strength.values) for strength in self.strengths}
        whole = {}
        for key, value in changes.items():
            if key in WHOLE:
                whole[key] = _typed(key, value, WHOLE[key][0])
                continue
            for row, setting, given in _meant(key, value):
                taken[row.name] = row
                values.setdefault(row.name, {})[setting] = _typed(
                    key_of(row, setting), given, row.settings[setting].default
                )
        strengths = tuple(Strength(row, values[name]) for name, row in taken.items())
        return replace(self, strengths=strengths, **whole)

    @property
    def spatial(self) -> bool:
        """Whether any patch is ever interpolated anew."""
        return any(strength.row.spatial and strength.probability > 0 for strength in self.strengths)


_OURS = tuple(rows().values())

_WHOLE_PRESETS: dict[str, dict[str, Any]] = {
    "none": {"mirror_probability": 0.0},
    "light": {"mirror_probability": 0.0},
    # for minutes on a CPU: full strength and mirrors need many more steps before they pay
    "moderate": {"mirror_probability": 0.0, "label_interpolation": "nearest"},
    "full": {},
}


def _preset(name: str) -> Augmentation:
    strengths = tuple(Strength(row, row.presets.get(name, {"probability": 0.0})) for row in _OURS)
    return Augmentation(strengths, **_WHOLE_PRESETS[name])


PRESETS: dict[str, Augmentation] = {name: _preset(name) for name in _WHOLE_PRESETS}

DEFAULT_PRESET = "moderate"


def augmentation(strength: str | Mapping[str, Any] | Augmentation) -> Augmentation:
    """Settings from a preset's name, or from values by key over the preset that the key ``preset`` names.

    Without that key they lie over `DEFAULT_PRESET`.

    An augmentation of one's own is named by its dotted path, with its settings: ``{mine.speckle: {probability: 0.2}}``.

    Raises:
        ValueError: As `Augmentation.but`, or there is no such preset.
        UsageError: As `Augmentation.but`.

    Example:
        >>> augmentation({"preset": "moderate", "rotation_deg": 10}).rotation_deg
        10.0
    """
    if isinstance(strength, Augmentation):
        return strength
    if not isinstance(strength, str | Mapping):
        raise ValueError(f"augmentation is {strength!r}, expected one of {', '.join(PRESETS)} or a table of settings")
    changes = {"preset": strength} if isinstance(strength, str) else dict(strength)
    preset = str(changes.pop("preset", DEFAULT_PRESET))
    if preset not in PRESETS:
        raise ValueError(misspelt("augmentation", preset, list(PRESETS)))
    return PRESETS[preset].but(**changes)


def without_effect(strength: str | Mapping[str, Any] | Augmentation) -> list[str]:
    """What a table of settings sets in vain, for it is of an augmentation that never happens: a clause each.

    Example:
        >>> without_effect({"preset": "light", "rotation_deg": 10})
        ['rotation_deg does nothing while rotation_probability is 0']
    """
    if not isinstance(strength, Mapping):
        return []
    values = augmentation(strength)
    asked = {
        (row.name, setting)
        for key, value in strength.items()
        if key != "preset" and key not in WHOLE
        for row, setting, _ in _meant(key, value)
        if not isinstance(value, Mapping) or setting in value
    }
    never = [one.row for one in values.strengths if not one.probability and (one.row.name, "probability") not in asked]
    return [
        f"{key_of(row, setting)} does nothing while {key_of(row, 'probability')} is 0"
        for row in never
        for setting in row.settings
        if (row.name, setting) in asked
    ]


def _meant(key: str, value: Any) -> list[tuple[AugmentationRow, str, Any]]:
    """The settings that a key of a config stands for, each with its value."""
    if isinstance(value, Mapping) or "." in key:
        row = _row(key)
        given = {**(value or {})}
        for setting in given:
            if setting not in row.settings:
                raise ValueError(misspelt(f"setting of {row.name}", setting, list(row.settings)))
        return [(row, setting, given.get(setting, known.default)) for setting, known in row.settings.items()]
    owners = [(row, setting, value) for row in _OURS for setting in row.settings if key_of(row, setting) == key]
    if not owners:
        legal = [*WHOLE, *(key_of(row, setting) for row in _OURS for setting in row.settings)]
        raise ValueError(misspelt("augmentation setting", key, legal))
    return owners


def _row(key: str) -> AugmentationRow:
    """An augmentation by its name in the table or by its dotted path."""
    name = key.rpartition(".")[2]
    function = named(key, option="data.augmentation") if "." in key else None
    row = rows().get(name)
    if row is None or (function is not None and row.function is not function):
        if function is None:
            raise ValueError(misspelt("augmentation", key, [*rows()]))
        raise ValueError(f"{key} is no augmentation: put @augmentation(...) of medseg.patches.augmentations above it")
    return row


def _typed(key: str, value: Any, default: Any) -> Any:
    """Numbers as YAML hands them over (ints for floats, lists for ranges) in the type of the default."""
    try:
        if isinstance(value, bool) != isinstance(default, bool) or (isinstance(default, int) and int(value) != value):
            raise TypeError
        if isinstance(default, tuple):
            lowest, highest = (float(item) for item in value)
            return lowest, highest
        return type(default)(value)
    except (TypeError, ValueError):
        raise ValueError(f"augmentation setting {key} cannot be {value!r}; expected one like {default!r}") from None
