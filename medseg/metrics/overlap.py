"""Overlap of two masks from three counted numbers, and the Dice they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer, Real
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medseg.errors import listed
from medseg.metrics.empty import Outcome, outcome
from medseg.space.labels import LabelValue, values_of

Organs = Mapping[str, int | tuple[int, ...]]
"""Organ name -> its label value, or the values whose union it is (overlapping regions)."""

_CHUNK_VOXELS = 1 << 22  # bounds the int64 copies that bincount needs to 32 MiB, whatever the volume
_TABLE = 1 << 12  # values below it are looked up in a table, larger ones searched


@dataclass(frozen=True)
class Counts:
    """Hard counts of one organ in one case.

    Attributes:
        tp: Voxels that prediction and reference both give to the organ.
        fp: Voxels that only the prediction gives to it.
        fn: Voxels that only the reference gives to it.
    """

    tp: int
    fp: int
    fn: int

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def reference(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    @property
    def outcome(self) -> Outcome:
        """Found, missed, false or absent."""
        return outcome(self.predicted, self.reference, self.tp)


def dice(counts: Counts) -> float:
    r"""Twice the overlap over the sum of sizes: $2 TP / (2 TP + FP + FN)$.

    An organ missing on one side scores 0, on both sides 1 (see `medseg.metrics.empty`).

    Example:
        >>> dice(Counts(tp=3, fp=1, fn=1))
        0.75

    References:
        Dice, "Measures of the amount of ecologic association between species", Ecology 1945.
    """
    if counts.outcome is not Outcome.FOUND:
        return float(counts.outcome is Outcome.ABSENT)
    return 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)


def checked_values(organ: LabelValue) -> tuple[int, ...]:
    """The label values of an organ, one or several.

    Raises:
        ValueError: One is no whole number of 0 or more.
    """
    values = values_of(organ)
    if not all(isinstance(value, int | np.integer) and value >= 0 for value in values):
        raise ValueError(f"the values of an organ are whole numbers of 0 or more, got {organ!r}")
    return values


_NO_LABELS = "expected the {role} as label values, which are whole numbers, or as masks of bool, got {dtype}; {remedy}"
_DECIDE = "take the argmax of probabilities, or compare them with a threshold"


def as_labels(labels: ArrayLike | Tensor, role: str) -> NDArray[Any]:
    """Label values or masks as an array of integers or bool, where whole numbers of another type are such values.

    Raises:
        ValueError: They are fractions or no numbers; ``role`` says whose.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind == "f" and (array % 1 == 0).all():
        array = array.astype(np.int64)
    if array.dtype == np.uint64 and array.max(initial=0) < 2**63:  # beside int64 NumPy takes it for floats
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu":
        raise ValueError(_NO_LABELS.format(role=role, dtype=array.dtype, remedy=_DECIDE))
    return array


def count_labels(
    prediction: Real[Tensor, "*space"],
    reference: Real[Tensor, "*reference_space"],
    organs: Organs,
    *,
    ignore: int | None = None,
) -> dict[str, Counts]:
    """Count every organ of two label maps in one pass, on their device; no voxel whose reference is ``ignore`` counts.

    The joint histogram of (prediction, reference) values is summed in chunks, so that regions which share values cost
    nothing extra and the memory does not grow with the organs.

    Raises:
        ValueError: The shapes differ, or a value is negative or a fraction.

    Example:
        >>> count_labels(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]), {"one": 1, "both": (1, 2)})
        {'one': Counts(tp=1, fp=0, fn=1), 'both': Counts(tp=3, fp=0, fn=0)}
    """
    _require_same_shape(tuple(prediction.shape), tuple(reference.shape))
    known = torch.tensor(
        sorted({value for values in organs.values() for value in checked_values(values)}, key=int), dtype=torch.int64
    )
    for role, labels in (("prediction", prediction), ("reference", reference)):
        if labels.is_floating_point() and not bool((labels % 1 == 0).all()):
            raise ValueError(_NO_LABELS.format(role=role, dtype=labels.dtype, remedy=_DECIDE))
    joint = _joint_histogram(prediction, reference, ignore, known)
    place = {value: index for index, value in enumerate(known.tolist())}
    return {
        name: _counts_of(joint, tuple(place[value] for value in checked_values(values)))
        for name, values in organs.items()
    }


