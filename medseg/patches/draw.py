"""Where chance enters augmentation: every random number of a batch is drawn here, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.patches.settings import Augmentation, Range
from medseg.plan.plan import Plan
from medseg.space.volume import Shape, Spacing

ANISOTROPY = 3.0
"""nnU-Net's threshold: beyond it, planes are too far apart to be turned out of."""


@dataclass(frozen=True)
class Geometry:
    """What augmentation must know about the grid.

    Attributes:
        patch_size: Voxels of a patch that the network sees.
        spacing_mm: Edge lengths of a voxel; rotations happen in millimetres.
        mirror_axes: Axes that may be flipped.
        swap_labels: Pairs of label indices that a flip of axis 0 (left/right) exchanges.
    """

    patch_size: Shape
    spacing_mm: Spacing
    mirror_axes: tuple[int, ...] = ()
    swap_labels: tuple[tuple[int, int], ...] = ()

    @property
    def through_plane(self) -> int | None:
        """The axis across the planes of an anisotropic grid, or None when voxels are close enough to cubes."""
        largest = max(self.spacing_mm)
        return self.spacing_mm.index(largest) if largest > ANISOTROPY * min(self.spacing_mm) else None


def geometry_of(plan: Plan, patch_size: Shape | None = None) -> Geometry:
    """What a plan says about the grid, with another patch size if given.

    Raises:
        ValueError: Labels are to be swapped although organs overlap.
    """
    if plan.swap_labels and not plan.exclusive:
        raise ValueError(
            "swap_labels exchanges whole organs and cannot split overlapping ones; "
            "empty it in the plan and leave axis 0 out of mirror_axes"
        )
    index = {name: number for number, name in enumerate(plan.organs, start=1)}
    swaps = tuple((index[left], index[right]) for left, right in plan.swap_labels)
    return Geometry(patch_size or plan.patch_size, plan.spacing_mm, plan.mirror_axes, swaps)


def flipped_axes(settings: Augmentation, plan: Plan) -> tuple[int, ...]:
    """The axes along which patches are ever flipped: those that the plan allows, unless the chance is none."""
    return plan.mirror_axes if settings.mirror_probability > 0 else ()


class Draw(NamedTuple):
    """The parameters of one batch as plain arrays on the host; a value that changes nothing means "not drawn".

    Attributes:
        spatial: ``(b,)`` whether the patch is interpolated anew.
        affine: ``(b, 3, 3)`` offset from the centre of the patch to offset in the source, in voxels.
        elastic: ``(b, 3, g, g, g)`` displacement of the control points in voxels, or None when nobody asked.
        flips: ``(b, 3)`` axes that are mirrored.
        noise_std: ``(b,)`` zero for none.
        noise_seed: ``(b,)`` for the device's own generator; the only chance left to it.
        blur_sigma: ``(b, m, 3)`` in voxels, zero for none.
        brightness: ``(b, m)`` factor, one for none.
        contrast: ``(b, m)`` factor, one for none.
        resolution: ``(b, m, 3)`` share of the resolution left, one for none.
        gamma_inverted: ``(b, m)`` exponent, one for none.
        gamma: ``(b, m)`` exponent, one for none.
        bias: ``(b, m, g, g, g)`` logarithm of the field at its control points, or None when nobody asked.
    """

    spatial: NDArray[np.bool_]
    affine: NDArray[np.float32]
    elastic: NDArray[np.float32] | None
    flips: NDArray[np.bool_]
    noise_std: NDArray[np.float32]
    noise_seed: NDArray[np.int64]
    blur_sigma: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    resolution: NDArray[np.float32]
    gamma_inverted: NDArray[np.float32]
    gamma: NDArray[np.float32]
    bias: NDArray[np.float32] | None


def draw(settings: Augmentation, geometry: Geometry, *, modalities: int, keys: Sequence[Sequence[int]]) -> Draw:
    """Draw the parameters of a batch; each sample depends on its own key only, not on its neighbours.

    Example:
        >>> grid = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
        >>> first = draw(Augmentation(), grid, modalities=1, keys=[(7, 0), (7, 1)])
        >>> again = draw(Augmentation(), grid, modalities=1, keys=[(7, 1)])
        >>> bool((first.affine[1] == again.affine[0]).all())
        True
    """
    rows = [_draw_sample(settings, geometry, modalities, np.random.default_rng(key)) for key in keys]
    columns: list[Any] = [None if column[0] is None else np.stack(column) for column in zip(*rows, strict=True)]
    return Draw(*columns)


