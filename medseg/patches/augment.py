"""Augmentation of a batch on the device it trains on: the drawn parameters applied, no chance left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.machine.devices import uploaded
from medseg.patches.draw import Applied, Draw
from medseg.patches.geometry import Geometry
from medseg.patches.spatial import deform
from medseg.space.labels import IGNORED


def augment(
    image: Sequence[Float[Tensor, "m _i _j _k"]] | Float[Tensor, "b m i j k"],
    labels: Sequence[Integer[Tensor, "*_maps _i _j _k"]] | Integer[Tensor, "b *maps i j k"],
    draw: Draw,
    geometry: Geometry,
    *,
    nearest: bool = False,
    weighted: bool = False,
) -> tuple[Float[Tensor, "b m x y z"], Integer[Tensor, "b *maps x y z"]]:
    """Turn crops into augmented patches: one interpolation for all that moves voxels, then intensities.

    Args:
        image: Normalised crops, each as large as the patch or larger by an even number of voxels per axis.
        labels: Label indices, or several maps of them; −1 is ignored.
        draw: Parameters from `medseg.patches.draw.draw`.
        geometry: The grid they were drawn for.
        nearest: Labels of the nearest voxel instead of the largest interpolated share.
        weighted: The last channel moves with the image, and is no intensity.

    Returns:
        Patches of ``geometry.patch_size`` and their labels; on another device the same, except for the noise, which is
        drawn there from the seed in ``draw``.

    Example:
        >>> from medseg.patches.draw import draw
        >>> from medseg.patches.settings import augmentation
        >>> grid = Geometry((8, 8, 8), (1.0, 1.0, 1.0), mirror_axes=(0, 1, 2))
        >>> drawn = draw(augmentation("full"), grid, modalities=1, keys=[(0,), (1,)])
        >>> image, labels = torch.randn(2, 1, 12, 12, 12), torch.ones(2, 12, 12, 12, dtype=torch.int16)
        >>> [tuple(t.shape) for t in augment(image, labels, drawn, grid)]
        [(2, 1, 8, 8, 8), (2, 8, 8, 8)]
    """
    patches, targets = move(image, labels, draw, geometry, nearest=nearest)
    for sample, changes in zip(patches, draw.changes, strict=True):
        _degrade(sample[:-1] if weighted else sample, changes)
    return patches, targets


def move(
    image: Sequence[Float[Tensor, "m _i _j _k"]] | Float[Tensor, "b m i j k"],
    labels: Sequence[Integer[Tensor, "*_maps _i _j _k"]] | Integer[Tensor, "b *maps i j k"],
    draw: Draw,
    geometry: Geometry,
    *,
    nearest: bool = False,
) -> tuple[Float[Tensor, "b m x y z"], Integer[Tensor, "b *maps x y z"]]:
    """The part of `augment` after which every label is where, and what, it will be."""
    patches, targets = deform(image, labels, draw, geometry.patch_size, nearest=nearest)
    if geometry.swap_labels:
        for sample in np.flatnonzero(draw.flips[:, 0]):
            targets[sample] = swapped(targets[sample], geometry.swap_labels)
    return patches, targets


def _degrade(sample: Float[Tensor, "m i j k"], changes: Sequence[Applied]) -> None:
    """Applied the intensities of a patch, in place."""
    generator = torch.Generator(sample.device)
    for change in changes:
        chance = {} if change.seed is None else {"generator": generator.manual_seed(change.seed)}
        change.function(sample if change.modality is None else sample[change.modality], **change.values, **chance)


def swapped(labels: Integer[Tensor, "*space"], pairs: Sequence[tuple[int, int]]) -> Integer[Tensor, "*space"]:
    """Exchange the labels of each pair, as a flip across left/right must.

    Example:
        >>> swapped(torch.tensor([[[0, 1, 2, 3, -1]]]), ((1, 3),)).tolist()
        [[[0, 3, 2, 1, -1]]]
    """
    largest = max(max(pair) for pair in pairs)
    table = torch.arange(IGNORED, largest + 1)
    for left, right in pairs:
        table[left - IGNORED], table[right - IGNORED] = right, left
    known = labels.clamp_max(largest).long() - IGNORED
    return torch.where(labels > largest, labels, uploaded(table, labels.device, labels.dtype)[known])
