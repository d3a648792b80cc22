"""Every metric of every organ of one case, cropped to the organ and threaded over organs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medseg.errors import listed
from medseg.metrics.empty import Outcome, image_diagonal_mm
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.metrics.overlap import Organs, as_labels, checked_values
from medseg.metrics.table import ELEMENTS, OrganPair, rows
from medseg.space.distance import Box, Steps, bounding_box, edges_mm
from medseg.space.labels import boxes_of, integer_type


@dataclass(frozen=True)
class OrganScores:
    """The metrics of one organ in one case; each can be read by its name, as in ``scores.hd95_mm``."""

    outcome: Outcome
    values: Mapping[str, float]

    def __getattr__(self, name: str) -> float:
        """The number of a metric."""
        values: Mapping[str, float] = self.__dict__.get("values", {})
        if name in values:
            return values[name]
        raise AttributeError(name)


def score_case(
    prediction: ArrayLike,
    reference: ArrayLike,
    organs: Organs,
    *,
    spacing_mm: Steps,
    tolerance_mm: float | Mapping[str, float] = DEFAULT_TOLERANCE_MM,
    element: str = "voxels",
    ignore: int | None = None,
    workers: int = 1,
) -> dict[str, OrganScores]:
    """Score every organ of one case by every metric of the table.

    No one-hot volume is made: each organ is cut out of the label maps by its own box, so beside the two volumes the
    memory is that of the organs in work.

    Args:
        prediction: Label values (whole numbers of any type), or one mask (bool) per organ in the order of ``organs``;
            an array or a tensor.
        reference: Label values in the same vocabulary, or one mask per organ.
        organs: Organ name -> value or values; 0, the background, may be one.
        spacing_mm: Edges of a voxel, or the matrix (mm, axes) of the steps of a sheared grid; one slice counts as 2D.
        tolerance_mm: Tolerance of the surface Dice, one for all or by name (others have the default, 2 mm).
        element: ``voxels`` measures surfaces as MONAI does, ``areas`` as deepmind's surface-distance does.
        ignore: Reference value of voxels that count for nothing; they are outside of both masks.
        workers: Threads, shared out over the organs.

    Raises:
        ValueError: Shapes, types, values, number of masks or spacing do not fit, or a tolerance names no organ.

    Example:
        >>> labels = np.zeros((4, 4, 4), dtype=np.uint8)
        >>> labels[1:3] = 1
        >>> scores = score_case(labels, labels, {"liver": 1}, spacing_mm=(5.0, 5.0, 5.0))["liver"]
        >>> scores.dice, scores.hd95_mm, scores.volume_ml
        (1.0, 0.0, 4.0)
    """
    mine, true = as_labels(prediction, "prediction"), as_labels(reference, "reference")
    space = _space_of(mine, true, organs, spacing_mm)
    if element not in ELEMENTS:
        raise ValueError(f"element is one of {', '.join(ELEMENTS)}, got {element!r}")
    tolerances = _tolerances_of(tolerance_mm, organs)
    if ignore is not None:
        mine, true = _without(mine, true, organs, ignore)
    if min(mine.min(), true.min()) < 0:
        raise ValueError("expected label values of 0 or more, got a negative one; name it with ignore= or remap it")
    boxes = zip(_boxes(mine, organs), _boxes(true, organs), strict=True)
    diagonal_mm = image_diagonal_mm(space, edges_mm(spacing_mm))

    def score(index: int, name: str, box: Box | None) -> OrganScores:
        box = (slice(0, 0),) * len(space) if box is None else box
        found, there = (_cut(part, index, checked_values(organs[name]), box) for part in (mine, true))
        pair = OrganPair(found, there, spacing_mm, diagonal_mm, element, _flat_axis(space))
        values = {row.name: row.value(pair, {"tolerance_mm": tolerances[name]}) for row in rows().values()}
        return OrganScores(pair.counts.outcome, values)

    with ThreadPoolExecutor(max_workers=max(1, workers)) as threads:
        numbered = enumerate(zip(organs, boxes, strict=True))
        jobs = [threads.submit(score, index, name, _union(*both)) for index, (name, both) in numbered]
        return {name: job.result() for name, job in zip(organs, jobs, strict=True)}


def _without(
    prediction: np.ndarray, reference: np.ndarray, organs: Organs, ignore: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take ignored voxels out of every organ, the background too: they get a value that none has."""
    if reference.dtype == bool:
        raise ValueError(f"the reference is masks, in which no voxel has the value {ignore}; leave ignore out")
    ignored = reference == ignore
    declared = (value for values in organs.values() for value in checked_values(values))
    nowhere = np.array([1 + max(*declared, int(prediction.max()), int(reference.max()))])
    other = nowhere.astype(integer_type(nowhere))[0]
    kept = prediction & ~ignored if prediction.dtype == bool else np.where(ignored, other, prediction)
    return kept, np.where(ignored, other, reference)


