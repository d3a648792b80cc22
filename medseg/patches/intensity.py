"""What scanners do to intensities: noise, blur, brightness, contrast, resolution, gamma and a bias field.

Every function changes one modality of one sample in place, by its own parameter; `degrade` picks those that were drawn,
so that nothing is spent on the others and none feels its neighbours, not even by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from medseg.patches.draw import Draw
from medseg.patches.spatial import smooth_field
from medseg.space.volume import Shape

Volume = Float[Tensor, "i j k"]

_SMALL = 1e-7

_PIECE = 1 << 16
"""Voxels changed at once on a CPU, few enough to stay in a core's cache from the first operation to the last."""


def degrade(image: Float[Tensor, "b m i j k"], draw: Draw) -> Float[Tensor, "b m i j k"]:
    """Apply every drawn change of intensity in nnU-Net's order, in place.

    Noise, blur, brightness, contrast, low resolution, inverted gamma, gamma, and last the bias field.
    """
    _add_noise(image, draw)
    volumes = image.view(-1, *image.shape[2:])
    changes: tuple[tuple[Callable[..., None], NDArray[np.float32], float], ...] = (
        (blur, draw.blur_sigma, 0.0),
        (brighten, draw.brightness, 1.0),
        (change_contrast, draw.contrast, 1.0),
        (lower_resolution, draw.resolution, 1.0),
        (partial(gamma, inverted=True), draw.gamma_inverted, 1.0),
        (gamma, draw.gamma, 1.0),
    )
    for change, parameter, neutral in changes:
        values = parameter.reshape(len(volumes), *parameter.shape[2:])
        for number in np.flatnonzero(np.any(values.reshape(len(volumes), -1) != neutral, 1)):
            change(volumes[number], values[number].tolist())
    if draw.bias is not None:
        _apply_bias(volumes, draw.bias.reshape(len(volumes), *draw.bias.shape[2:]))
    return image


def _add_noise(image: Tensor, draw: Draw) -> None:
    generator = torch.Generator(image.device)
    for sample in draw.noise_std.nonzero()[0]:
        generator.manual_seed(int(draw.noise_seed[sample]))
        for piece in _pieces(image[sample]):
            noise = torch.randn(piece.shape, generator=generator, device=image.device)
            piece.add_(noise, alpha=float(draw.noise_std[sample]))


def _pieces(volume: Tensor) -> Sequence[Float[Tensor, " n"]]:
    """Views of a contiguous volume that cover it; a GPU takes it whole."""
    flat = volume.view(-1)
    return flat.chunk(math.ceil(len(flat) / _PIECE)) if volume.device.type == "cpu" else (flat,)


def blur(volume: Volume, sigma_voxels: Sequence[float]) -> None:
    """Gaussian blur, each axis with its own width, cut off at three of them, the border repeated."""
    _mix(volume, [_gaussian(size, sigma) for size, sigma in zip(volume.shape, sigma_voxels, strict=True)])


def lower_resolution(volume: Volume, share: Sequence[float]) -> None:
    """Take the nearest voxels of a coarser grid and interpolate them back, as a thicker slice would look."""
    coarse = [max(1, round(size * factor)) for size, factor in zip(volume.shape, share, strict=True)]
    _mix(volume, [_coarse(size, few) for size, few in zip(volume.shape, coarse, strict=True)])


def _mix(volume: Volume, matrices: Sequence[Float[Tensor, "_n _n"]]) -> None:
    """Replace each line along each axis by sums of its voxels.

    As products with dense matrices, nearly all zeros: a processor multiplies ten times as fast as it moves memory.
    """
    first, second, third = (matrix.to(volume) for matrix in matrices)
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


def brighten(volume: Volume, factor: float) -> None:
    r"""Multiply: :math:`x \mapsto f x`."""
    volume.mul_(factor)


def change_contrast(volume: Volume, factor: float) -> None:
    r"""Stretch about the mean, :math:`x \mapsto \bar x + f (x - \bar x)`, kept within the old extremes."""
    pieces = _pieces(volume)
    low, high = _extremes(pieces)
    shift = (1 - factor) * _moments(pieces)[0]
    for piece in pieces:
        piece.mul_(factor).add_(shift)
        torch.minimum(torch.maximum(piece, low, out=piece), high, out=piece)


def gamma(volume: Volume, exponent: float, *, inverted: bool = False) -> None:
    r"""A power of the intensities in [0, 1], :math:`u \mapsto u^\gamma`; mean and deviation stay as they were.

    Inverted, the same curve from the other end: :math:`x \mapsto -\mathrm{gamma}(-x)`.
    """
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


def _apply_bias(volumes: Tensor, control: NDArray[np.float32]) -> None:
    shape: Shape = (volumes.shape[1], volumes.shape[2], volumes.shape[3])
    for row in np.flatnonzero(np.any(control, (1, 2, 3))):
        field = smooth_field(torch.as_tensor(control[row], device=volumes.device), shape).exp_()
        darkest = volumes[row].amin()  # air stays air: the field multiplies what is above it
        volumes[row].sub_(darkest).mul_(field).add_(darkest)
