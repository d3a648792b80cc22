"""Losses between point sets: predicted contours or probabilities against the points of the target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Real
from medseg.losses.masks import all_channels, counted, first_channel, predicted_masks, target_masks
from medseg.losses.reduction import ratio
from medseg.losses.table import loss
from medseg.machine.threads import in_threads
from medseg.space.distance import bounding_box, surface
from medseg.space.fields import distance_to, steps_per_sample
from medseg.types import PerClass, PerVoxel

PAIRS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Distances held at once."""


@loss(
    family="boundary",
    paper="Ribera et al. 2019, Locating objects without bounding boxes, CVPR, arXiv 1806.07564",
    alone=False,
    handles=("boundary", "small"),
    cost="distance",
    excepts={"correct": "its second term asks for probability around every voxel of the target, background included"},
)
def weighted_hausdorff(
    x: Comparison,
    *,
    p_exponent: Real = -1.0,
    eps: float = 1e-6,
    points: Literal["all", "boundary"] = "all",
    max_points: int | None = None,
    include_background: bool = False,
    absent: Literal["ignore", "keep"] = "ignore",
) -> PerClass:
    """Average Hausdorff distance between a probability map and a set of points, smooth in the probabilities.

    Equation:
        Σ_i p_i min_y d(i, y) / (Σ p + ε) + mean_y (mean_i f_iy^a)^(1/a),
        f_iy = p_i d(i, y) + (1 - p_i) d_max + ε,  y = voxels of the target,  d_max = diagonal of the volume

    Use: To locate small objects, or beside a region loss for distances in the unit the report uses. The first term
    pulls probability towards the target, the second asks that every target voxel has some nearby.

    Known trouble: Time grows with voxels times target voxels, so take ``points="boundary"`` and ``max_points`` (spread
    evenly) for volumes; with the default exponent the mean over all voxels is dominated by d_max until p is sharp.
    A class without target voxels is left out (``absent="ignore"``) or costs d_max, a constant (``"keep"``).

    Public code: The authors' computes (f + ε)^a directly, which overflows in single precision for a = -9 (here the
    smallest f is taken out first); the fork that most tutorials link implements another loss, of the first preprint.
    The authors' repository is not free for commercial use and says that its method is covered by US patents. This
    is written from the paper's formula alone; if you ship a product, ask a lawyer before you train with it.

    Args:
        x: The comparison; ``spacing_mm`` measures in millimetres.
        p_exponent: a, below 0; the nearer to -∞, the closer the generalised mean is to the minimum.
        eps: Keeps the quotients finite.
        points: Every voxel of the target, or those of its surface.
        max_points: Take at most so many points of each class.
        absent: What a class without target voxels costs.
    """
    if p_exponent >= 0 or eps <= 0:
        raise ValueError(f"p_exponent must be below 0 and eps above 0, got {p_exponent} and {eps}")
    first = first_channel(x, include_background=include_background)
    sites = _sites(target_masks(x, first), points, max_points)
    near = distance_to(sites, x.spacing_mm, dtype=x.dtype)
    weight = counted(x, first)
    weight = torch.ones((), dtype=x.dtype, device=x.raw.device) if weight is None else weight
    values = []
    for n, (room, steps) in enumerate(_rooms(x)):
        v = weight.expand(x.shape[0], sites.shape[1], *x.shape[2:])[n]
        for c in range(sites.shape[1]):
            p = x.probs[n, c + first]
            if bool(sites[n, c].any()):
                to_target = (v[c] * p * near[n, c]).sum() / ((v[c] * p).sum() + eps)
                to_map = _mean_over_points(p, v[c], sites[n, c], steps, room, a=p_exponent, eps=eps)
                values.append(to_target + to_map)
            else:
                values.append(p.sum() * 0 + room)
    return all_channels(torch.stack(values).reshape(sites.shape[:2]), first)


@torch.no_grad()
def _sites(
    truth: Bool[Tensor, "b part *s"], points: Literal["all", "boundary"], most: int | None
) -> Bool[Tensor, "b part *s"]:
    """The points of the target that are compared."""
    sites = surfaces(truth) if points == "boundary" else truth.clone()
    if most is not None:
        if most < 1:
            raise ValueError(f"max_points must be at least 1 or None, got {most}")
        for volume in sites.flatten(0, 1).flatten(1):
            there = volume.nonzero().squeeze(1)
            if len(there) > most:
                volume.zero_()
                volume[there[torch.linspace(0, len(there) - 1, most, device=there.device).long()]] = True
    return sites


@torch.no_grad()
def surfaces(masks: Bool[Tensor, "b part *s"]) -> Bool[Tensor, "b part *s"]:
    """The inner surface voxels of every mask: a volume per thread, on a GPU by shifts of them all."""
    if masks.device.type == "cpu":
        found = in_threads(surface, list(masks.flatten(0, 1).numpy()))
        return torch.from_numpy(np.stack(found)).reshape(masks.shape)
    inside = masks.clone()
    for axis in range(2, masks.ndim):
        padded = F.pad(masks, (0, 0) * (masks.ndim - 1 - axis) + (1, 1))
        inside &= padded.narrow(axis, 0, masks.shape[axis]) & padded.narrow(axis, 2, masks.shape[axis])
    return masks & ~inside