def _flat_axis(space: tuple[int, ...]) -> int | None:
    """The axis of an image of one slice: its organs end at their outlines, not at every voxel of it."""
    return space.index(1) if len(space) == 3 and space.count(1) == 1 else None


def _space_of(prediction: np.ndarray, reference: np.ndarray, organs: Organs, spacing_mm: Steps) -> tuple[int, ...]:
    spaces = []
    for role, array in (("prediction", prediction), ("reference", reference)):
        if array.dtype == bool and len(array) != len(organs):
            raise ValueError(
                f"expected {len(organs)} {role} masks, one per organ, got {len(array)}; give one per organ"
            )
        spaces.append(array.shape[1:] if array.dtype == bool else array.shape)
    edges = edges_mm(spacing_mm)
    if spaces[0] != spaces[1] or len(spaces[1]) != len(edges):
        raise ValueError(
            f"expected a prediction of shape {spaces[1]} like the reference and a spacing per axis, got {spaces[0]} "
            f"and {len(edges)} spacings; resample the prediction to the reference"
        )
    if 0 in spaces[1]:
        raise ValueError(f"expected a volume with voxels, got one of shape {spaces[1]}")
    if not all(0 < edge < math.inf for edge in edges):
        raise ValueError(f"expected a spacing of lengths in mm, got {', '.join(f'{edge:g}' for edge in edges)}")
    return tuple(spaces[1])


def _tolerances_of(tolerance_mm: float | Mapping[str, float], organs: Organs) -> dict[str, float]:
    if not isinstance(tolerance_mm, Mapping):
        tolerance_mm = dict.fromkeys(organs, tolerance_mm)
    for length in tolerance_mm.values():
        if not 0 <= length < math.inf:
            raise ValueError(f"a tolerance of {length:g} mm is no length; give 0 or more")
    unknown = [name for name in tolerance_mm if name not in organs]
    if unknown:
        raise ValueError(f"expected tolerances for {listed(organs)}, got one for {listed(unknown)}; correct the name")
    return {name: float(tolerance_mm.get(name, DEFAULT_TOLERANCE_MM)) for name in organs}


def _boxes(labels: np.ndarray, organs: Organs) -> Iterator[Box | None]:
    """Yield the box around each organ, None where it has no voxel; one pass over a label map serves all organs."""
    if labels.dtype == bool:
        for mask in labels:
            yield bounding_box(mask)
        return
    found = boxes_of(labels, {value for values in organs.values() for value in checked_values(values)})
    for values in organs.values():
        box: Box | None = bounding_box(labels == 0) if 0 in checked_values(values) else None
        for value in checked_values(values):
            box = _union(box, found.get(value))
        yield box


def _union(one: Box | None, other: Box | None) -> Box | None:
    if one is None or other is None:
        return one or other
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _cut(labels: np.ndarray, index: int, values: tuple[int, ...], box: Box) -> np.ndarray:
    if labels.dtype == bool:
        mask: np.ndarray = labels[index][box]
        return mask
    inside = labels[box]
    organ: np.ndarray = inside == values[0] if len(values) == 1 else np.isin(inside, values)
    return organ
