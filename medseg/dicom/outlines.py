"""Masks of a slice as polygons and back, to the same voxels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from skimage.measure import find_contours

Polygon = Float[np.ndarray, "_ 2"]
"""Corners of a closed outline, in indices of the mask's two axes; the last joins the first."""


def outlines(mask: Bool[np.ndarray, "i j"]) -> list[Polygon]:
    """Outlines half way between the voxels inside and those outside; holes are joined to the outline around them.

    A hole joined by a bridge of no width stays a hole for a reader that adds contours and for one that takes them by
    turns (even-odd); an outline of its own inside another is filled by the first.

    Args:
        mask: A slice.

    Returns:
        One polygon per connected part (over edges, not corners). `filled` of them is the mask again.
    """
    rings = [ring[:-1] - 1 for ring in find_contours(np.pad(mask, 1).astype(np.float64), 0.5)]
    areas = [_signed_area(ring) for ring in rings]
    if not rings:
        return []
    outward = np.sign(areas[int(np.argmax(np.abs(areas)))])
    outer = [ring for ring, area in zip(rings, areas, strict=True) if area * outward > 0]
    for hole in (ring for ring, area in zip(rings, areas, strict=True) if area * outward < 0):
        around = [index for index, ring in enumerate(outer) if _inside(hole[0], ring)]
        index = min(around, key=lambda index: abs(_signed_area(outer[index])))
        outer[index] = _bridged(outer[index], hole)
    return outer


def filled(polygons: Iterable[Polygon], shape: tuple[int, int]) -> Bool[np.ndarray, "i j"]:
    """The voxels whose centres lie inside, by the even-odd rule over all polygons: what lies in a hole is outside.

    A centre on an outline counts to one side only, so that contours that touch share no voxel and leave none out.

    Args:
        polygons: In indices of the mask's two axes; parts beyond the mask are cut off.
        shape: Of the mask.
    """
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    edges = [np.hstack([polygon, np.roll(polygon, -1, axis=0)]) for polygon in polygons if len(polygon) > 2]
    if not edges:
        return np.zeros(shape, dtype=bool)
    x0, y0, x1, y1 = np.concatenate(edges).T
    first, end = (np.clip(np.ceil(pick(x0, x1)), 0, shape[0]).astype(np.int64) for pick in (np.minimum, np.maximum))
    spans = end - first  # lines of voxel centres that an edge crosses
    edge = np.repeat(np.arange(len(spans)), spans)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans)
    at = y0[edge] + (row - x0[edge]) * (y1[edge] - y0[edge]) / (x1[edge] - x0[edge])
    np.add.at(crossings, (row, np.clip(np.ceil(at), 0, shape[1]).astype(np.int64)), 1)
    return (np.cumsum(crossings, axis=1)[:, :-1] % 2).astype(bool)


def _signed_area(ring: Polygon) -> float:
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _inside(point: Float[np.ndarray, " 2"], ring: Polygon) -> bool:
    (x, y), following = point, np.roll(ring, -1, axis=0)
    spans = (ring[:, 0] <= x) != (following[:, 0] <= x)
    start, end = ring[spans], following[spans]
    at = start[:, 1] + (x - start[:, 0]) * (end[:, 1] - start[:, 1]) / (end[:, 0] - start[:, 0])
    return bool(np.count_nonzero(at > y) % 2)


def _bridged(ring: Polygon, hole: Polygon) -> Polygon:
    """Both as one polygon, joined where they are nearest by a line there and back."""
    distances = np.linalg.norm(ring[:, None] - hole[None], axis=2)
    here, there = np.unravel_index(int(np.argmin(distances)), distances.shape)
    around: Sequence[Polygon] = (
        ring[: here + 1],
        np.roll(hole, -int(there), axis=0),
        hole[there : there + 1],
        ring[here:],
    )
    return np.concatenate(around)