def _rooms(x: Comparison) -> Iterator[tuple[float, tuple[float, ...]]]:
    """For every sample, the diagonal of the box of its existing voxels, and their edge lengths."""
    for n, steps in enumerate(steps_per_sample(x.spacing_mm, x.shape[0], len(x.shape) - 2)):
        sides: tuple[int, ...] = tuple(x.shape[2:])
        if x.weight is not None:
            box = bounding_box((x.weight[n] > 0).any(0).cpu().numpy())
            sides = (0,) * len(steps) if box is None else tuple(part.stop - part.start for part in box)
        yield float(np.linalg.norm(np.multiply(sides, steps))), steps


def _mean_over_points(
    p: Float[Tensor, "*s"],
    v: Float[Tensor, "*s"],
    sites: Bool[Tensor, "*s"],
    steps: tuple[float, ...],
    room: float,
    *,
    a: float,
    eps: float,
) -> Float[Tensor, ""]:
    """Average the generalised mean over the target's points, some at a time and again in the backward pass."""
    points = sites.nonzero()
    at_once = max(1, PAIRS.get(p.device.type, 1 << 22) // p.numel())
    total = p.new_zeros(())
    for start in range(0, len(points), at_once):
        total = total + checkpoint(
            _generalised_means, p, v, points[start : start + at_once], steps, room, a, eps, use_reentrant=False
        )
    return total / len(points)


def _generalised_means(
    p: Tensor, v: Tensor, points: Tensor, steps: tuple[float, ...], room: float, a: float, eps: float
) -> Tensor:
    """Add up (Σ v f^a / Σ v)^(1/a) over some points; the smallest f is taken out, so that powers stay in (0, 1]."""
    squared = p.new_zeros((len(points), *[1] * p.ndim))
    for axis, (length, step) in enumerate(zip(p.shape, steps, strict=True)):
        here = torch.arange(length, dtype=p.dtype, device=p.device)
        offset = (here - points[:, axis, None].to(p.dtype)) * step
        squared = squared + offset.square().reshape(-1, *[length if k == axis else 1 for k in range(p.ndim)])
    f = (room + p * (squared.sqrt() - room) + eps).flatten(1)
    f = torch.where(v.flatten() > 0, f, torch.inf)
    smallest = f.detach().amin(1, keepdim=True)
    mean = ((f / smallest).pow(a) * v.flatten()).sum(1) / v.sum()
    return (smallest.squeeze(1) * mean.pow(1 / a)).sum()


@loss(
    family="boundary",
    paper="Al Arif et al. 2017, Shape-aware deep convolutional neural network for vertebrae segmentation",
    handles=("boundary",),
    cost="distance",
)
def shape_aware(x: Comparison, *, region: Literal["mismatch", "all"] = "mismatch") -> PerVoxel:
    """Cross-entropy in which wrong voxels count more, the further the predicted contour is off.

    Equation:
        mean CE + (1/M) Σ_{i: predicted ≠ y} E_n CE_i,  E_n = mean over the predicted contour's voxels of the distance
        to the target's contour, averaged over the foreground classes that have both

    Use: In place of cross-entropy, which it is once the contours agree. In ``multilabel`` mode each channel has its
    own E.

    Known trouble: E is a number per sample that carries no gradient, so it raises the learning rate of bad samples
    rather than moving their contours. A missing contour contributes nothing.

    Public code: None found; Jadon's survey prints both terms with a minus and without the restriction to wrong
    voxels (``region="all"``).

    Args:
        x: The comparison; ``spacing_mm`` measures E in millimetres.
        region: Whether E counts for the wrong voxels, or for all.
    """
    ce = -x.log_p_true
    factor = _contour_error(x)
    if x.mode == "multiclass":
        factor = factor.reshape(-1, *[1] * (ce.ndim - 1))
        assert x.labels is not None  # the door admits hard targets only
        wrong = x.best != x.labels
    else:
        factor = factor.reshape(*factor.shape, *[1] * (ce.ndim - 2))
        wrong = (x.raw > 0) != (x.onehot > 0.5)
    return ce * (1 + factor * (wrong if region == "mismatch" else 1))


@torch.no_grad()
def _contour_error(x: Comparison) -> Float[Tensor, "b *c"]:
    """E per sample (b,) over classes that exclude each other, else per sample and channel (b, c)."""
    first = x.first_class
    target = surfaces(target_masks(x, first))
    predicted = surfaces(predicted_masks(x, first, "argmax" if x.mode == "multiclass" else 0.5))
    distance = distance_to(target, x.spacing_mm, dtype=x.dtype)
    both = target.flatten(2).any(2) & predicted.flatten(2).any(2)
    far = torch.where(predicted & distance.isfinite(), distance, 0).flatten(2).sum(2)
    error = torch.where(both, far / predicted.flatten(2).sum(2).clamp(min=1), 0)
    return ratio(error.sum(1), both.sum(1).to(error)) if x.mode == "multiclass" else error
