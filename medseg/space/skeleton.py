"""Centre lines of one binary volume, and the tubes around them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from medseg.space.components import connected_components
from medseg.space.distance import bounding_box, euclidean_distance


def skeleton(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """Thin a mask to its centre lines, one voxel wide, without changing how its parts hang together.

    Zhang and Suen's thinning in 2D, Lee, Kashyap and Chu's in 3D, on the bounding box; the interpreter is free
    meanwhile. Thinning in 3D can wear a part away altogether (a cube of even side, a lump at the edge of the volume);
    such a part keeps its deepest voxel, so that no structure goes without a line.

    Args:
        mask: Two or three axes.

    Returns:
        The centre lines, the shape of the mask.

    Example:
        >>> int(skeleton(np.ones((3, 9), dtype=bool)).sum(axis=0).max())
        1
    """
    from skimage.morphology import skeletonize  # half a second of import that most runs never need

    lines = np.zeros_like(mask)
    box = bounding_box(mask)
    if box is not None:
        lines[box] = skeletonize(mask[box]).astype(bool)
        numbered, count = connected_components(mask[box])
        worn_away = np.setdiff1d(np.arange(1, count + 1), numbered[lines[box]])
        if worn_away.size:
            depth = euclidean_distance(np.pad(~mask[box], 1, constant_values=True))[(slice(1, -1),) * mask.ndim]
            lines[box][tuple(np.transpose(ndimage.maximum_position(depth, numbered, worn_away)))] = True
    return lines


def skeleton_tube(mask: Bool[np.ndarray, "*space"], *, dilations: int = 2) -> Bool[np.ndarray, "*space"]:
    """Thicken the centre lines of a mask by a few voxels over their faces; the tube may leave the mask.

    Args:
        mask: Two or three axes.
        dilations: Steps of one voxel.

    Returns:
        The tube, the shape of the mask.

    Example:
        >>> line = np.zeros((5, 7), dtype=bool)
        >>> line[2, 3] = True
        >>> int(skeleton_tube(line, dilations=1).sum())
        5
    """
    tube = skeleton(mask)
    box = bounding_box(tube, margin=dilations)
    if box is not None and dilations:
        tube[box] = ndimage.binary_dilation(tube[box], iterations=dilations)
    return tube
