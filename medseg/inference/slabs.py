"""From the plan's grid to the image's, slab by slab and class by class: the memory of one slab, whatever the volume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.machine.devices import uploaded
from medseg.plan.grid import GridChange
from medseg.space.linear import LinearAxis, linear_axis

Box = tuple[slice, slice, slice]
Slabs = Iterable[tuple[slice, Tensor]]
"""Consecutive slices of one axis of the plan's grid with their scores ``(c, i, j, k)``, as of `stitched_slabs`."""

_TOGETHER = {"cpu": 2**15}  # numbers interpolated at once: what fits the cache of a core
_TOGETHER_ELSEWHERE = 2**24  # a GPU wants few large pieces


@dataclass(frozen=True, eq=False)
class Window:
    """A finished slab and the plane before it: all that some rows of the image's grid depend on.

    Attributes:
        rows: Those rows, along the swept axis of the image's box.
        first: Where the window begins, along the swept axis of the plan's grid.
        before: Scores of the plane before the slab ``(c, 1, a, b)``; None at the start of the volume.
        slab: Scores ``(c, depth, a, b)``, the swept axis first.
        axes: How the three axes are interpolated, the swept one first.
    """

    rows: slice
    first: int
    before: Tensor | None
    slab: Tensor
    axes: tuple[LinearAxis, LinearAxis, LinearAxis]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.slab)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the finished rows on the image's grid."""
        return self.rows.stop - self.rows.start, len(self.axes[1].lower), len(self.axes[2].lower)

    def of_class(self, index: int) -> Tensor:
        """Scores of one class in float32, ``(1 + depth, a, b)``."""
        if self.before is None:
            return self.slab[index].float()
        return torch.cat([self.before[index], self.slab[index]]).float()

    def interpolated(self, values: Tensor, box: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """Interpolate one class, at least wherever an image's voxel depends on a voxel of the box.

        Args:
            values: What `of_class` returned, or something of its shape.
            box: In voxels of ``values``; everything where None.

        Yields:
            Boxes of the finished rows, counted from the first of them, and the values there; together they cover what
            depends on the box, once.
        """
        box = box or (slice(0, len(values)), slice(0, values.shape[1]), slice(0, values.shape[2]))
        along, down, across = self.axes
        rows = along.touched(box[0].start + self.first, box[0].stop + self.first)
        rows = slice(max(rows.start, self.rows.start), min(rows.stop, self.rows.stop))
        lines, columns = down.touched(box[1].start, box[1].stop), across.touched(box[2].start, box[2].stop)
        if min(part.stop - part.start for part in (rows, lines, columns)) <= 0:
            return
        planes, needed = _needed(along, rows, self.first), _needed(down, lines)
        stretched = _blend(values[planes, needed], across, columns, dim=2)
        stretched = _blend(stretched, down, lines, dim=1, origin=needed.start)
        origin = self.first + planes.start
        limit = _TOGETHER.get(values.device.type, _TOGETHER_ELSEWHERE)
        step = max(1, limit // (stretched.shape[1] * stretched.shape[2]))
        for start in range(rows.start, rows.stop, step):
            part = slice(start, min(start + step, rows.stop))
            place = slice(part.start - self.rows.start, part.stop - self.rows.start)
            blended = (
                _row(stretched, along, start, origin)
                if step == 1
                else _blend(stretched, along, part, dim=0, origin=origin)
            )
            yield (
                (place, lines, columns),
                blended.to(self.slab.dtype).to(values.dtype),
            )  # float16 rounds as nnU-Net does


def windows(slabs: Slabs, change: GridChange, *, axis: int) -> Iterator[Window]:
    """Pair every slab with the rows of the image's box that it finishes.

    Args:
        slabs: Scores on the plan's grid; a slab need not outlive its turn.
        change: What `to_plan_grid` returned for the image.
        axis: Which axis the slabs follow.
    """
    order = (axis, *(other for other in range(3) if other != axis))
    along, down, across = (
        linear_axis(change.shape[a], change.size[a], nearest=a == change.through_plane_back) for a in order
    )
    before: Tensor | None = None
    done = 0
    for where, scores in slabs:
        slab = scores.movedim(axis + 1, 1)
        ready = along.ready(where.stop)
        yield Window(slice(done, ready), where.start - (before is not None), before, slab, (along, down, across))
        before, done = slab[:, -1:].clone(), ready


def box_of(mask: Tensor) -> Box | None:
    """The smallest box that holds every true voxel, or None.

    Example:
        >>> box_of(torch.eye(3, dtype=torch.bool)[None])
        (slice(0, 1, None), slice(0, 3, None), slice(0, 3, None))
    """
    flat = mask.any(dim=0)
    sides = torch.cat([mask.any(dim=2).any(dim=1), flat.any(dim=1), flat.any(dim=0)]).cpu()  # one wait for a GPU
    found = [side.nonzero() for side in torch.split(sides, list(mask.shape))]
    if not len(found[0]):
        return None
    i, j, k = (slice(int(where[0]), int(where[-1]) + 1) for where in found)
    return i, j, k


def _needed(axis: LinearAxis, target: slice, origin: int = 0) -> slice:
    """What the target depends on, counted from ``origin``."""
    return slice(int(axis.lower[target.start]) - origin, int(axis.upper[target.stop - 1]) + 1 - origin)


def _row(values: Tensor, axis: LinearAxis, target: int, origin: int) -> Tensor:
    """What `_blend` gives for one plane of the first dimension, without copies of its neighbours."""
    lower, share = int(axis.lower[target]) - origin, float(axis.share[target])
    first = values[lower : lower + 1]
    return first if share == 0 else torch.lerp(first, values[lower + 1 : lower + 2], share)


def _blend(values: Tensor, axis: LinearAxis, target: slice, *, dim: int, origin: int = 0) -> Tensor:
    """Interpolate along one dimension, whose first entry is voxel ``origin`` of the old axis."""
    lower, share = axis.lower[target] - origin, axis.share[target]
    if not share.any() and np.array_equal(lower, np.arange(lower[0], lower[0] + len(lower))):
        return values.narrow(dim, int(lower[0]), len(lower))
    first, second, weight = (
        uploaded(numbers, values.device) for numbers in (lower, axis.upper[target] - origin, share)
    )
    weight = weight.view([-1 if place == dim else 1 for place in range(3)])
    return torch.lerp(values.index_select(dim, first), values.index_select(dim, second), weight)
