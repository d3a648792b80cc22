"""Surfaces made of small faces with an area: deepmind's definition, which the Decathlon and FLARE score by.

A surface element sits at each corner shared by voxels inside and outside of a mask; its area is that of the marching
cubes triangles there. Distances go from element to element and every measure weighs them by area, so thin slices do
not count more than thick ones.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Bool, Float64, Num

from medseg.metrics.surface import Surfaces, require_surfaces, ways_mm
from medseg.space.distance import Steps, edges_mm


def element_distances(
    prediction: Bool[np.ndarray, "*space"],
    reference: Bool[np.ndarray, "*reference_space"],
    *,
    spacing_mm: Steps,
    workers: int = 1,
) -> Surfaces:
    """Measure each surface element's way to the other mask's surface, and its area.

    Arguments and errors are those of `medseg.metrics.surface.surface_distances`; two or three axes at right angles.

    Example:
        >>> one = np.zeros((4, 4), dtype=bool)
        >>> one[1:3, 1:3] = True
        >>> surfaces = element_distances(one, one, spacing_mm=(1.0, 1.0))
        >>> surfaces.prediction_to_reference_mm.tolist(), round(float(surfaces.prediction_area.sum()), 3)
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 6.828)

    References:
        Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy",
        arXiv:1809.04430; https://github.com/google-deepmind/surface-distance.
    """
    require_surfaces(prediction, reference, spacing_mm)
    from monai.metrics.utils import get_code_to_measure_table  # only here: importing MONAI takes a second

    if np.ndim(spacing_mm) != 1:
        raise ValueError("the areas of surface elements are known for square voxels only; measure between voxels")
    table, kernel = (part.numpy() for part in get_code_to_measure_table(edges_mm(spacing_mm)))
    bits = kernel.reshape((2,) * prediction.ndim)
    mine, true = _codes(prediction, bits), _codes(reference, bits)
    full = int(bits.sum())
    predicted, referenced = ((codes != 0) & (codes != full) for codes in (mine, true))
    return Surfaces(
        ways_mm(predicted, referenced, spacing_mm, workers),
        ways_mm(referenced, predicted, spacing_mm, workers),
        _areas(table, mine[predicted]),
        _areas(table, true[referenced]),
    )


def _codes(mask: Bool[np.ndarray, "*space"], bits: Num[np.ndarray, "*two"]) -> Num[np.ndarray, "*corners"]:
    """Number each corner between voxels by which of its neighbours are inside."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for offset in product((0, 1), repeat=mask.ndim):
        corner = tuple(slice(step, step + size) for step, size in zip(offset, codes.shape, strict=True))
        codes += padded[corner] * np.uint8(bits[offset])
    return codes


def _areas(table: Num[np.ndarray, " codes"], codes: Num[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    areas: np.ndarray = table.astype(np.float64)[codes]
    return areas