def count_masks(
    prediction: Bool[Tensor, "c *space"],
    reference: Integer[Tensor, "*reference_space"],
    organs: Organs,
    *,
    ignore: int | None = None,
) -> dict[str, Counts]:
    """Count every organ of a stack of masks, one per organ, which may overlap, against a label map.

    Raises:
        ValueError: The number of masks or the shape does not fit.

    Example:
        >>> count_masks(torch.tensor([[True, True, False]]), torch.tensor([1, 0, 2]), {"either": (1, 2)})
        {'either': Counts(tp=1, fp=1, fn=1)}
    """
    if len(prediction) != len(organs):
        raise ValueError(f"expected {len(organs)} masks ({listed(organs)}), got {len(prediction)}; give one per organ")
    _require_same_shape(tuple(prediction.shape[1:]), tuple(reference.shape))
    counts = {}
    for mask, (name, values) in zip(prediction, organs.items(), strict=True):
        truth = torch.isin(reference, torch.tensor(checked_values(values), device=reference.device))
        if ignore is not None:
            mask = mask & (reference != ignore)
        tp = int((mask & truth).sum())
        counts[name] = Counts(tp, int(mask.sum()) - tp, int(truth.sum()) - tp)
    return counts


def _require_same_shape(prediction: tuple[int, ...], reference: tuple[int, ...]) -> None:
    if prediction != reference:
        raise ValueError(
            f"expected a prediction of shape {reference} like the reference, got {prediction}; resample it first"
        )


def _chunks(prediction: Tensor, reference: Tensor, ignore: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    flat_prediction, flat_reference = prediction.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_reference.numel(), _CHUNK_VOXELS):
        part_prediction = flat_prediction[start : start + _CHUNK_VOXELS].long()
        part_reference = flat_reference[start : start + _CHUNK_VOXELS].long()
        if ignore is not None:
            counted = part_reference != ignore
            part_prediction, part_reference = part_prediction[counted], part_reference[counted]
        if part_reference.numel():
            yield part_prediction, part_reference


def _joint_histogram(
    prediction: Tensor, reference: Tensor, ignore: int | None, known: Int64[Tensor, " values"]
) -> Int64[Tensor, "values_and_other values_and_other"]:
    """Voxels by the place of both their values among the known ones; the last row and column count all others."""
    size = len(known) + 1
    joint = torch.zeros(size * size, dtype=torch.int64)
    known = known.to(reference.device)
    for part_prediction, part_reference in _chunks(prediction, reference, ignore):
        if min(int(part_prediction.min()), int(part_reference.min())) < 0:
            raise ValueError("expected label values of 0 or more, got a negative one; name it with ignore= or remap it")
        pairs = _place_of(part_prediction, known) * size + _place_of(part_reference, known)
        joint += torch.bincount(pairs, minlength=size * size).cpu()
    return joint.reshape(size, size)


def _place_of(labels: Tensor, known: Int64[Tensor, " values"]) -> Tensor:
    """The place of each value among the known ones, their number for any other; by a table where that is small."""
    highest = int(labels.max())
    if highest < _TABLE:
        table = torch.full((_TABLE,), len(known), device=labels.device)
        small = known[known < _TABLE]
        table[small] = torch.arange(len(small), device=labels.device)
        return table[labels]
    place = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    return torch.where(known[place] == labels, place, len(known))


def _counts_of(joint: Int64[Tensor, "p r"], places: tuple[int, ...]) -> Counts:
    rows = list(places)
    tp = int(joint[rows][:, rows].sum())
    return Counts(tp, int(joint[rows].sum()) - tp, int(joint[:, rows].sum()) - tp)
