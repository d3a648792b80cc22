"""Connected components of one binary volume: the blobs, lesions or cells that a mask is made of."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32
from scipy import ndimage

from medseg.space.distance import bounding_box


def connected_components(
    mask: Bool[np.ndarray, "*space"], connectivity: int | None = None
) -> tuple[Int32[np.ndarray, "*space"], int]:
    """Number the connected parts of a mask from 1 on, in the order in which a scan of the volume meets them.

    Only the bounding box is scanned; the interpreter is free meanwhile, so several volumes may be labelled from several
    threads.

    Args:
        mask: Two or three axes.
        connectivity: How many axes a step to a neighbour may move along: 1 joins voxels over faces, 2 over edges too,
            3 over corners too. None means all axes: 8 neighbours in 2D and 26 in 3D.

    Returns:
        The numbered volume (0 outside the mask) and the number of components.

    Raises:
        ValueError: If the connectivity is not between 1 and the number of axes.

    Example:
        >>> diagonal = np.eye(2, dtype=bool)
        >>> connected_components(diagonal)[1], connected_components(diagonal, connectivity=1)[1]
        (1, 2)
    """
    steps = mask.ndim if connectivity is None else connectivity
    if not 1 <= steps <= mask.ndim:
        raise ValueError(f"connectivity must be between 1 and {mask.ndim} (the number of axes) or None, got {steps}")
    numbered = np.zeros(mask.shape, dtype=np.int32)
    box = bounding_box(mask)
    if box is None:
        return numbered, 0
    structure = ndimage.generate_binary_structure(mask.ndim, steps)
    numbered[box], count = ndimage.label(mask[box], structure, output=np.int32)
    return numbered, int(count)