def _draw_sample(
    settings: Augmentation, geometry: Geometry, modalities: int, rng: np.random.Generator
) -> tuple[Any, ...]:
    """One row per field of `Draw`, in their order."""
    rotated, scaled, bent = (
        rng.random() < p
        for p in (settings.rotation_probability, settings.scale_probability, settings.elastic_probability)
    )
    matrix = _affine(settings, geometry, rng, rotated=rotated, scaled=scaled)
    elastic = _elastic(settings, geometry, rng, bent=bent) if settings.elastic_probability > 0 else None
    allowed = np.array([axis in geometry.mirror_axes for axis in range(3)])
    flips = allowed & (rng.random(3) < settings.mirror_probability)
    noisy = rng.random() < settings.noise_probability
    noise_std = np.float32(math.sqrt(rng.uniform(*settings.noise_variance)) if noisy else 0.0)
    noise_seed = np.int64(rng.integers(2**62))
    bias = _bias(settings, modalities, rng) if settings.bias_probability > 0 else None
    return (
        np.bool_(rotated or scaled or bent),
        matrix,
        elastic,
        flips,
        noise_std,
        noise_seed,
        _blur(settings, modalities, rng),
        _factors(rng, modalities, settings.brightness_probability, settings.brightness),
        _factors(rng, modalities, settings.contrast_probability, settings.contrast),
        _resolution(settings, geometry, modalities, rng),
        _factors(rng, modalities, settings.gamma_inverted_probability, settings.gamma),
        _factors(rng, modalities, settings.gamma_probability, settings.gamma),
        bias,
    )


def _affine(
    settings: Augmentation, geometry: Geometry, rng: np.random.Generator, *, rotated: bool, scaled: bool
) -> NDArray[np.float32]:
    """Rotation and scaling about the centre, in millimetres, expressed in voxels."""
    if not (rotated or scaled):
        return np.eye(3, dtype=np.float32)
    plane = geometry.through_plane
    largest = np.full(3, settings.rotation_deg)
    if plane is not None:
        largest[:] = 0.0
        largest[plane] = settings.rotation_in_plane_deg
    angles = np.deg2rad(rng.uniform(-largest, largest)) if rotated else np.zeros(3)
    scale = np.full(3, rng.uniform(*settings.scale) if scaled else 1.0)
    if plane is not None:
        scale[plane] = 1.0
    turned = rotation(angles) * scale
    spacing_mm = np.array(geometry.spacing_mm)
    return np.asarray(turned * spacing_mm / spacing_mm[:, None], np.float32)


def rotation(angles_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """The product of rotations about axes 0, 1 and 2, each by the right-hand rule."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def _elastic(
    settings: Augmentation, geometry: Geometry, rng: np.random.Generator, *, bent: bool
) -> NDArray[np.float32]:
    shape = (3, *[settings.elastic_points] * 3)
    if not bent:
        return np.zeros(shape, np.float32)
    spread = settings.elastic_mm / np.array(geometry.spacing_mm)
    if geometry.through_plane is not None:
        spread[geometry.through_plane] = 0.0
    return np.asarray(rng.standard_normal(shape) * spread[:, None, None, None], np.float32)


def _bias(settings: Augmentation, modalities: int, rng: np.random.Generator) -> NDArray[np.float32]:
    shape = (modalities, *[settings.bias_points] * 3)
    if rng.random() >= settings.bias_probability:
        return np.zeros(shape, np.float32)
    return np.asarray(rng.standard_normal(shape) * settings.bias_log_std, np.float32)


def _blur(settings: Augmentation, modalities: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if rng.random() >= settings.blur_probability:
        return np.zeros((modalities, 3), np.float32)
    channels = rng.random((modalities, 1)) < settings.blur_channel_probability
    return np.where(channels, rng.uniform(*settings.blur_sigma_voxels, size=(modalities, 3)), 0.0).astype(np.float32)


def _resolution(
    settings: Augmentation, geometry: Geometry, modalities: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    share = np.ones((modalities, 3), np.float32)
    if rng.random() >= settings.low_resolution_probability:
        return share
    channels = rng.random(modalities) < settings.low_resolution_channel_probability
    share[channels] = rng.uniform(*settings.low_resolution, size=(int(channels.sum()), 1))
    if geometry.through_plane is not None:
        share[:, geometry.through_plane] = 1.0
    return share


def _factors(rng: np.random.Generator, modalities: int, probability: float, limits: Range) -> NDArray[np.float32]:
    """A factor per modality, below and above one equally often (where the range has both sides), as nnU-Net draws."""
    factors = np.ones(modalities, np.float32)
    if rng.random() >= probability:
        return factors
    for modality in range(modalities):
        below = limits[1] <= 1 or (limits[0] < 1 and rng.random() < 0.5)
        factors[modality] = (
            rng.uniform(limits[0], min(limits[1], 1)) if below else rng.uniform(max(limits[0], 1), limits[1])
        )
    return factors
