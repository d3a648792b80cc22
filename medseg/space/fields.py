"""Distance fields of a batch of masks: a thread per volume on a CPU, one separable pass per axis on a GPU.

On a GPU a mask is swept from its own box, and how deep voxels lie in masks that exclude each other is found for all of
them in one sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from scipy import ndimage
from torch import Tensor

from medseg.machine.threads import in_threads
from medseg.space.components import connected_components
from medseg.space.distance import Box, bounding_box, checked_spacing, euclidean_distance

Spacing = Sequence[float] | Float[Tensor, "b axes"] | None
"""Edge lengths of a voxel in millimetres: one set for the batch, one per sample, or None for voxels."""

Valid = Bool[Tensor, "b v *space"] | None
"""Voxels that exist, for each class (v = c) or for all of them (v = 1); the others belong to neither side of a mask's
boundary, as if they had been cut away, and their distances mean nothing. None means all."""

SWEEP_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Sums held at once by a sweep: two megabytes stay near a core; a GPU wants enough to fill it."""

SWEEP_WORTH = 512
"""A sweep compares, for each voxel, every site on its line; where that reads more bytes per voxel than this, SciPy's
linear scan is faster (measured in 96³ voxels: a third of its time for an organ 30 voxels wide, even near 75)."""

SMALL = 1 << 14
"""Below this many voxels a scan is over before the sweeps have been set up."""

MOST_PIECES = 256
"""A mask of more parts than this is measured as one: small arrays hold the interpreter."""


