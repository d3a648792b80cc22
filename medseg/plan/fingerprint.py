"""The fingerprint of a dataset: what its plan is made from, measured once per case."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from medseg.datasets.agreement import odd_cases
from medseg.datasets.case import Case, Dataset, read_case, read_weight
from medseg.datasets.hounsfield import Spread, doubts, is_ct, spread_of
from medseg.errors import DataError, few
from medseg.machine.crew import default_workers, run_tasks
from medseg.space.distance import nonzero_box, voxel_size
from medseg.space.labels import value_counts
from medseg.space.nifti import Header
from medseg.space.reading import is_flat, read_header
from medseg.space.volume import Shape, Spacing, Volume

_log = logging.getLogger(__name__)

ORIENTATION = "RAS"
QUANTILES = 2000  # of each case's foreground: enough for the 0.5 and 99.5 percentiles of all of them
MOST_VOXELS = 2_000_000  # of one case's foreground are ranked; a larger organ is sampled evenly


@dataclass(frozen=True, eq=False)
class Intensities:
    """The foreground of one case in one modality.

    Attributes:
        quantiles: Intensities at evenly spaced ranks; a fixed number, so that every case counts alike.
        mean: Of all foreground voxels.
        std: Of all foreground voxels.
        lowest: Smallest intensity.
        highest: Largest intensity.
    """

    quantiles: NDArray[np.float32]
    mean: float
    std: float
    lowest: float
    highest: float


@dataclass(frozen=True, eq=False)
class CaseFingerprint:
    """What one case contributes.

    Attributes:
        shape: Voxels after turning to `ORIENTATION` and cropping to the non-zero box.
        spacing_mm: Edge lengths of a voxel after turning.
        kept: Share of the voxels that the non-zero box keeps.
        intensities: One per modality; empty where the case has no foreground.
        voxels: Label value to its number of voxels, background 0 left out.
        square: Volume of a voxel over the product of its edges: below 1 where they are sheared.
        ct: Modality to the spread of a channel that is a CT.
    """

    shape: Shape
    spacing_mm: Spacing
    kept: float
    intensities: tuple[Intensities, ...]
    voxels: dict[int, int]
    square: float = 1.0
    ct: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Foreground:
    """The foreground of a whole dataset in one modality, every case counting alike.

    Attributes:
        lower: 0.5 percentile.
        upper: 99.5 percentile.
        mean: Mean.
        std: Standard deviation.
        lowest: Minimum.
        highest: Maximum.
    """

    lower: float
    upper: float
    mean: float
    std: float
    lowest: float
    highest: float


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a plan is made from.

    Attributes:
        dataset: Names, modalities, labels; its list of cases is left out.
        cases: One per labelled case, by id.
        unscaled: Whether some are pictures, which do not say how large a pixel is.
    """

    dataset: Dataset
    cases: dict[str, CaseFingerprint]
    unscaled: bool = False

    @property
    def spacings_mm(self) -> Float[np.ndarray, "n 3"]:
        """Edge lengths of every case's voxels."""
        return np.array([case.spacing_mm for case in self.cases.values()], dtype=np.float64)

    @property
    def shapes(self) -> Float[np.ndarray, "n 3"]:
        """Voxels of every case after cropping."""
        return np.array([case.shape for case in self.cases.values()], dtype=np.float64)

    @property
    def kept(self) -> float:
        """Median share of the voxels that cropping keeps."""
        return float(np.median([case.kept for case in self.cases.values()]))

    def foreground(self, modality: int) -> Foreground | None:
        """Intensities of the labelled voxels in one modality, None when no case has any."""
        found = [case.intensities[modality] for case in self.cases.values() if case.intensities]
        if not found:
            return None
        pooled = np.concatenate([one.quantiles for one in found])
        lower, upper = (float(value) for value in np.percentile(pooled, (0.5, 99.5)))
        mean = float(np.mean([one.mean for one in found]))
        square = float(np.mean([one.std**2 + one.mean**2 for one in found]))
        return Foreground(
            lower=lower,
            upper=upper,
            mean=mean,
            std=max(square - mean**2, 0.0) ** 0.5,
            lowest=min(one.lowest for one in found),
            highest=max(one.highest for one in found),
        )


@dataclass(frozen=True)
class FingerprintTask:
    """What a worker needs to measure one case."""

    case: Case
    dataset: Dataset


