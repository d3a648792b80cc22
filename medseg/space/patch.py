"""Where a patch lies in a volume: one value for the sampler that cuts and the stitcher that glues."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.space.volume import Shape


@dataclass(frozen=True)
class PatchLocation:
    """A box of voxels.

    Attributes:
        corner: First voxel along each axis; may be negative where the patch reaches over the border.
        size: Voxels along each axis.
    """

    corner: Shape
    size: Shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into the three spatial axes; only for boxes inside the volume.

        Example:
            >>> PatchLocation((0, 1, 2), (4, 4, 4)).slices
            (slice(0, 4, None), slice(1, 5, None), slice(2, 6, None))
        """
        i, j, k = (slice(start, start + length) for start, length in zip(self.corner, self.size, strict=True))
        return i, j, k

    def inside(self, shape: Shape) -> tuple[PatchLocation, tuple[tuple[int, int], ...]]:
        """Clip to a volume and say how much padding, before and after each axis, gives the size back.

        Example:
            >>> PatchLocation((-1, 0, 3), (4, 4, 4)).inside((8, 8, 5))
            (PatchLocation(corner=(0, 0, 3), size=(3, 4, 2)), ((1, 0), (0, 0), (0, 2)))
        """
        starts = [min(max(0, c), n) for c, n in zip(self.corner, shape, strict=True)]
        stops = [max(min(n, c + s), a) for c, s, n, a in zip(self.corner, self.size, shape, starts, strict=True)]
        clipped = [b - a for a, b in zip(starts, stops, strict=True)]
        before = [min(a - c, s) for a, c, s in zip(starts, self.corner, self.size, strict=True)]
        padding = tuple((b, s - n - b) for b, s, n in zip(before, self.size, clipped, strict=True))
        return PatchLocation((starts[0], starts[1], starts[2]), (clipped[0], clipped[1], clipped[2])), padding