@torch.no_grad()
def distance_to(
    masks: Bool[Tensor, "b c *space"], spacing_mm: Spacing = None, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b c *space"]:
    """Measure how far every voxel is from the nearest voxel of its mask; infinite where the mask is empty.

    Args:
        masks: One mask per sample and class.
        spacing_mm: See `Spacing`.
        dtype: Precision of the answer.

    Returns:
        Distances on the device of the masks.

    Example:
        >>> distance_to(torch.tensor([[[[True, False, False]]]])).tolist()
        [[[[0.0, 1.0, 2.0]]]]
    """
    if masks.device.type != "cpu":
        return _outside(masks, steps_per_sample(spacing_mm, masks.shape[0], masks.ndim - 2), dtype)
    return _each(_fill_outside, masks, spacing_mm, masks.new_full(masks.shape, np.inf, dtype=dtype))


@torch.no_grad()
def boundary_distance(
    masks: Bool[Tensor, "b c *space"],
    spacing_mm: Spacing = None,
    *,
    valid: Valid = None,
    exclusive: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b c *space"]:
    """Measure the unsigned distance to the other side of each mask's boundary: d(x, mask) + d(x, complement).

    One of the two terms is zero in every voxel. Empty and full masks have no boundary: zero everywhere.

    Args:
        masks: One mask per sample and class.
        spacing_mm: See `Spacing`.
        valid: See `Valid`.
        exclusive: Whether no voxel lies in two masks of a sample, of which a GPU makes use.
        dtype: Precision of the answer.

    Returns:
        Distances on the device of the masks.

    Example:
        >>> boundary_distance(torch.tensor([[[[True, True, False]]]])).tolist()
        [[[[2.0, 1.0, 1.0]]]]
    """
    if masks.device.type != "cpu":
        steps = steps_per_sample(spacing_mm, masks.shape[0], masks.ndim - 2)
        distance = _outside(masks, steps, dtype)
        depth = _inside(masks, steps, valid, exclusive=exclusive, dtype=dtype)
        return depth.add_(distance.masked_fill_(distance.isfinite().logical_not_(), 0))
    out = masks.new_zeros(masks.shape, dtype=dtype)
    return _each(_fill_both, masks, spacing_mm, out, valid)


@torch.no_grad()
def inner_distance(
    masks: Bool[Tensor, "b c *space"],
    spacing_mm: Spacing = None,
    *,
    valid: Valid = None,
    exclusive: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b c *space"]:
    """Measure, inside each mask, the distance to the nearest voxel outside it; zero outside, and for a full mask.

    Args:
        masks: One mask per sample and class.
        spacing_mm: See `Spacing`.
        valid: See `Valid`.
        exclusive: Whether no voxel lies in two masks of a sample, of which a GPU makes use.
        dtype: Precision of the answer.

    Returns:
        Distances on the device of the masks.

    Example:
        >>> inner_distance(torch.tensor([[[[True, True, False]]]])).tolist()
        [[[[2.0, 1.0, 0.0]]]]
    """
    if masks.device.type != "cpu":
        steps = steps_per_sample(spacing_mm, masks.shape[0], masks.ndim - 2)
        return _inside(masks, steps, valid, exclusive=exclusive, dtype=dtype)
    out = masks.new_zeros(masks.shape, dtype=dtype)
    return _each(_fill_inside, masks, spacing_mm, out, valid)


def steps_per_sample(spacing_mm: Spacing, batch: int, axes: int) -> list[tuple[float, ...]]:
    """Spell out the edge lengths of every sample's voxels.

    Raises:
        ValueError: If there is not one positive number per axis, for the batch or for each sample.

    Example:
        >>> steps_per_sample((1.0, 2.0), batch=2, axes=2)
        [(1.0, 2.0), (1.0, 2.0)]
    """
    if isinstance(spacing_mm, Tensor) and spacing_mm.ndim > 1:
        if len(spacing_mm) != batch:
            raise ValueError(f"spacing_mm must have one row per sample ({batch}), got {tuple(spacing_mm.shape)}")
        return [checked_spacing(row, axes) for row in spacing_mm.double().tolist()]
    values = spacing_mm.double().tolist() if isinstance(spacing_mm, Tensor) else spacing_mm
    return [checked_spacing(values, axes)] * batch


Fill = Callable[[Tensor, Tensor, Tensor | None, tuple[float, ...]], None]
"""Write the field of masks (n, *space) into an array of the same shape, given who exists and the edge lengths."""


def _each(fill: Fill, masks: Tensor, spacing_mm: Spacing, out: Tensor, valid: Tensor | None = None) -> Tensor:
    """Fill the field of every sample on the CPU, a thread per volume."""
    steps = steps_per_sample(spacing_mm, masks.shape[0], masks.ndim - 2)
    exists = None if valid is None or bool(valid.all()) else valid.expand_as(masks)
    inference = torch.is_inference_mode_enabled()  # threads do not inherit it, and must not write to its tensors

    def one(at: tuple[int, ...]) -> None:
        with torch.inference_mode(inference):
            fill(masks[at][None], out[at][None], None if exists is None else exists[at][None], steps[at[0]])

    in_threads(one, np.ndindex(*masks.shape[:2]))
    return out


def _fill_outside(masks: Tensor, out: Tensor, _: Tensor | None, steps: tuple[float, ...]) -> None:
    out.copy_(_measured(masks, steps, out.dtype))


def _fill_inside(masks: Tensor, out: Tensor, exists: Tensor | None, steps: tuple[float, ...]) -> None:
    for box, piece in _pieces(masks, cut=exists is not None):
        inside = masks[box]
        depth = _measured(~inside if exists is None else ~inside & exists, steps, out.dtype)
        out[box] = torch.where(piece & depth.isfinite(), depth, out[box])


def _pieces(masks: Tensor, *, cut: bool) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Boxes, and the parts of the mask whose depth can be measured within them.

    A part's nearest voxel outside lies in its box grown by one, so an organ and some specks far away are measured in
    small boxes. Not so where voxels have been cut out: the nearest that exists may be further away.
    """
    if cut:
        yield (slice(None),), masks
        return
    mask = masks[0].numpy()
    numbered, count = connected_components(mask)
    if count > MOST_PIECES:
        numbered = mask.astype(np.int32)
    for number, tight in enumerate(ndimage.find_objects(numbered), 1):
        spans = zip(tight, mask.shape, strict=True)
        box = tuple(slice(max(part.start - 1, 0), min(part.stop + 1, length)) for part, length in spans)
        yield (slice(None), *box), torch.from_numpy(numbered[box] == number)[None]


def _fill_both(masks: Tensor, out: Tensor, exists: Tensor | None, steps: tuple[float, ...]) -> None:
    _fill_inside(masks, out, exists, steps)
    distance = _measured(masks, steps, out.dtype)
    out.add_(distance.masked_fill_(distance.isfinite().logical_not_(), 0))


def _measured(masks: Tensor, steps: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Distance to the nearest True voxel of each mask, by whichever exact method is faster for it."""
    volume = masks[0].numpy()
    box = bounding_box(volume)
    if box is None:
        return masks.new_full(masks.shape, np.inf, dtype=dtype)
    itemsize = 4 if len(set(steps)) == 1 else dtype.itemsize
    if volume.size < SMALL or _additions(box, volume.shape) * itemsize > SWEEP_WORTH * volume.size:
        return torch.from_numpy(euclidean_distance(volume, steps)).to(dtype)[None]
    return swept_distance(masks[(slice(None), *box)], steps, box, volume.shape, dtype=dtype)


def _additions(box: Box, shape: Sequence[int]) -> int:
    """Sums that a sweep over this box would form, longest side first."""
    sides = {axis: part.stop - part.start for axis, part in enumerate(box)}
    done, total = dict(sides), 0
    for axis in sorted(sides, key=lambda a: -sides[a]):
        done[axis] = shape[axis]
        total += sides[axis] * int(np.prod(list(done.values())))
    return total


def swept_distance(
    sites: Bool[Tensor, "n *box"],
    steps: tuple[float, ...],
    box: Box,
    shape: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n *space"]:
    """Measure the distance to the nearest site exactly, one axis after the other.

    Equation:
        f'(t) = min over q of f(q) + (step · (t - q))², for each axis in turn, from f = 0 on sites and ∞ elsewhere.

    The squared distance is separable, so each pass is a lower envelope of parabolas, here taken by comparing all of
    them: more arithmetic than a scan, but all of it in whole arrays. Cubic voxels are measured in voxels, where single
    precision holds squared distances exactly, and scaled at the end.

    Args:
        sites: Masks cropped to the box that holds all their True voxels.
        steps: Edge length per axis.
        box: Where the sites lie in the volume.
        shape: The volume's shape; None if the box is all of it.
        dtype: Precision of the answer.

    Returns:
        Distances over the whole volume; infinite where there is no site.
    """
    cubic = len(set(steps)) == 1
    working = torch.float32 if cubic else dtype
    field = torch.zeros(sites.shape, dtype=working, device=sites.device).masked_fill_(~sites, np.inf)
    full = sites.shape[1:] if shape is None else shape
    for axis in sorted(range(len(steps)), key=lambda a: -sites.shape[a + 1]):
        sweep = partial(_sweep, length=full[axis], start=box[axis].start, step=1.0 if cubic else steps[axis])
        field = sweep(field.movedim(axis + 1, 0)).movedim(0, axis + 1)
    distance = field.to(dtype).sqrt_()
    return distance.mul_(steps[0]) if cubic else distance


def _outside(masks: Tensor, steps: list[tuple[float, ...]], dtype: torch.dtype) -> Float[Tensor, "b c *space"]:
    """Distance to the masks on a GPU, each swept from its box; the host waits once, for all the boxes."""
    out = masks.new_full(masks.shape, np.inf, dtype=dtype)
    for (n, c), box in _boxes(masks).items():
        swept = swept_distance(masks[n, c][box][None], steps[n], box, masks.shape[2:], dtype=dtype)
        out[n, c] = swept[0]
    return out


def _boxes(masks: Bool[Tensor, "b c *space"]) -> dict[tuple[int, int], Box]:
    """The boxes of those that are not empty."""
    space = range(2, masks.ndim)
    lines = [masks.movedim(axis, 2).flatten(3).any(3) for axis in space]
    found = np.split(torch.cat(lines, 2).cpu().numpy(), np.cumsum(masks.shape[2:-1]), axis=2)
    return {
        (n, c): tuple(slice(int(at[0]), int(at[-1]) + 1) for at in (np.flatnonzero(line[n, c]) for line in found))
        for n, c in np.ndindex(*masks.shape[:2])
        if found[0][n, c].any()
    }


def _inside(
    masks: Tensor, steps: list[tuple[float, ...]], valid: Tensor | None, *, exclusive: bool, dtype: torch.dtype
) -> Float[Tensor, "b c *space"]:
    """How deep voxels lie in their masks, on a GPU."""
    out = masks.new_zeros(masks.shape, dtype=dtype)
    space = tuple(slice(0, length) for length in masks.shape[2:])
    for n, step in enumerate(steps):
        if exclusive and (valid is None or valid.shape[1] == 1):
            names = masks.new_zeros(masks.shape[2:], dtype=torch.int16)
            for number, mask in enumerate(masks[n], 1):
                names += mask * number
            exists = torch.ones_like(names, dtype=torch.bool) if valid is None else valid[n, 0]
            depth = swept_depth(names, exists, step, dtype=dtype)
        else:
            others = ~masks[n] if valid is None else ~masks[n] & valid[n]
            depth = swept_distance(others, step, space, dtype=dtype)
        out[n] = torch.where(masks[n] & depth.isfinite(), depth, 0)
    return out


def swept_depth(
    names: Integer[Tensor, "*space"],
    exists: Bool[Tensor, "*space"],
    steps: tuple[float, ...],
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*space"]:
    """Measure how far every voxel is from the nearest that has another name, whatever the number of names.

    Each pass keeps, of every voxel, the nearest name with its squared distance and the distance of the nearest other
    name: on the line through a voxel, one of the two is what a third name must be compared with.

    Args:
        names: One number per voxel.
        exists: Voxels that have a name; the others are no neighbours of anybody.
        steps: Edge length per axis.
        dtype: Precision of the answer.

    Returns:
        Distances of the voxels that exist; infinite where there is no other name.

    Example:
        >>> swept_depth(torch.tensor([[1, 1, 2, 2, 2]]), torch.ones(1, 5, dtype=torch.bool), (1.0, 2.0)).tolist()
        [[4.0, 2.0, 2.0, 4.0, 6.0]]
    """
    working = torch.float32 if len(set(steps)) == 1 else dtype
    nearest = torch.zeros(names.shape, dtype=working, device=names.device).masked_fill_(~exists, np.inf)
    other = torch.full_like(nearest, np.inf)
    for axis, step in enumerate(steps):
        lines = (part.movedim(axis, 0).flatten(1) for part in (nearest, other, names))
        swept = _sweep_two(*lines, step=1.0 if len(set(steps)) == 1 else step)
        shape = names.movedim(axis, 0).shape
        nearest, other, names = (part.reshape(shape).movedim(0, axis) for part in swept)
    distance = other.to(dtype).sqrt()
    return distance * steps[0] if len(set(steps)) == 1 else distance


def _sweep_two(nearest: Tensor, other: Tensor, names: Tensor, *, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of `swept_depth`, along the first axis."""
    length = len(nearest)
    ticks = torch.arange(length, dtype=nearest.dtype, device=nearest.device)
    cost = (ticks[:, None] - ticks).mul_(step).square_()
    found = torch.empty_like(nearest), torch.empty_like(other), torch.empty_like(names)
    rows = max(1, SWEEP_ELEMENTS.get(nearest.device.type, 1 << 22) // max(1, nearest.numel()))
    for first in range(0, length, rows):
        part = slice(first, first + rows)
        found[0][part], place = (nearest + cost[part, :, None]).min(1)
        found[2][part] = names.gather(0, place)
        rest = torch.where(names != found[2][part, None], nearest, other)
        found[1][part] = (rest + cost[part, :, None]).amin(1)
    return found


def _sweep(field: Tensor, *, length: int, start: int, step: float) -> Tensor:
    """The lower envelope, along the first axis, of a parabola on every value of the field."""
    values = field.flatten(1)
    sites = torch.arange(start, start + len(values), dtype=field.dtype, device=field.device)
    ticks = torch.arange(length, dtype=field.dtype, device=field.device)
    cost = (ticks[:, None] - sites).mul_(step).square_()
    envelope = values.new_empty(length, values.shape[1])
    rows = max(1, SWEEP_ELEMENTS.get(field.device.type, 1 << 22) // max(1, values.numel()))
    for first in range(0, length, rows):
        torch.amin(values + cost[first : first + rows, :, None], 1, out=envelope[first : first + rows])
    return envelope.reshape(length, *field.shape[1:])
