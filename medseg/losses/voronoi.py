"""Losses per connected component, each in its own part of space: every lesion and what is nearest to it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Float, Int32, Int64
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.losses.beforehand import of_target
from medseg.losses.comparison import Comparison
from medseg.losses.instances import blob_numbers, one_vs_rest
from medseg.losses.masks import all_channels, counted, first_channel, target_masks
from medseg.losses.reduction import ratio
from medseg.losses.table import loss
from medseg.machine.threads import in_threads
from medseg.space.fields import steps_per_sample
from medseg.types import PerClass


@loss(
    family="compound",
    paper="Bouteille et al. 2025, Learning to look closer: a new instance-wise loss for small cerebral lesion "
    "segmentation, arXiv 2511.17146; regions: Jaus et al. 2024, Every component counts, arXiv 2410.18684",
    handles=("imbalance", "small"),
    cost="distance",
    excepts={"mirror": "a voxel halfway between two components goes to the one that the transform finds first"},
)
def cc_dice_ce(
    x: Comparison,
    *,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    connectivity: int | None = None,
    smooth: float = 1e-7,
    include_background: bool = False,
) -> PerClass:
    """Dice and cross-entropy within the region of each connected component, so that a speck counts as a large lesion.

    Equation:
        mean over the components k of λ_d (1 - 2 TP_k / (Σp + Σg)_k) + λ_c mean_{i in region k} CE_i,
        region k = the voxels whose nearest component is k

    Use: Many lesions of unequal size. The authors add it to the plain loss: ``dice_ce + cc_dice_ce``. Over exclusive
    classes each foreground class is one against the rest.

    Known trouble: More small lesions are found, and more of what is none. Components and distances are computed on the
    CPU, by the loader's workers in a training of medseg's (``instances``, numbered from 1, spare the first and tell
    touching lesions apart). A class without a component is one region; its Dice costs a constant 1. Voxels halfway
    between two components go to either.

    Public code: The authors' agrees; it is for two classes, and works on a GPU only.

    Args:
        x: The comparison; ``spacing_mm`` measures what is nearest in millimetres.
        smooth: The smallest denominator of Dice.
        include_background: Whether channel 0 has components, too.
    """
    first = first_channel(x, include_background=include_background)
    truth, p, z = target_masks(x, first), x.probs[:, first:], one_vs_rest(x, first)
    regions, owners = _regions(x, truth, first, connectivity)
    weight = counted(x, first)
    v = torch.ones_like(p) if weight is None else weight.expand_as(p)

    def sums(values: Tensor) -> Float[Tensor, " k"]:
        flat = (values * v).flatten().double()
        return flat.new_zeros(len(owners)).index_add(0, regions.flatten(), flat).to(values.dtype)

    count = sums(torch.ones_like(p))
    dice = 1 - 2 * sums(p * truth) / (sums(p) + sums(truth.to(p))).clamp_min(smooth)
    ce = ratio(sums(-F.logsigmoid(torch.where(truth, z, -z))), count)
    values = (lambda_dice * dice + lambda_ce * ce) * (count > 0)
    zeros = p.new_zeros(p.shape[0] * p.shape[1])
    mean = ratio(zeros.index_add(0, owners, values), zeros.index_add(0, owners, (count > 0).to(values)))
    return all_channels(mean.reshape(p.shape[:2]), first)


@torch.no_grad()
def _regions(
    x: Comparison, truth: Tensor, first: int, connectivity: int | None
) -> tuple[Int64[Tensor, "b part *s"], Int64[Tensor, " k"]]:
    """Number every voxel by its nearest component, from 0 on over the whole batch; and whose each region is."""
    nearest = regions_of_target(x, first=first, connectivity=connectivity)
    pairs = torch.arange(nearest.shape[0] * nearest.shape[1], device=truth.device)
    pairs = pairs.reshape(*nearest.shape[:2], *[1] * (nearest.ndim - 2))
    kept, regions = torch.unique(torch.where(nearest > 0, nearest, -1 - pairs), return_inverse=True)
    owners = regions.new_zeros(len(kept))
    owners[regions] = pairs.expand_as(regions)
    return regions, owners


@of_target
def regions_of_target(x: Comparison, *, first: int, connectivity: int | None) -> Int32[Tensor, "b part *s"]:
    """The number of the nearest component, a volume per thread; 0 for classes without any."""
    numbers = blob_numbers(x, target_masks(x, first), first=first, connectivity=connectivity).cpu().numpy()
    steps = steps_per_sample(x.spacing_mm, x.shape[0], len(x.shape) - 2)
    pairs = list(np.ndindex(*numbers.shape[:2]))
    parts = in_threads(lambda at: nearest_number(numbers[at], steps[at[0]]), pairs)
    return torch.from_numpy(np.stack(parts).astype(np.int32)).reshape(numbers.shape)


def nearest_number(numbered: NDArray[np.integer], steps: tuple[float, ...]) -> NDArray[np.integer]:
    """Let the numbered parts of a volume grow until they fill it: a Voronoi diagram. Without a part all stays 0.

    Example:
        >>> nearest_number(np.array([[1, 0, 0, 0, 2]]), (1.0, 1.0)).tolist()
        [[1, 1, 1, 2, 2]]
    """
    if not numbered.any():
        return numbered
    empty = numbered == 0
    at = ndimage.distance_transform_edt(empty, sampling=steps, return_distances=False, return_indices=True)
    grown: NDArray[np.integer] = numbered[tuple(at)]
    return grown
