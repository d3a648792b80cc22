"""Linear interpolation along one axis, as pairs of neighbours, for volumes that arrive in slabs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LinearAxis:
    """For each voxel of the new axis its two neighbours on the old one, and the share of the second.

    Both neighbours ascend, so what depends on a stretch of the old axis is a stretch of the new one.

    Attributes:
        lower: First neighbour.
        upper: Second neighbour, the same where there is only one.
        share: Of the second, in [0, 1].
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    share: NDArray[np.float32]

    def ready(self, end: int) -> int:
        """How many new voxels depend on nothing from ``end`` on."""
        return int(np.searchsorted(self.upper, end))

    def touched(self, first: int, end: int) -> slice:
        """The new voxels that depend on old ones in [first, end).

        Example:
            >>> linear_axis(4, 8).touched(1, 2)
            slice(1, 5, None)
        """
        return slice(int(np.searchsorted(self.upper, first)), int(np.searchsorted(self.lower, end)))


def linear_axis(count_in: int, count_out: int, *, nearest: bool = False) -> LinearAxis:
    """The neighbours by the half-pixel convention of `medseg.space.resample`, the edge value going on outside.

    Args:
        count_in: Voxels of the old axis.
        count_out: Voxels of the new one, over the same extent.
        nearest: Copy the nearest voxel instead of blending two.

    Example:
        >>> axis = linear_axis(2, 4)
        >>> axis.lower.tolist(), axis.upper.tolist(), axis.share.tolist()
        ([0, 0, 0, 1], [0, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    centres = (np.arange(count_out, dtype=np.float64) + 0.5) * (count_in / count_out) - 0.5
    if nearest:
        lower = np.floor(centres + 0.5).astype(np.int64).clip(0, count_in - 1)
        return LinearAxis(lower, lower, np.zeros(count_out, dtype=np.float32))
    centres = centres.clip(0, count_in - 1)
    lower = np.floor(centres).astype(np.int64)
    share = (centres - lower).astype(np.float32)
    return LinearAxis(lower, np.where(share > 0, np.minimum(lower + 1, count_in - 1), lower), share)
