"""Cross-entropy with a weight per voxel that the target's shapes decide: close to borders, or between neighbours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.losses.beforehand import of_target
from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Weights
from medseg.losses.masks import existing, only, target_distance, target_masks
from medseg.losses.reduction import class_factor, class_vector, element_weight, quotient
from medseg.losses.table import Reduced, loss
from medseg.machine.threads import in_threads
from medseg.space.components import connected_components
from medseg.space.distance import Box, euclidean_distance, surface
from medseg.space.fields import inner_distance, steps_per_sample
from medseg.types import PerVoxel

REACH = 9.6
"""Beyond this many sigmas from an instance its Gaussian is below 1e-20 and its distances need not be known."""


@loss(
    family="distribution",
    paper="Caliva et al. 2019, Distance map loss penalty term for semantic segmentation, arXiv 1908.03679, Eq. 2",
    handles=("boundary",),
    cost="distance",
)
def distance_penalized_ce(x: Comparison) -> PerVoxel:
    """Cross-entropy that counts up to twice close to borders, where voxels are hard.

    Equation:
        (1/N) Σ_i (1 + Φ_i) CE_i,  Φ = (d_max - d) / (d_max - d_min) inside each class's region, background included,
        d = distance to the region's outside: 1 at its border, 0 in its deepest voxel

    Use: In place of cross-entropy when surfaces are ragged; it lies between one and two times cross-entropy, and so
    needs no weight of its own. In the sigmoid modes each channel has two regions, the structure and the rest.

    Known trouble: One distance transform per class and step, unless ``distance_map`` (see boundary) is given. A
    region whose voxels are all at its border has Φ = 1; a volume of a single class Φ = 0.

    Public code: SegLossOdyssey computes the weighted loss and returns the unweighted mean, and divides 0 by 0 where
    all voxels touch the border.

    Args:
        x: The comparison; ``spacing_mm`` measures in millimetres.
    """
    return (1 + _border_closeness(x)) * -x.log_p_true


@torch.no_grad()
def _border_closeness(x: Comparison) -> Tensor:
    """Φ, per voxel (b *s) over classes that exclude each other, per element (b c *s) otherwise."""
    truth, here = target_masks(x, 0), existing(x, 0)
    if x.mode == "multiclass":
        return _scaled(_depth(x, truth, here), truth).sum(1)
    rest = only(~truth, here)
    return _scaled(_depth(x, truth, here), truth) + _scaled(_depth(x, rest, here), rest)


def _depth(x: Comparison, region: Tensor, here: Tensor | None) -> Tensor:
    """Distance to the outside, within the region."""
    if x.distance_map is None:
        return inner_distance(region, x.spacing_mm, valid=here, exclusive=x.mode == "multiclass", dtype=x.dtype)
    return target_distance(x, target_masks(x, 0), 0) * region


def _scaled(depth: Tensor, region: Tensor) -> Tensor:
    """(max - d) / (max - min) within each region; 1 where all voxels are as deep, 0 where there is no border."""
    space = tuple(range(2, depth.ndim))
    top = depth.amax(space, keepdim=True)
    span = top - depth.masked_fill(~region, torch.inf).amin(space, keepdim=True)
    close = torch.where(span > 0, (top - depth) / torch.where(span > 0, span, 1), 1)
    return close * (region & (top > 0))


@loss(
    family="distribution",
    paper="Ronneberger et al. 2015, U-Net, arXiv 1505.04597, Eq. 1-2",
    modes=("multiclass", "binary"),
    handles=("boundary", "small"),
    cost="distance",
)
def unet_weighted_cross_entropy(
    x: Comparison,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weight: Weights = None,
    background_only: bool = False,
    normalize: Literal["voxels", "weights"] = "voxels",
) -> Reduced:
    """Cross-entropy that counts most in the narrow gaps between neighbouring instances.

    Equation:
        (1/N) Σ_i w_i CE_i,  w = w_c + w0 exp(-(d1 + d2)² / (2σ²)),
        d1, d2 = distance to the border voxels of the nearest and second nearest instance

    Use: To keep cells, glands or lesions apart that would grow together. Instances are the connected components
    (over corners too) of everything that is not background, or ``instances`` (b, *s), numbered from 1, 0 elsewhere:
    the only way to tell touching objects apart, and worth making in the data pipeline.

    Known trouble: The loss is up to 1 + w0 times cross-entropy; with fewer than two instances it is cross-entropy.

    Public code: Many ports restrict the second term to background (here ``background_only``) and take 0 as the
    distance inside an instance; the paper does neither, and prints Eq. 1 without its minus.

    Args:
        x: The comparison; with ``spacing_mm`` distances and ``sigma`` are millimetres, else voxels.
        w0: Weight of the gaps.
        sigma: Width of the gaps that count.
        class_weight: w_c, a number per class; for ``binary`` two, background first. None for ones.
        background_only: Whether instances themselves get no extra weight.
        normalize: Divide by the number of voxels, or by the sum of w.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    gaps = gaps_of_target(x, sigma=sigma)[:, 0].to(x.dtype)
    if background_only:
        gaps = gaps * ~_objects(x)
    w = w0 * (gaps if x.mode == "multiclass" else gaps.unsqueeze(1)) + _class_weight(x, class_weight)
    v = element_weight(x)
    count = torch.ones_like(w) if v is None else v
    return quotient(-x.log_p_true * w * count, w * count if normalize == "weights" else count, x)


