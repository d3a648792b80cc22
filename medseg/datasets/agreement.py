"""Cases whose grid is so unlike the others' that a header is wrong, or may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from medseg.space.nifti import Header
from medseg.space.resample import is_absurd, resampled_shape
from medseg.space.volume import Shape, Spacing, Volume

FAR = 4.0
"""An edge of a voxel this many times longer or shorter than that of the median case is worth a remark."""

IMPOSSIBLE = 100.0
"""And this many times, it is a mistake."""


@dataclass(frozen=True)
class Odd:
    """How a case differs from the others, as the end of a sentence, what to do, and whether it cannot be so."""

    problem: str
    remedy: str
    impossible: bool


def odd_cases(headers: Mapping[str, Header]) -> dict[str, Odd]:
    """Name the cases whose spacing or unit is far from the others'.

    Args:
        headers: Case -> header of its first image.
    """
    if len(headers) < 2:
        return {}
    turned = {name: _turned(header) for name, header in headers.items()}
    typical = np.median([spacing for _, spacing in turned.values()], axis=0)
    sizes = np.median([sorted(spacing) for _, spacing in turned.values()], axis=0)
    common = Counter(header.unit for header in headers.values()).most_common(1)[0][0]
    found = {}
    for name, header in headers.items():
        shape, spacing = turned[name]
        ratio = np.array(sorted(spacing)) / sizes
        far = float(np.maximum(ratio, 1 / ratio).max())
        if far < FAR and header.unit == common:
            continue
        problem = f"has voxels of {_edges(spacing)} mm, those of the other cases have about {_edges(typical)} mm"
        if header.unit != common:
            problem += f": its header counts in {header.unit}, those of the others in {common}"
        impossible = far >= IMPOSSIBLE or is_absurd(shape, resampled_shape(shape, spacing, typical.tolist()))
        found[name] = Odd(problem, "Correct the spacing or its unit (xyzt_units), unless it is so", impossible)
    return found


def _turned(header: Header) -> tuple[Shape, Spacing]:
    """Shape and spacing along the axes of the body."""
    volume = Volume(np.broadcast_to(np.uint8(0), (1, *header.shape)), header.affine).reoriented("RAS")
    return volume.shape, volume.spacing_mm


def _edges(lengths: Iterable[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)
