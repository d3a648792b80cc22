"""What is measured of each case before datasets become one: voxels in short, intensities, where organs lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt64
from numpy.typing import NDArray

from medseg.datasets.case import Case, Dataset, read_case
from medseg.datasets.hounsfield import Spread, spread_of
from medseg.errors import DataError
from medseg.machine.crew import default_workers, run_tasks
from medseg.merge.choices import SetChoice
from medseg.merge.details import details
from medseg.space.distance import voxel_size
from medseg.space.labels import boxes_of, values_of
from medseg.space.reading import read_header
from medseg.space.volume import Spacing, Volume

GRID = 12
"""Cells along each axis of the coarse copy by which a volume is known again however it is stored."""


@dataclass(frozen=True, eq=False)
class ChannelFacts:
    """One channel of a case.

    Attributes:
        digest: Of the decoded voxels in the order of the body's axes; empty where all are equal.
        coarse: Means over a grid of `GRID`³ cells, their own mean taken away, of length 1; zero where all are equal.
        details: See `medseg.merge.details.details`.
        spread: Of the intensities.
    """

    digest: str
    coarse: Float32[np.ndarray, " cells"]
    details: UInt64[np.ndarray, " details"]
    spread: Spread


@dataclass(frozen=True)
class OrganFacts:
    """One organ of a case: its volume, and how far to the right of the image's centre it lies."""

    ml: float
    right_mm: float


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one case contributes.

    Attributes:
        channels: In the order of its own set.
        spacing_mm: Along the axes of the body.
        extent_mm: Of the image, along the axes of the body.
        organs: By the name of its own set; only those that are there.
    """

    channels: tuple[ChannelFacts, ...]
    spacing_mm: Spacing
    extent_mm: Spacing
    organs: Mapping[str, OrganFacts]


@dataclass(frozen=True)
class Member:
    """A case of one of the sets.

    Attributes:
        id: In the merged dataset.
        set: The name of its set.
        case: As its set has it.
        test: Whether it is only to be predicted.
    """

    id: str
    set: str
    case: Case
    test: bool


def members_of(name: str, dataset: Dataset) -> list[Member]:
    """The cases of a set under the names that they have in the merged dataset."""
    lists = ((dataset.cases, False), (dataset.test, True))
    return [Member(f"{name}_{case.id}", name, case, test) for cases, test in lists for case in cases]


def measure(
    members: Mapping[str, Member], datasets: Mapping[str, Dataset], workers: int | None
) -> dict[str, CaseFacts]:
    """Read every case once, in parallel.

    Raises:
        DataError: Some cannot be read, or a label does not lie on its image; all are named.
    """
    bare = {name: replace(dataset, cases=(), test=()) for name, dataset in datasets.items()}
    tasks = {name: (member.case, bare[member.set]) for name, member in members.items()}
    count = workers or default_workers(max((_peak_bytes(*task) for task in tasks.values()), default=0))
    outcome = run_tasks(measure_case, tasks, workers=count, title="measuring")
    first = next(iter(members.values()))
    return outcome.or_raise(first.case.images[0].parent)


def measure_case(task: tuple[Case, Dataset]) -> CaseFacts:
    """Read one case.

    Raises:
        DataError: As `medseg.datasets.case.read_case`.
    """
    case, dataset = task
    image, labels = read_case(case, dataset)
    turned = image.reoriented("RAS")
    extent = np.multiply(turned.spacing_mm, turned.shape)
    return CaseFacts(
        channels=tuple(_channel(channel) for channel in turned.array),
        spacing_mm=turned.spacing_mm,
        extent_mm=(float(extent[0]), float(extent[1]), float(extent[2])),
        organs={} if labels is None else _organs(labels, dataset),
    )


def _channel(voxels: NDArray[np.float32]) -> ChannelFacts:
    spread = spread_of(voxels)
    if voxels.min() == voxels.max():
        return ChannelFacts("", np.zeros(GRID**3, np.float32), np.zeros(0, np.uint64), spread)
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return ChannelFacts(digest.hexdigest(), coarse(voxels), details(voxels), spread)


def coarse(voxels: Float[np.ndarray, "i j k"]) -> Float32[np.ndarray, " cells"]:
    """A volume's means over cells, freed of offset and scale: what files of one scan have in common.

    Example:
        >>> scan = np.random.default_rng(0).normal(size=(30, 31, 8))
        >>> round(float(coarse(scan) @ coarse(1024 - 3 * scan)), 3)
        -1.0
    """
    cells: NDArray[Any] = voxels
    for size in voxels.shape:  # each axis in turn becomes the last one
        ends = pairwise(np.linspace(0, size, GRID + 1).round().astype(int).tolist())
        parts = [cells[min(start, size - 1) : max(stop, start + 1)] for start, stop in ends]
        cells = np.stack([part.mean(axis=0, dtype=np.float64) for part in parts], axis=-1)
    cells = cells.reshape(-1) - cells.mean()
    length = float(np.linalg.norm(cells))
    return (cells / length if length > 0 else cells).astype(np.float32)


def _organs(labels: Volume, dataset: Dataset) -> dict[str, OrganFacts]:
    every = [value for organ in dataset.labels.values() for value in values_of(organ)]
    sums: dict[int, NDArray[np.float64]] = {}  # of each value the indices of its voxels, and their number
    for value, box in boxes_of(labels.array[0], every).items():
        if box is not None:
            places = np.argwhere(labels.array[0][box] == value) + [side.start for side in box]
            sums[value] = np.append(places.sum(axis=0), len(places)).astype(np.float64)
    centre, found = (np.array(labels.shape) - 1) / 2, {}
    for organ, values in dataset.labels.items():
        total = sum((sums[one] for one in values_of(values) if one in sums), np.zeros(4))
        if total[3]:
            away_mm = labels.affine[:3, :3] @ (total[:3] / total[3] - centre)
            found[organ] = OrganFacts(total[3] * voxel_size(labels.steps_mm) / 1000, float(away_mm[0]))
    return found


def _peak_bytes(case: Case, dataset: Dataset) -> int:
    """Memory that measuring one case takes at most; unreadable files are told by the worker."""
    try:
        return prod(read_header(case.images[0]).shape) * (16 * len(dataset.modalities) + 32)
    except DataError:
        return 0


def overlap_of(first: Member, second: Member, datasets: Mapping[str, Dataset]) -> dict[tuple[str, str], float]:
    """Dice of every organ that the one has with every organ that the other has, where both lie on one grid."""
    labels = [read_case(one.case, datasets[one.set])[1] for one in (first, second)]
    if any(one is None for one in labels):
        return {}
    ours, theirs = (one.reoriented("RAS").array[0] for one in labels if one is not None)
    if ours.shape != theirs.shape:
        return {}
    masks = []
    for one, array in ((first, ours), (second, theirs)):
        drawn = ((o, np.isin(array, values_of(v))) for o, v in datasets[one.set].labels.items())
        masks.append({organ: mask for organ, mask in drawn if mask.any()})
    return {
        (a, b): float(2 * np.count_nonzero(mask & other) / (np.count_nonzero(mask) + np.count_nonzero(other)))
        for a, mask in masks[0].items()
        for b, other in masks[1].items()
    }


def channel_of(choice: SetChoice, facts: CaseFacts, name: str) -> ChannelFacts:
    """The facts of a channel by the name that it has in the merged dataset."""
    return facts.channels[choice.modalities.index(name)]
