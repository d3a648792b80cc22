"""What scanners do to intensities: noise, blur, brightness, contrast, resolution, gamma and a bias field.

Applied in nnU-Net's order, in which they stand here. Every function works in place on one modality of one sample, or on
one sample, so that nothing is spent on the others and none feels its neighbours, not even by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from medseg.machine.devices import uploaded
from medseg.patches.augmentations import Bounds, Drawn, Image, Range, Setting, Volume, augmentation
from medseg.patches.geometry import Geometry
from medseg.patches.interpolate import smooth_field

_SMALL = 1e-7

_PIECE = 1 << 16
"""Voxels changed at once on a CPU, few enough to stay in a core's cache from the first operation to the last."""


def _both_sides(
    rng: np.random.Generator, chosen: NDArray[np.bool_], geometry: Geometry, limits: Range, **others: Any
) -> NDArray[np.float32]:
    """Below and above one equally often (where the range has both sides), as nnU-Net draws."""
    factors = np.ones(len(chosen), np.float32)
    for modality in range(len(chosen)):
        below = limits[1] <= 1 or (limits[0] < 1 and rng.random() < 0.5)
        factors[modality] = (
            rng.uniform(limits[0], min(limits[1], 1)) if below else rng.uniform(max(limits[0], 1), limits[1])
        )
    return factors


_POSITIVE = Bounds(above=True)
_factor = partial(Setting, bounds=_POSITIVE, draws=_both_sides, neutral=1.0)


@augmentation(probability=0.1, presets=("full", "light"))
def noise(
    image: Image, *, noise_variance: Drawn = Setting((0.0, 0.1), neutral=0.0), generator: torch.Generator
) -> None:
    """Gaussian noise, the same variance in every modality.

    Args:
        noise_variance: Its variance, in normalised units.
    """
    for piece in _pieces(image):
        drawn = torch.randn(piece.shape, generator=generator, device=image.device)
        piece.add_(drawn, alpha=float(np.float32(math.sqrt(noise_variance))))


def _pieces(volume: Tensor) -> Sequence[Float[Tensor, " n"]]:
    """Views of a contiguous volume that cover it; a GPU takes it whole."""
    flat = volume.view(-1)
    return flat.chunk(math.ceil(len(flat) / _PIECE)) if volume.device.type == "cpu" else (flat,)


def _per_axis(
    rng: np.random.Generator, chosen: NDArray[np.bool_], geometry: Geometry, limits: Range, **others: Any
) -> NDArray[np.float32]:
    return rng.uniform(*limits, size=(len(chosen), 3)).astype(np.float32)


@augmentation(probability=0.2, channel_probability=0.5, presets=("full", "moderate"))
def blur(
    volume: Volume, *, blur_sigma_voxels: Drawn = Setting((0.5, 1.0), _POSITIVE, draws=_per_axis, neutral=1e-3)
) -> None:
    """Gaussian blur, each axis with its own width, cut off at three of them, the border repeated.

    Args:
        blur_sigma_voxels: The Gaussian's standard deviation.
    """
    _mix(volume, [_gaussian(size, sigma) for size, sigma in zip(volume.shape, blur_sigma_voxels, strict=True)])


@augmentation(probability=0.15, presets=("full", "light", "moderate"))
def brightness(volume: Volume, *, brightness: Drawn = _factor((0.75, 1.25))) -> None:
    r"""Multiplied: :math:`x \mapsto f x`.

    Args:
        brightness: The factor, of each modality its own.
    """
    volume.mul_(brightness)


@augmentation(probability=0.15, presets=("full", "light", "moderate"))
def contrast(volume: Volume, *, contrast: Drawn = _factor((0.75, 1.25))) -> None:
    r"""Pulled from or to the mean, :math:`x \mapsto \bar x + f (x - \bar x)`, within the old extremes.

    Args:
        contrast: The factor, of each modality its own.
    """
    pieces = _pieces(volume)
    low, high = _extremes(pieces)
    shift = (1 - contrast) * _moments(pieces)[0]
    for piece in pieces:
        piece.mul_(contrast).add_(shift)
        torch.minimum(torch.maximum(piece, low, out=piece), high, out=piece)


def _share(
    rng: np.random.Generator, chosen: NDArray[np.bool_], geometry: Geometry, limits: Range, **others: Any
) -> NDArray[np.float32]:
    """One for all axes of a modality; thick slices stay as thick as they are."""
    share = np.ones((len(chosen), 3), np.float32)
    share[chosen] = rng.uniform(*limits, size=(int(chosen.sum()), 1))
    if geometry.through_plane is not None:
        share[:, geometry.through_plane] = 1.0
    return share


@augmentation(probability=0.25, channel_probability=0.5, presets=("full", "moderate"))
def low_resolution(
    volume: Volume, *, low_resolution: Drawn = Setting((0.5, 1.0), Bounds(0, 1, above=True), _share, neutral=1.0)
) -> None:
    """Sampled down and up again: the nearest voxels of a coarser grid, interpolated back as a thicker slice would look.

    Args:
        low_resolution: The resolution left, as a share.
    """
    coarse = [max(1, round(size * factor)) for size, factor in zip(volume.shape, low_resolution, strict=True)]
    _mix(volume, [_coarse(size, few) for size, few in zip(volume.shape, coarse, strict=True)])


