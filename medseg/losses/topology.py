"""Topology losses: vessels and other thin structures are compared along their centre lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.losses.beforehand import of_target
from medseg.losses.comparison import Comparison
from medseg.losses.distribution import cross_entropy
from medseg.losses.knobs import Share
from medseg.losses.masks import all_channels, existing, first_channel, sum_over_space, target_masks
from medseg.losses.reduction import ratio, reduced
from medseg.losses.region import dice
from medseg.losses.table import Reduced, loss
from medseg.losses.thinning import soft_skeleton
from medseg.machine.devices import uploaded
from medseg.machine.threads import in_threads
from medseg.space.skeleton import skeleton_tube
from medseg.types import PerClass


@loss(
    family="boundary",
    paper="Shit et al. 2021, clDice: a topology-preserving loss for tubular structure segmentation, arXiv 2003.07311",
    handles=("boundary", "small"),
    cost="maps",
    range="[0, 1]",
)
def cldice(x: Comparison, *, iterations: int = 3, smooth: float = 1.0, include_background: bool = False) -> PerClass:
    """One minus Dice of the centre lines: a gap in a vessel costs as much as the vessel is long, not thick.

    Equation:
        1 - 2 T_p T_s / (T_p + T_s),  T_p = (Σ S(p) g + s) / (Σ S(p) + s),  T_s = (Σ S(g) p + s) / (Σ S(g) + s),
        S = soft skeleton: what repeated opening (minimum over a cross, then maximum over a 3^d cube) takes away

    Use: Beside Dice (see dice_cldice) for vessels, airways and neurites, with ``iterations`` at least the largest
    radius in voxels: a thicker vessel keeps no centre line.

    Known trouble: The soft skeleton of a probability map is neither connected nor one voxel wide; memory grows with
    ``iterations`` (each is recomputed in the backward pass, which leaves two maps each).

    Public code: The authors' PyTorch ignores the number it is given and adds up the batch; their Keras erodes over
    the plane and finds another skeleton; MONAI adds up the channels before it divides, so that the largest structure
    decides, and adds 1e-4 to the last denominator.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    first = first_channel(x, include_background=include_background)
    p, here = x.probs[:, first:], existing(x, first)
    g = target_masks(x, first).to(x.dtype)
    lines_p, lines_g = soft_skeleton(p, iterations, here), soft_skeleton(g, iterations, here)
    precision, recall = (
        ratio(sum_over_space(lines * other, x, first) + smooth, sum_over_space(lines, x, first) + smooth)
        for lines, other in ((lines_p, g), (lines_g, p))
    )
    return all_channels(1 - ratio(2 * precision * recall, precision + recall), first)


@loss(
    family="boundary",
    paper="Shit et al. 2021, arXiv 2003.07311, Eq. 3",
    handles=("boundary", "small"),
    cost="maps",
    range="[0, 1]",
)
def dice_cldice(
    x: Comparison,
    *,
    alpha: Share = 0.5,
    iterations: int = 3,
    smooth: float = 1.0,
    include_background: bool = False,
) -> PerClass:
    """Dice for the volume, clDice for the connections: the loss its authors train with.

    Equation:
        (1 - α) (1 - (2 Σ p g + s) / (Σ p + Σ g + s)) + α cldice

    Use: For vessels, airways and neurites.

    Known trouble: See cldice.

    Public code: See cldice.

    Args:
        alpha: Share of clDice.
    """
    lines = cldice(x, iterations=iterations, smooth=smooth, include_background=include_background)
    overlap = (2 * x.tp + smooth) / (x.sum_p + x.sum_g + smooth)
    return (1 - alpha) * (1 - overlap) + alpha * lines


NOT_MIRRORED = {"mirror": "thinning takes directions in turn, so the mirror image's skeleton is not the skeleton's"}