def fingerprint(dataset: Dataset, workers: int | None = None) -> Fingerprint:
    """Measure every labelled case, in parallel and in bounded memory.

    Args:
        dataset: As `read_dataset` returns it.
        workers: Processes; None takes a core each, as far as the free memory reaches.

    Raises:
        DataError: There is no labelled case, a spacing cannot be meant, or some cannot be read; all are named.
    """
    labelled = [case for case in dataset.cases if case.label is not None]
    if not labelled:
        raise DataError(dataset.name, "has no labelled case to plan from", 'List images with labels under "training"')
    bare = replace(dataset, cases=(), test=())
    tasks = {case.id: FingerprintTask(case, bare) for case in labelled}
    headers = _headers(tasks)
    _require_possible(tasks, headers)
    count = workers or default_workers(max((_peak_bytes(header, bare) for header in headers.values()), default=0))
    outcome = run_tasks(fingerprint_case, tasks, workers=count, title=f"measuring {dataset.name}")
    results = outcome.or_raise(labelled[0].images[0].parent)
    _tell_units(tasks, results)
    unscaled = any(is_flat(path) for case in labelled for path in case.images)
    return Fingerprint(bare, {name: results[name] for name in sorted(results)}, unscaled)


def fingerprint_case(task: FingerprintTask) -> CaseFingerprint:
    """Measure one case.

    Raises:
        DataError: As `medseg.datasets.case.read_case` and, though weights measure nothing, `read_weight` there: what is
            refused is refused before anything is written.
    """
    image, labels = read_case(task.case, task.dataset)
    if labels is None:
        raise DataError(task.case.images[0], "has no label file", "Add one or list the case as a test case")
    read_weight(task.case, image)
    box = nonzero_box(image.array)
    values = labels.array[0]
    mask = values > 0
    if task.dataset.ignore is not None:
        mask &= values != task.dataset.ignore
    turned = _turned(image, box)
    return CaseFingerprint(
        shape=turned.shape,
        spacing_mm=turned.spacing_mm,
        kept=float(np.prod(turned.shape) / np.prod(image.shape)),
        intensities=tuple(_intensities(channel[mask]) for channel in image.array) if mask.any() else (),
        voxels=value_counts(values[mask]),
        square=voxel_size(image.steps_mm) / prod(image.spacing_mm),
        ct={
            modality: spread_of(channel)
            for modality, channel in zip(task.dataset.modalities, image.array, strict=True)
            if is_ct(modality)
        },
    )


def _turned(image: Volume, box: tuple[slice, slice, slice]) -> Volume:
    """Shape and spacing after turning: a view of one voxel stands for the intensities, which are not needed."""
    size = [side.stop - side.start for side in box]
    return Volume(np.broadcast_to(np.uint8(0), (1, *size)), image.affine).reoriented(ORIENTATION)


def _intensities(values: NDArray[np.float32]) -> Intensities:
    ranked = np.sort(values[:: max(1, values.size // MOST_VOXELS)])
    ranks = ((np.arange(QUANTILES) + 0.5) / QUANTILES * ranked.size).astype(np.intp)
    return Intensities(
        quantiles=ranked[ranks],
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        lowest=float(values.min()),
        highest=float(values.max()),
    )


def _headers(tasks: Mapping[str, FingerprintTask]) -> dict[str, Header]:
    """Of the first image of each case; unreadable files are told by the worker."""
    found = {}
    for name, task in tasks.items():
        with suppress(DataError):
            found[name] = read_header(task.case.images[0])
    return found


def _tell_units(tasks: Mapping[str, FingerprintTask], results: Mapping[str, CaseFingerprint]) -> None:
    """Log what cannot be the Hounsfield units of a CT, for it moves the range that all of them are clipped to."""
    for modality in dict.fromkeys(modality for one in results.values() for modality in one.ct):
        found = doubts(modality, {case: one.ct[modality] for case, one in sorted(results.items())})
        name = next(iter(tasks.values())).dataset.name
        for line in few([f"{case or name} {problem}. {remedy}." for case, (problem, remedy) in found.items()]):
            _log.warning("%s", line)


def _require_possible(tasks: Mapping[str, FingerprintTask], headers: Mapping[str, Header]) -> None:
    """Refuse before the voxels are read what would spoil the plan of all others."""
    for name, odd in odd_cases(headers).items():
        if odd.impossible:
            raise DataError(tasks[name].case.images[0], odd.problem, odd.remedy)


def _peak_bytes(header: Header, dataset: Dataset) -> int:
    """Memory that measuring one case takes at most."""
    return prod(header.shape) * (12 * len(dataset.modalities) + 16)