def _mix(volume: Volume, matrices: Sequence[Float[Tensor, "_n _n"]]) -> None:
    """Replace each line along each axis by sums of its voxels.

    As products with dense matrices, nearly all zeros: a processor multiplies ten times as fast as it moves memory.
    """
    first, second, third = (uploaded(matrix, volume.device, volume.dtype) for matrix in matrices)
    planes = (first @ volume.flatten(1)).view(volume.shape)
    torch.matmul(second @ planes, third.mT, out=volume)


def _gaussian(size: int, sigma_voxels: float) -> Float[Tensor, "n n"]:
    width = max(sigma_voxels, _SMALL)
    distance = torch.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    weights = torch.exp(-((distance / width) ** 2) / 2)
    source = (torch.arange(size)[:, None] + distance).clamp_(0, size - 1)
    return torch.zeros(size, size).scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))


def _coarse(size: int, few: int) -> Float[Tensor, "n n"]:
    """Each voxel as the mean of the voxels that the two nearest of a coarser grid have taken."""
    taken = ((torch.arange(few) + 0.5) * (size / few)).long()
    place = ((torch.arange(size) + 0.5) * (few / size) - 0.5).clamp_(0, few - 1)
    below = place.floor()
    above = taken[(below.long() + 1).clamp_max_(few - 1)]
    matrix = torch.zeros(size, size).scatter_(1, taken[below.long()][:, None], (1 - place + below)[:, None])
    return matrix.scatter_add_(1, above[:, None], (place - below)[:, None])


@augmentation(probability=0.1)
def gamma_inverted(volume: Volume, *, gamma: Drawn = _factor((0.7, 1.5))) -> None:
    r"""A gamma curve on the inverted intensities: :math:`x \mapsto -\mathrm{gamma}(-x)`.

    Args:
        gamma: The exponent, shared with ``gamma``; of each modality its own.
    """
    _bend(volume, gamma, inverted=True)


@augmentation(probability=0.3, presets=("full", "moderate"))
def gamma(volume: Volume, *, gamma: Drawn = _factor((0.7, 1.5))) -> None:
    r"""A power of the intensities in [0, 1], :math:`u \mapsto u^\gamma`; mean and deviation stay as they were.

    Args:
        gamma: The exponent; of each modality its own.
    """
    _bend(volume, gamma, inverted=False)


def _bend(volume: Volume, exponent: float, *, inverted: bool) -> None:
    pieces = _pieces(volume)
    low, high = _extremes(pieces)
    mean, deviation = _moments(pieces)
    start, span = (high, low - high) if inverted else (low, high - low)
    factor = 1 / torch.where(span.abs() < _SMALL, -_SMALL if inverted else _SMALL, span)  # what is shifted has its sign
    for piece in pieces:
        piece.sub_(start).mul_(factor).log_().mul_(exponent).exp_()  # four times as quick as a power
    new_mean, new_deviation = _moments(pieces)
    stretch = span.sign() * deviation / new_deviation.clamp_min(_SMALL)
    for piece in pieces:
        piece.mul_(stretch).add_(mean - new_mean * stretch)


def _extremes(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The lowest and the highest intensity."""
    return torch.stack([piece.amin() for piece in pieces]).amin(), torch.stack([p.amax() for p in pieces]).amax()


def _moments(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, from sums that torch vectorises (its `std_mean` does not)."""
    sums = torch.stack([torch.stack([piece.sum(), torch.dot(piece, piece)]) for piece in pieces]).double().sum(0)
    mean, square = sums / sum(len(piece) for piece in pieces)
    return mean.to(pieces[0].dtype), (square - mean**2).clamp_min(0).sqrt().to(pieces[0].dtype)


def _control_points(
    rng: np.random.Generator, chosen: NDArray[np.bool_], geometry: Geometry, log_std: float, *, bias_points: int
) -> NDArray[np.float32]:
    return np.asarray(rng.standard_normal((len(chosen), *[bias_points] * 3)) * log_std, np.float32)


@augmentation(probability=0.0)
def bias(
    volume: Volume,
    *,
    bias_log_std: Drawn = Setting(0.2, Bounds(0, 5), _control_points, neutral=0.0),  # beyond, exp may overflow
    bias_points: Drawn = Setting(4, Bounds(2)),
) -> None:
    """Multiplied by a smooth field, as surface coils do to MRI; air stays air.

    Args:
        bias_log_std: Standard deviation of the field's logarithm at its control points.
        bias_points: Control points along each axis of a patch, one at each end.
    """
    i, j, k = volume.shape
    field = smooth_field(uploaded(bias_log_std, volume.device), (i, j, k)).exp_()
    darkest = volume.amin()  # the field multiplies what is above it
    volume.sub_(darkest).mul_(field).add_(darkest)
