"""What the loader hands over and what the network trains on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medseg.losses.beforehand import Wish, Wishes
from medseg.patches.augment import augment, move
from medseg.patches.draw import Draw
from medseg.patches.geometry import Geometry
from medseg.patches.stitch import exchanged
from medseg.space.labels import IGNORED


class Batch(NamedTuple):
    """Patches, or one whole volume, ready for the network.

    Attributes:
        image: Normalised intensities ``(b, m, i, j, k)``, float32.
        labels: Label indices ``(b, i, j, k)`` as the store has them, −1 where ignored.
        spacing_mm: Edge lengths of a voxel ``(b, 3)``; stays on the host, where distances begin.
        id: Name of the case of each sample.
        class_mask: ``(b, c)`` False for classes that were not annotated in the case; None when all were in all.
            Stays on the host, where it is asked what is to be done.
        weight: How many voxels each voxel counts as ``(b, i, j, k)``; None where all count alike.
        raters: What each rater drew ``(b, r, i, j, k)``, −1 where nothing, if the mean of it is the target.
        beforehand: Maps of the labels that the loss asks for, see `medseg.losses.beforehand`.
    """

    image: Float[Tensor, "b m i j k"]
    labels: Integer[Tensor, "b i j k"]
    spacing_mm: Float[Tensor, "b 3"]
    id: tuple[str, ...]
    class_mask: Bool[Tensor, "b c"] | None
    weight: Float[Tensor, "b i j k"] | None = None
    raters: Integer[Tensor, "b r i j k"] | None = None
    beforehand: dict[Wish, Tensor] | None = None


class Crops(NamedTuple):
    """A training batch on its way to the device, with what is to be done to it there.

    Attributes:
        image: Of each sample the normalised intensities ``(m, i, j, k)``: as large as the patch, or larger where it
            will be rotated, scaled or bent; float32, or float16 after `packed`.
        labels: Their label indices ``(i, j, k)``, or maps of them: those, and what each rater drew; int16, or int8.
        spacing_mm: As of `Batch`.
        id: As of `Batch`.
        class_mask: As of `Batch`.
        draw: Parameters of the augmentation, on the host.
        weighted: Whether the last channel of an image is the weight of its voxels.
        beforehand: As of `Batch`.
    """

    image: tuple[Float[Tensor, "m _i _j _k"], ...]
    labels: tuple[Integer[Tensor, "*_maps _i _j _k"], ...]
    spacing_mm: Float[Tensor, "b 3"]
    id: tuple[str, ...]
    class_mask: Bool[Tensor, "b c"] | None
    draw: Draw
    weighted: bool = False
    beforehand: dict[Wish, Tensor] | None = None


def packed(crops: Crops) -> Crops:
    """The same in half the bytes, for the way to a GPU: see `Crops`; what float16 or int8 cannot hold stays as it is.

    An intensity moves by one part in 2,048 at most, an eighth of what the network's own bfloat16 takes from it.
    """
    images = [(image, image.half()) for image in crops.image]
    maps = [(labels, labels.to(torch.int8)) for labels in crops.labels]
    return crops._replace(
        image=tuple(short if short.isfinite().all() else image for image, short in images),
        labels=tuple(short if torch.equal(short.to(labels.dtype), labels) else labels for labels, short in maps),
    )


def _unpacked(crops: Crops) -> Crops:
    image, labels = (part.float() for part in crops.image), (part.to(torch.int16) for part in crops.labels)
    return crops._replace(image=tuple(image), labels=tuple(labels))


def augmented(crops: Crops, geometry: Geometry, *, nearest: bool) -> Batch:
    """Apply what was drawn, on the device where the crops are; no gradient is recorded."""
    crops = _unpacked(crops)
    with torch.no_grad():
        image, maps = augment(crops.image, crops.labels, crops.draw, geometry, nearest=nearest, weighted=crops.weighted)
    mask = _mask(crops, geometry)
    image, weight = (image[:, :-1], image[:, -1]) if crops.weighted else (image, None)
    labels, raters = (maps[:, 0], maps[:, 1:]) if maps.ndim == 5 else (maps, None)
    return Batch(image, labels, crops.spacing_mm, crops.id, mask, weight, raters, crops.beforehand)


def with_maps(
    crops: Crops, geometry: Geometry, wishes: Wishes, membership: Bool[Tensor, "c v"] | None, *, nearest: bool
) -> Crops:
    """Patches whose labels have been moved on the host, and the maps of them that a loss asks for.

    Args:
        crops: As they were cut.
        geometry: The grid.
        wishes: Of the loss.
        membership: See `target_of`.
        nearest: See `medseg.patches.augment.augment`.
    """
    image, labels = move(crops.image, crops.labels, crops.draw, geometry, nearest=nearest)
    mask, weight = _mask(crops, geometry), image[:, -1] if crops.weighted else None
    target = target_of(labels if labels.ndim == 4 else labels[:, 0], membership)
    maps = wishes.granted(target, crops.spacing_mm, voxel_weight=weight, class_mask=mask)
    return crops._replace(
        image=tuple(image), labels=tuple(labels), class_mask=mask, draw=crops.draw.moved(), beforehand=maps
    )


def target_of(labels: Integer[Tensor, "b *space"], membership: Tensor | None) -> Integer[Tensor, "b *target"]:
    """Class indices as they are, or for overlapping regions a 0/1 map ``(b, c, i, j, k)``; ignored ones stay −1.

    Args:
        labels: Of the store.
        membership: Which value (columns) lies in which region (rows), where regions may overlap.
    """
    if membership is None:
        return labels
    masks = membership[:, labels.clamp(min=0).long()].transpose(0, 1).to(torch.int8)
    return masks.masked_fill((labels == IGNORED).unsqueeze(1), IGNORED)


def _mask(crops: Crops, geometry: Geometry) -> Bool[Tensor, "b c"] | None:
    """The annotated classes of samples of which some are flipped across left/right."""
    mask = crops.class_mask
    if mask is None or not geometry.swap_labels:
        return mask
    order = exchanged(mask.shape[1], geometry.swap_labels)
    return torch.where(torch.from_numpy(crops.draw.flips[:, :1]), mask[:, order], mask)
