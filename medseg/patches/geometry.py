"""What augmentation must know about the grid of a patch."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.plan.plan import Plan
from medseg.space.volume import Shape, Spacing

ANISOTROPY = 3.0
"""nnU-Net's threshold: beyond it, planes are too far apart to be turned out of."""


@dataclass(frozen=True)
class Geometry:
    """What augmentation must know about the grid.

    Attributes:
        patch_size: Voxels of a patch that the network sees.
        spacing_mm: Edge lengths of a voxel; rotations happen in millimetres.
        mirror_axes: Axes that may be flipped.
        swap_labels: Pairs of label indices that a flip of axis 0 (left/right) exchanges.
    """

    patch_size: Shape
    spacing_mm: Spacing
    mirror_axes: tuple[int, ...] = ()
    swap_labels: tuple[tuple[int, int], ...] = ()

    @property
    def through_plane(self) -> int | None:
        """The axis across the planes of an anisotropic grid or of pictures, None when voxels are nearly cubes."""
        if 1 in self.patch_size:
            return self.patch_size.index(1)
        largest = max(self.spacing_mm)
        return self.spacing_mm.index(largest) if largest > ANISOTROPY * min(self.spacing_mm) else None


def geometry_of(plan: Plan, patch_size: Shape | None = None) -> Geometry:
    """What a plan says about the grid, with another patch size if given.

    Raises:
        ValueError: Labels are to be swapped although organs overlap.
    """
    if plan.swap_labels and not plan.exclusive:
        raise ValueError(
            "swap_labels exchanges whole organs and cannot split overlapping ones; "
            "empty it in the plan and leave axis 0 out of mirror_axes"
        )
    index = {name: number for number, name in enumerate(plan.organs, start=1)}
    swaps = tuple((index[left], index[right]) for left, right in plan.swap_labels)
    return Geometry(patch_size or plan.patch_size, plan.spacing_mm, plan.mirror_axes, swaps)