@loss(
    family="boundary",
    paper="Kirchhoff et al. 2024, Skeleton Recall Loss for connectivity conserving segmentation, arXiv 2404.03010",
    batch=False,
    alone=False,
    handles=("boundary", "small"),
    cost="distance",
    range="[0, 1]",
    excepts=NOT_MIRRORED,
)
def skeleton_recall(x: Comparison, *, smooth: float = 1e-5, include_background: bool = False) -> PerClass:
    """One minus the recall on a tube around the target's centre lines: connections at the price of a sum.

    Equation:
        1 - (Σ p s + ε) / (Σ s + ε),  s = skeleton of the class, dilated twice, within the class

    Use: Beside Dice and cross-entropy (see dice_ce_skeleton_recall) for thin structures in 3D and for many
    classes, where cldice costs too much. Give ``skeleton`` (b, c, *s), made beforehand in the data pipeline, or a map
    of class indices (b, *s); without it the target is skeletonised on the CPU: by the loader's workers in a
    training of medseg's, at coarser levels of deep supervision thinned out as labels are; else in every step.

    Known trouble: It rewards recall only, so alone it favours predicting the structure everywhere. An absent class
    has no skeleton and contributes 0 without a gradient.

    Public code: The authors skeletonise all classes together and multiply by the label, which loses the lines of
    touching classes; here each class has its own. scikit-image's thinning in 3D wears small lumps away altogether;
    here each keeps a voxel.
    """
    first = first_channel(x, include_background=include_background)
    tube = _given_tubes(x, x.skeleton, first) if x.skeleton is not None else _own_tubes(x, first)
    hit, size = sum_over_space(x.probs[:, first:] * tube, x, first), sum_over_space(tube, x, first)
    sums = x.pool(torch.stack([all_channels(hit, first), all_channels(size, first)]))
    return ratio(sums[1] - sums[0], sums[1] + smooth)


def _own_tubes(x: Comparison, first: int) -> Float[Tensor, "b part *s"]:
    """The tube of each class within the class."""
    tubes: Tensor = (tubes_of_target(x, first=first) & target_masks(x, first)).to(x.dtype)
    return tubes


@of_target
def tubes_of_target(x: Comparison, *, first: int) -> Bool[Tensor, "b part *s"]:
    """The tubes, computed a volume per thread; those of classes that exclude each other in one map."""
    truth = target_masks(x, first).cpu()
    tubes = in_threads(lambda mask: skeleton_tube(mask) & mask, list(truth.flatten(0, 1).numpy()))
    found = torch.from_numpy(np.stack(tubes)).reshape(truth.shape)
    return found.any(1, keepdim=True) if x.mode == "multiclass" else found


def _given_tubes(x: Comparison, skeleton: Tensor, first: int) -> Tensor:
    """Maps per channel as they are; a map of class indices split into its classes.

    Raises:
        ValueError: If there is one map for several sigmoid channels, or no map for a channel.
    """
    if skeleton.shape == x.shape:
        return uploaded(skeleton[:, first:], x.raw.device, x.dtype)
    if x.mode == "multilabel" or (skeleton.ndim == len(x.shape) and skeleton.shape[1] != 1):
        raise ValueError(
            f"skeleton must hold a map per channel, shape {tuple(x.shape)}, or in mode 'multiclass' one map of class "
            f"indices {(x.shape[0], *x.shape[2:])}, got {tuple(skeleton.shape)} in mode {x.mode!r}"
        )
    indices = (skeleton if skeleton.ndim == len(x.shape) else skeleton.unsqueeze(1)).to(x.raw.device)
    classes = range(first, x.shape[1]) if x.mode == "multiclass" else [1]
    split: Tensor = torch.cat([indices == c for c in classes], 1).to(x.dtype)
    return split


@loss(
    family="compound",
    paper="Kirchhoff et al. 2024, arXiv 2404.03010 (its trainer's default)",
    parts=(dice, cross_entropy, skeleton_recall),
    handles=("imbalance", "boundary", "small"),
    cost="distance",
    excepts=NOT_MIRRORED,
)
def dice_ce_skeleton_recall(
    x: Comparison,
    *,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    lambda_skeleton: float = 1.0,
    include_background: bool = False,
    **knobs: Any,
) -> Reduced:
    """Dice, cross-entropy and the recall of centre lines: nnU-Net's loss, taught not to break thin structures.

    Equation:
        λ_d dice (of the foreground) + λ_c cross_entropy + λ_s skeleton_recall

    Use: For vessels, airways, nerves and roots; the authors train with batch=True.

    Known trouble: That of skeleton_recall, whose skeletons are best made in the data pipeline.

    Public code: The authors count minus the Dice and so report 1 less; see also skeleton_recall.

    Args:
        x: The comparison; ``skeleton`` as in `skeleton_recall`.
    """
    knobs["include_background"] = include_background
    overlap, voxels, lines = (reduced(each, x, knobs) for each in (dice, cross_entropy, skeleton_recall))
    return lambda_dice * overlap + lambda_ce * voxels + lambda_skeleton * lines
