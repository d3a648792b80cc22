"""Whole volumes the plain way, all at once: what the slabs of prediction are held against."""

import numpy as np
import torch

from medseg.patches.stitch import stitched_slabs
from medseg.plan.grid import kept_box
from medseg.space.resample import resample_image, resample_labels


def sliding_window(image, patch_size, predict, **options):
    """All slabs of a volume ``(1, m, i, j, k)`` in one tensor ``(1, c, i, j, k)``."""
    return torch.cat([slab.clone() for _, slab in stitched_slabs(image, patch_size, predict, **options)], 1)[None]


def from_plan_grid(labels, change):
    """Labels on the plan's grid brought back onto the grid of the file; 0 outside the box that was kept."""
    out = np.zeros(change.source_shape, dtype=labels.dtype)
    kept_box(out, change)[...] = resample_labels(labels, change.size, through_plane=change.through_plane_back)
    return out


def probabilities_from_plan_grid(probabilities, change):
    """The same for probabilities ``(c, i, j, k)``, interpolated linearly."""
    out = np.zeros((len(probabilities), *change.source_shape), dtype=np.float32)
    moved = resample_image(probabilities, change.size, order=1, through_plane=change.through_plane_back)
    for target, one in zip(out, moved, strict=True):
        kept_box(target, change)[...] = one
    return out