def _class_weight(x: Comparison, class_weight: Weights) -> Tensor:
    """w_c of each voxel's class, of the shape of log p.

    Raises:
        ValueError: If there is not one number per class; a binary target has two.
    """
    if class_weight is None:
        return torch.ones((), dtype=x.dtype, device=x.raw.device)
    if x.mode == "multiclass":
        return class_factor(class_vector(class_weight, x), x)
    pair = torch.as_tensor(class_weight, dtype=x.dtype, device=x.raw.device)
    if pair.shape != (2,):
        raise ValueError(f"class_weight in mode 'binary' must be two numbers, background first, got {pair.tolist()}")
    return torch.where(x.onehot > 0.5, pair[1], pair[0])


def _objects(x: Comparison) -> Bool[Tensor, "b *s"]:
    """All that is not background."""
    return target_masks(x, x.first_class).any(1)


@of_target
def gaps_of_target(x: Comparison, *, sigma: float) -> Float[Tensor, "b 1 *s"]:
    """exp(-(d1 + d2)² / 2σ²) of every sample, a volume per thread."""
    objects = _objects(x)
    steps = steps_per_sample(x.spacing_mm, x.shape[0], len(x.shape) - 2)
    numbered = _one_map(x)

    def one(n: int) -> NDArray[np.float64]:
        mask = objects[n].cpu().numpy()
        instances = connected_components(mask)[0] if numbered is None else numbered[n].cpu().numpy() * mask
        return gap_weight(instances, steps[n], sigma)

    return torch.from_numpy(np.stack(in_threads(one, range(x.shape[0])))).to(x.dtype).unsqueeze(1)


def _one_map(x: Comparison) -> Tensor | None:
    """The caller's instances, one map per sample.

    Raises:
        ValueError: If there are several, or they are not whole numbers.
    """
    if x.instances is None:
        return None
    given, wanted = x.instances, (x.shape[0], *x.shape[2:])
    if given.is_floating_point() or given.numel() != math.prod(wanted) or bool((given < 0).any()):
        raise ValueError(
            f"instances must be one integer map per sample, {wanted}, numbered from 1 and 0 elsewhere, "
            f"got {tuple(given.shape)} of {given.dtype} from {given.min().item():g} on"
        )
    return given.reshape(wanted)


def gap_weight(instances: NDArray[np.integer], steps: tuple[float, ...], sigma: float) -> NDArray[np.float64]:
    """exp(-(d1 + d2)² / 2σ²), d1 and d2 the distances to the borders of the two nearest instances.

    Each instance is measured only as far as its Gaussian reaches. Fewer than two instances give zeros.

    Args:
        instances: Instances numbered in any way; 0 is none.
        steps: Edge lengths of a voxel, in the unit of sigma.
        sigma: Width.

    Returns:
        The weight of every voxel, in [0, 1].

    Example:
        >>> gap_weight(np.array([[1, 0, 2]]), (1.0, 1.0), sigma=1.0).round(3).tolist()
        [[0.135, 0.135, 0.135]]
    """
    names, numbered = np.unique(instances, return_inverse=True)
    numbered = numbered.reshape(instances.shape) + (0 if names[0] == 0 else 1)  # SciPy takes 0 as no object
    nearest, second = np.full((2, *instances.shape), np.inf)
    margins = [math.ceil(REACH * sigma / step) for step in steps]
    for number, tight in enumerate(ndimage.find_objects(numbered), 1):
        box = _grown(tight, margins, instances.shape)
        distance = euclidean_distance(surface(numbered[box] == number), steps)
        second[box] = np.minimum(second[box], np.maximum(nearest[box], distance))
        nearest[box] = np.minimum(nearest[box], distance)
    weight: NDArray[np.float64] = np.exp(-np.square(nearest + second) / (2 * sigma**2))
    return weight


def _grown(box: Box, margins: list[int], shape: tuple[int, ...]) -> Box:
    return tuple(
        slice(max(part.start - margin, 0), min(part.stop + margin, length))
        for part, margin, length in zip(box, margins, shape, strict=True)
    )
