"""Distances between two surfaces in millimetres: Hausdorff, its 95th percentile, their mean, and surface Dice.

A surface is the set of voxels of a mask with a face neighbour outside it (the edge of the image counts as outside), at
the centres of those voxels: MONAI's definition and that of "Metrics reloaded" (Maier-Hein et al. 2024). deepmind's
`surface-distance` measures between the corners of voxels and weighs each by the area of its surface element, so its
values differ by up to a voxel diagonal; `medseg.metrics.elements` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial import cKDTree

from medseg.space.distance import Steps, edges_mm, places_mm, surface


@dataclass(frozen=True)
class Surfaces:
    """The distances of two surfaces from each other, from which every measure is read.

    Attributes:
        prediction_to_reference_mm: For each surface voxel of the prediction, the way to the reference's surface.
        reference_to_prediction_mm: For each surface voxel of the reference, the way to the prediction's surface.
        prediction_area: What each place of the prediction weighs; None where all weigh the same.
        reference_area: The same of the reference.
    """

    prediction_to_reference_mm: Float64[np.ndarray, " p"]
    reference_to_prediction_mm: Float64[np.ndarray, " r"]
    prediction_area: Float64[np.ndarray, " p"] | None = None
    reference_area: Float64[np.ndarray, " r"] | None = None

    @property
    def sides(self) -> tuple[tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]], ...]:
        """Distances and weights of the prediction, then of the reference."""
        pairs = (
            (self.prediction_to_reference_mm, self.prediction_area),
            (self.reference_to_prediction_mm, self.reference_area),
        )
        return tuple((ways, np.ones_like(ways) if area is None else area) for ways, area in pairs)


def surface_distances(
    prediction: Bool[np.ndarray, "*space"],
    reference: Bool[np.ndarray, "*reference_space"],
    *,
    spacing_mm: Steps,
    workers: int = 1,
) -> Surfaces:
    """Measure each surface voxel's way to the other mask's surface.

    Exact Euclidean distances from a k-d tree over the other surface. Voxels that both surfaces share are 0 apart and
    never asked for, so the better the prediction, the less there is to do; nothing is stored per voxel of the volume.

    Args:
        prediction: A mask with at least one voxel.
        reference: A mask of the same shape with at least one voxel.
        spacing_mm: Distance between voxel centres along each axis, or the matrix of the steps of a sheared grid.
        workers: Threads that search the tree.

    Raises:
        ValueError: The shapes differ, or a mask is empty (`medseg.metrics.empty` decides those cases).

    Example:
        >>> one, other = np.zeros((2, 8), dtype=bool)
        >>> one[2], other[5] = True, True
        >>> surface_distances(one, other, spacing_mm=[0.5]).prediction_to_reference_mm
        array([1.5])
    """
    require_surfaces(prediction, reference, spacing_mm)
    predicted, true = surface(prediction), surface(reference)
    return Surfaces(
        ways_mm(predicted, true, spacing_mm, workers),
        ways_mm(true, predicted, spacing_mm, workers),
    )


def hausdorff_mm(surfaces: Surfaces, *, percentile: float = 100.0) -> float:
    r"""The larger of the two directed percentiles of surface distances, in mm.

    $\max\bigl(P_q\, d(\partial P, \partial R),\; P_q\, d(\partial R, \partial P)\bigr)$; $q = 100$ is the Hausdorff
    distance, $q = 95$ the usual HD95. As MONAI and deepmind do, the percentile is taken per direction, not over the
    pooled distances. It is interpolated linearly as MONAI's; with areas it is deepmind's, the distance at which that
    share of the area is reached.

    Example:
        >>> hausdorff_mm(Surfaces(np.array([0.0, 1.0]), np.array([0.0, 4.0])))
        4.0

    References:
        Huttenlocher et al., "Comparing images using the Hausdorff distance", TPAMI 1993.
    """
    if surfaces.prediction_area is None:
        return max(float(np.percentile(ways, percentile)) for ways, _ in surfaces.sides)
    return max(_weighted_percentile(ways, area, percentile) for ways, area in surfaces.sides)


def average_distance_mm(surfaces: Surfaces) -> float:
    r"""The average symmetric surface distance (ASSD): the mean over the voxels of both surfaces, in mm.

    Example:
        >>> average_distance_mm(Surfaces(np.array([0.0, 1.0]), np.array([2.0])))
        1.0

    References:
        Heimann et al., "Comparison and evaluation of methods for liver segmentation from CT datasets", TMI 2009.
    """
    return float(sum((ways * area).sum() for ways, area in surfaces.sides) / sum(a.sum() for _, a in surfaces.sides))


def surface_dice(surfaces: Surfaces, *, tolerance_mm: float) -> float:
    r"""The normalised surface Dice (NSD): the share of both surfaces that lies within a tolerance of the other.

    Surface voxels count equally, as in MONAI's `SurfaceDiceMetric`, surface elements by their area, as deepmind's. A
    distance equal to the tolerance is within it, rounding (1e-6 mm) forgiven.

    Example:
        >>> surface_dice(Surfaces(np.array([0.0, 1.0]), np.array([0.5, 4.0])), tolerance_mm=1.0)
        0.75

    References:
        Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy",
        arXiv:1809.04430.
    """
    within = sum(area[ways <= tolerance_mm + 1e-6].sum() for ways, area in surfaces.sides)
    return float(within / sum(area.sum() for _, area in surfaces.sides))


def require_surfaces(
    prediction: Bool[np.ndarray, "*space"], reference: Bool[np.ndarray, "*reference_space"], spacing_mm: Steps
) -> None:
    """Refuse masks between whose surfaces there is no distance.

    Raises:
        ValueError: The shapes differ, or a mask is empty.
    """
    if prediction.shape != reference.shape or prediction.ndim != len(edges_mm(spacing_mm)):
        raise ValueError(
            f"expected two masks of one shape and a spacing per axis, got {prediction.shape}, {reference.shape} "
            f"and {len(edges_mm(spacing_mm))} spacings; resample the prediction to the reference"
        )
    if not (prediction.any() and reference.any()):
        raise ValueError("expected two masks with voxels, got an empty one; score it with medseg.metrics.empty")


def _weighted_percentile(ways: Float64[np.ndarray, " n"], area: Float64[np.ndarray, " n"], percentile: float) -> float:
    order = np.argsort(ways)
    reached = np.cumsum(area[order]) / area.sum()
    at = min(int(np.searchsorted(reached, percentile / 100.0)), ways.size - 1)
    return float(ways[order[at]])


def ways_mm(
    start: Bool[np.ndarray, "*space"], goal: Bool[np.ndarray, "*space"], spacing_mm: Steps, workers: int
) -> Float64[np.ndarray, " n"]:
    """Measure from each marked place of one grid to the nearest of another on the same grid."""
    shared = goal[start]
    ways = np.zeros(shared.size)
    apart = np.argwhere(start)[~shared]
    if apart.size:
        tree = cKDTree(places_mm(np.argwhere(goal), spacing_mm), compact_nodes=False, balanced_tree=False)
        ways[~shared] = tree.query(places_mm(apart, spacing_mm), workers=workers)[0]
    return ways
