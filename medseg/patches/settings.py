"""How strongly patches are augmented: plain numbers, nnU-Net's by default, and four strengths by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from medseg.machine.typed import misspelt

Range = tuple[float, float]

MOST_BIAS = 5.0  # beyond, the exponential of a control point may leave the numbers


@dataclass(frozen=True)
class Augmentation:
    """Probabilities per patch and ranges of every transform; the defaults are nnU-Net's.

    Attributes:
        rotation_probability: Patches that are rotated.
        rotation_deg: Largest angle about each axis.
        rotation_in_plane_deg: Largest angle where voxels are so anisotropic (over 3) that only the plane is rotated.
        scale_probability: Patches that are scaled.
        scale: Length of the region looked at, as a multiple of the patch: 0.8 magnifies, 1.25 shrinks.
        elastic_probability: Patches that are bent.
        elastic_mm: Standard deviation of the displacement of each control point.
        elastic_points: Control points along each axis of a patch.
        mirror_probability: Chance of a flip along each axis that the plan allows.
        noise_probability: Patches with Gaussian noise.
        noise_variance: Range of its variance, in normalised units.
        blur_probability: Patches that are blurred.
        blur_sigma_voxels: Range of the Gaussian's standard deviation.
        blur_channel_probability: Modalities blurred in such a patch.
        brightness_probability: Patches whose intensities are multiplied, each modality by its own factor.
        brightness: Range of the factor.
        contrast_probability: Patches whose intensities are pulled from or to their mean, within the old extremes.
        contrast: Range of the factor.
        low_resolution_probability: Patches sampled down and up again.
        low_resolution: Range of the resolution left, as a share.
        low_resolution_channel_probability: Modalities degraded in such a patch.
        gamma_probability: Patches with a gamma curve that keeps mean and standard deviation.
        gamma_inverted_probability: Patches with a gamma curve on the inverted intensities.
        gamma: Range of the exponent of both.
        bias_probability: Patches multiplied by a smooth field, as surface coils do to MRI.
        bias_log_std: Standard deviation of the field's logarithm at its control points.
        bias_points: Control points along each axis of a patch.
        label_interpolation: ``"linear"``: the label with the largest interpolated share; or ``"nearest"``.
        margin: Voxels around a patch that are read so that rotation and shrinking show real ones, at most this share
            of the patch on each side.

    Example:
        >>> Augmentation().rotation_deg, augmentation("light").rotation_probability
        (30.0, 0.0)
    """

    rotation_probability: float = 0.2
    rotation_deg: float = 30.0
    rotation_in_plane_deg: float = 180.0
    scale_probability: float = 0.2
    scale: Range = (0.7, 1.4)
    elastic_probability: float = 0.0
    elastic_mm: float = 3.0
    elastic_points: int = 6
    mirror_probability: float = 0.5
    noise_probability: float = 0.1
    noise_variance: Range = (0.0, 0.1)
    blur_probability: float = 0.2
    blur_sigma_voxels: Range = (0.5, 1.0)
    blur_channel_probability: float = 0.5
    brightness_probability: float = 0.15
    brightness: Range = (0.75, 1.25)
    contrast_probability: float = 0.15
    contrast: Range = (0.75, 1.25)
    low_resolution_probability: float = 0.25
    low_resolution: Range = (0.5, 1.0)
    low_resolution_channel_probability: float = 0.5
    gamma_probability: float = 0.3
    gamma_inverted_probability: float = 0.1
    gamma: Range = (0.7, 1.5)
    bias_probability: float = 0.0
    bias_log_std: float = 0.2
    bias_points: int = 4
    label_interpolation: str = "linear"
    margin: float = 0.25

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            numbers = value if isinstance(value, tuple) else () if isinstance(value, str) else (value,)
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"{spec.name} is made of finite numbers, got {value}")
            if spec.name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{spec.name} is a probability between 0 and 1, got {value}")
            if isinstance(value, tuple) and not (len(value) == 2 and 0 <= value[0] <= value[1]):
                raise ValueError(f"{spec.name} is a range [lowest, highest] of numbers not below 0, got {list(value)}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("scale", "low_resolution", "gamma", "brightness", "contrast", "blur_sigma_voxels"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must stay above 0, got {list(getattr(self, name))}")
        if self.low_resolution[1] > 1:
            raise ValueError(f"low_resolution is a share of the resolution, at most 1, got {list(self.low_resolution)}")
        if min(self.elastic_points, self.bias_points) < 2:
            raise ValueError("elastic_points and bias_points must be at least 2: a point at each end of the patch")
        for name in ("margin", "rotation_deg", "rotation_in_plane_deg", "elastic_mm", "bias_log_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.bias_log_std > MOST_BIAS:
            raise ValueError(
                f"bias_log_std is at most {MOST_BIAS} (a factor of {math.exp(MOST_BIAS):.0f}), got {self.bias_log_std}"
            )
        if self.label_interpolation not in ("linear", "nearest"):
            raise ValueError(f"label_interpolation is 'linear' or 'nearest', got {self.label_interpolation!r}")

    @property
    def spatial(self) -> bool:
        """Whether any patch is ever interpolated anew."""
        return max(self.rotation_probability, self.scale_probability, self.elastic_probability) > 0


_NEVER: dict[str, Any] = {spec.name: 0.0 for spec in fields(Augmentation) if spec.name.endswith("_probability")}
_NOTHING = Augmentation(**_NEVER)

PRESETS: dict[str, Augmentation] = {
    "none": _NOTHING,
    "light": replace(_NOTHING, noise_probability=0.1, brightness_probability=0.15, contrast_probability=0.15),
    # for minutes on a CPU: full strength and mirrors need many more steps before they pay
    "moderate": replace(
        Augmentation(),
        rotation_deg=20.0,
        rotation_in_plane_deg=20.0,
        scale=(0.8, 1.2),
        mirror_probability=0.0,
        noise_probability=0.0,
        gamma_inverted_probability=0.0,
        label_interpolation="nearest",
    ),
    "full": Augmentation(),
}


def augmentation(strength: str | Mapping[str, Any] | Augmentation) -> Augmentation:
    """Settings from a preset's name, or from numbers by name over a preset (key ``preset``, ``"full"`` if left out).

    Raises:
        ValueError: A name is not one of ours (the nearest is given) or a number is out of its range.

    Example:
        >>> augmentation({"preset": "moderate", "rotation_deg": 10}).rotation_deg
        10.0
    """
    if isinstance(strength, Augmentation):
        return strength
    if isinstance(strength, str):
        strength = {"preset": strength}
    changes = dict(strength)
    preset = str(changes.pop("preset", "full"))
    if preset not in PRESETS:
        raise ValueError(misspelt("augmentation", preset, list(PRESETS)))
    legal = [spec.name for spec in fields(Augmentation)]
    for name in changes:
        if name not in legal:
            raise ValueError(misspelt("augmentation setting", name, legal))
    return replace(PRESETS[preset], **{name: _typed(name, value) for name, value in changes.items()})


def _typed(name: str, value: Any) -> Any:
    """Numbers as YAML hands them over (ints for floats, lists for ranges) in the type of the field."""
    default = getattr(PRESETS["full"], name)
    try:
        if isinstance(value, bool) or (isinstance(default, int) and int(value) != value):
            raise TypeError
        if isinstance(default, tuple):
            lowest, highest = (float(item) for item in value)
            return lowest, highest
        return type(default)(value)
    except (TypeError, ValueError):
        raise ValueError(f"augmentation setting {name} cannot be {value!r}; expected one like {default!r}") from None
