"""A volume: voxels with the affine that places them in the scanner's millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

ROUNDING_DEGREES = 0.1
"""Edges this far from a right angle are square, and the header's numbers rounded."""


def spacing_of(affine: Affine) -> Spacing:
    """Edge lengths of a voxel in mm: the column norms of the affine, exact for oblique grids too."""
    i, j, k = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return i, j, k


def shear_degrees(affine: Affine) -> float:
    """How far the edges of a voxel are from meeting at right angles, at most.

    Example:
        >>> tilted = np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> round(shear_degrees(tilted), 6), shear_degrees(np.eye(4))
        (45.0, 0.0)
    """
    edges = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arcsin(np.abs(edges.T @ edges - np.eye(3)).max().clip(0, 1))))


def orientation_of(affine: Affine) -> str:
    """The anatomical direction each array axis grows towards, such as ``"RAS"`` or ``"LPS"``.

    Example:
        >>> orientation_of(np.diag([-1.0, -1.0, 1.0, 1.0]))
        'LPS'
    """
    return "".join(str(code) for code in nib.aff2axcodes(affine))


STORED = frozenset("ijk")


def turn_to(codes: str, affine: Affine) -> NDArray[np.float64]:
    """Where each axis of a file goes and in which direction, as nibabel writes it.

    Args:
        codes: Anatomical, such as ``"RAS"``; or the letters of the file's own axes, such as ``"kji"``: as they are
            stored, in this order and none of them flipped.
        affine: Of the file.

    Example:
        >>> turn_to("kji", np.eye(4)).tolist(), turn_to("LAS", np.eye(4)).tolist()
        ([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 1.0], [2.0, 1.0]])
    """
    if set(codes) == STORED:
        return np.array([[codes.index(axis), 1.0] for axis in "ijk"])
    turn: NDArray[np.float64] = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    return turn


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and their place in space.

    Attributes:
        array: ``(c, i, j, k)``, a channel per modality; label volumes have one channel.
        affine: ``(4, 4)``, voxel indices to mm in RAS+ world coordinates, as NIfTI defines it.
    """

    array: NDArray[Any]
    affine: Affine

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.affine.shape != (4, 4):
            raise ValueError(
                f"expected an array (c, i, j, k) and an affine (4, 4), got {self.array.shape} and {self.affine.shape}"
            )

    @property
    def shape(self) -> Shape:
        """Voxels along i, j and k."""
        i, j, k = self.array.shape[1:]
        return i, j, k

    @property
    def spacing_mm(self) -> Spacing:
        """Edge lengths of a voxel."""
        return spacing_of(self.affine)

    @property
    def sheared(self) -> bool:
        """Whether the edges of a voxel meet at angles that are not right by more than rounding."""
        return shear_degrees(self.affine) > ROUNDING_DEGREES

    @property
    def steps_mm(self) -> Spacing | Affine:
        """As `medseg.space.distance.Steps`: the edges or, under shear, the matrix of the steps."""
        return self.affine[:3, :3] if self.sheared else self.spacing_mm

    @property
    def orientation(self) -> str:
        """Axis codes, such as ``"RAS"``."""
        return orientation_of(self.affine)

    def reoriented(self, codes: str) -> Volume:
        """The same voxels with axes permuted and flipped as `turn_to` says; nothing is interpolated.

        Example:
            >>> lps = Volume(np.arange(8.0).reshape(1, 2, 2, 2), np.diag([-1.0, -1.0, 1.0, 1.0]))
            >>> lps.reoriented("RAS").reoriented("LPS").array.tolist() == lps.array.tolist()
            True
        """
        if codes == self.orientation:
            return self
        transform = turn_to(codes, self.affine)
        channels = [nib.orientations.apply_orientation(channel, transform) for channel in self.array]
        affine = self.affine @ nib.orientations.inv_ornt_aff(transform, self.shape)
        return Volume(np.stack(channels), affine)


ROUNDING_VOXELS = 0.05
"""How far apart two affines may put a corner and still be one affine, written with rounding.

Four decimals of a spacing of 0.7 mm come to 0.04 of a voxel over 512 voxels, float32 and five decimals to a tenth of
that. What is further away is a shift, such as half a voxel of programs that count from corners, not from centres.
"""


def same_place(a: Affine, b: Affine, shape: Shape) -> bool:
    """Whether two affines put every corner of a grid at the same spot, but for rounding."""
    return distance_in_voxels(a, b, shape) <= ROUNDING_VOXELS


def distance_in_voxels(a: Affine, b: Affine, shape: Shape) -> float:
    """How far apart two affines put the corners of a grid, as a fraction of the shortest edge of a voxel.

    Comparing corners rather than matrix entries makes it mean the same for every spacing.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    displacement_mm = np.abs((a - b) @ homogeneous)[:3].max()
    return float(displacement_mm / min(spacing_of(a)))
