"""What scanners do to intensities: noise, blur, brightness, contrast, resolution, gamma and a bias field.

Every function takes rows, one per sample and modality, and the parameter of each row; `degrade` picks the rows that
were drawn, so that nothing is spent on the others.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from medseg.patches.draw import Draw
from medseg.patches.spatial import smooth_field
from medseg.space.volume import Shape

Rows = Float[Tensor, "n i j k"]
PerRow = Float[Tensor, " n"]

_SMALL = 1e-7


def degrade(image: Float[Tensor, "b m i j k"], draw: Draw) -> Float[Tensor, "b m i j k"]:
    """Apply every drawn change of intensity in nnU-Net's order, in place.

    Noise, blur, brightness, contrast, low resolution, inverted gamma, gamma, and last the bias field.
    """
    _add_noise(image, draw)
    rows = image.view(-1, *image.shape[2:])
    for function, parameter, neutral in (
        (blur, draw.blur_sigma, 0.0),
        (brighten, draw.brightness, 1.0),
        (change_contrast, draw.contrast, 1.0),
        (lower_resolution, draw.resolution, 1.0),
        (inverted_gamma, draw.gamma_inverted, 1.0),
        (gamma, draw.gamma, 1.0),
    ):
        values = parameter.reshape(len(rows), -1)
        chosen = np.flatnonzero(np.any(values != neutral, 1))
        if len(chosen):
            where = torch.as_tensor(chosen, device=image.device)
            strength = torch.as_tensor(values[chosen].squeeze(1) if values.shape[1] == 1 else values[chosen])
            rows.index_copy_(0, where, function(rows.index_select(0, where), strength))
    if draw.bias is not None:
        _apply_bias(rows, draw.bias.reshape(len(rows), *draw.bias.shape[2:]))
    return image


def _add_noise(image: Tensor, draw: Draw) -> None:
    generator = torch.Generator(image.device)
    for sample in draw.noise_std.nonzero()[0]:
        generator.manual_seed(int(draw.noise_seed[sample]))
        noise = torch.randn(image.shape[1:], generator=generator, device=image.device)
        image[sample].add_(noise, alpha=float(draw.noise_std[sample]))


def blur(rows: Rows, sigma_voxels: Float[Tensor, "n 3"]) -> Rows:
    """Gaussian blur, each row and axis with its own width: three one-dimensional sums, the border repeated."""
    for axis in range(3):
        width = sigma_voxels[:, axis, None].clamp_min(_SMALL)
        reach = (3 * width).ceil()
        distance = torch.arange(float(reach.max()) + 1)
        weights = torch.exp(-((distance / width) ** 2) / 2) * (distance <= reach)  # a row must not feel its neighbours
        weights /= weights.sum(1, keepdim=True) * 2 - weights[:, :1]
        rows = _smooth(rows, weights.to(rows.device), axis + 1)
    return rows


def _smooth(rows: Tensor, weights: Float[Tensor, "n radius_and_middle"], axis: int) -> Tensor:
    """A symmetric sum of shifted copies: on a CPU several times faster than a convolution of so few taps."""
    radius, size = weights.shape[1] - 1, rows.shape[axis]
    first, last = rows.narrow(axis, 0, 1), rows.narrow(axis, size - 1, 1)
    padded = torch.cat([*[first] * radius, rows, *[last] * radius], axis)
    taps = weights.T[..., None, None, None]
    total = rows * taps[0]
    for shift in range(1, radius + 1):
        pair = padded.narrow(axis, radius - shift, size) + padded.narrow(axis, radius + shift, size)
        total.addcmul_(pair, taps[shift])
    return total


def brighten(rows: Rows, factor: PerRow) -> Rows:
    r"""Multiply: :math:`x \mapsto f x`."""
    return rows * _wide(factor, rows)


def change_contrast(rows: Rows, factor: PerRow) -> Rows:
    r"""Stretch about the mean, :math:`x \mapsto \bar x + f (x - \bar x)`, kept within the old extremes."""
    mean = rows.mean((1, 2, 3), keepdim=True)
    low, high = rows.amin((1, 2, 3), keepdim=True), rows.amax((1, 2, 3), keepdim=True)
    return torch.lerp(mean, rows, _wide(factor, rows)).clamp_(low, high)


def lower_resolution(rows: Rows, share: Float[Tensor, "n 3"]) -> Rows:
    """Take the nearest voxels of a coarser grid and interpolate them back, as a thicker slice would look."""
    result = torch.empty_like(rows)
    full: Shape = (rows.shape[1], rows.shape[2], rows.shape[3])
    for row, factors, target in zip(rows, share.tolist(), result, strict=True):
        coarse = [max(1, round(size * factor)) for size, factor in zip(full, factors, strict=True)]
        small = F.interpolate(row[None, None], size=coarse, mode="nearest-exact")
        target.copy_(F.interpolate(small, size=full, mode="trilinear")[0, 0])
    return result


def gamma(rows: Rows, exponent: PerRow) -> Rows:
    r"""A power of the intensities in [0, 1], :math:`u \mapsto u^\gamma`; mean and deviation stay as they were."""
    mean, deviation = _moments(rows)
    low, high = rows.amin((1, 2, 3), keepdim=True), rows.amax((1, 2, 3), keepdim=True)
    curved = (rows - low).mul_(1 / (high - low).clamp_min(_SMALL))
    curved = curved.log_().mul_(_wide(exponent, rows)).exp_()  # four times as quick as a power
    new_mean, new_deviation = _moments(curved)
    stretch = deviation / new_deviation.clamp_min(_SMALL)
    return curved.mul_(stretch).add_(mean - new_mean * stretch)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row, from sums that torch vectorises (its `std_mean` does not)."""
    mean = rows.mean((1, 2, 3), keepdim=True)
    square = torch.linalg.vector_norm(rows, dim=(1, 2, 3), keepdim=True).square() / rows[0].numel()
    return mean, (square - mean**2).clamp_min(0).sqrt()


def inverted_gamma(rows: Rows, exponent: PerRow) -> Rows:
    r"""The same curve from the other end: :math:`x \mapsto -\mathrm{gamma}(-x)`."""
    return gamma(rows.neg(), exponent).neg_()


def _apply_bias(rows: Tensor, control: NDArray[np.float32]) -> None:
    shape: Shape = (rows.shape[1], rows.shape[2], rows.shape[3])
    for row in np.flatnonzero(np.any(control, (1, 2, 3))):
        field = smooth_field(torch.as_tensor(control[row], device=rows.device), shape).exp_()
        darkest = rows[row].amin()  # air stays air: the field multiplies what is above it
        rows[row].sub_(darkest).mul_(field).add_(darkest)


def _wide(values: Tensor, rows: Tensor) -> Tensor:
    return values.to(rows.device)[:, None, None, None]
