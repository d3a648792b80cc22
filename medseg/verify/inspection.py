"""Everything that is wrong with the files of one case, found in one pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.case import (
    Case,
    Dataset,
    counted,
    read_weight,
    require_complete,
    settled,
)
from medseg.datasets.drawn import agreed, read_drawn
from medseg.datasets.grids import affine_difference, require_same_grid
from medseg.datasets.hounsfield import Spread, is_ct, spread_of
from medseg.errors import DataError, listed
from medseg.space.distance import nonzero_box
from medseg.space.labels import IGNORED, cut_away, value_counts
from medseg.space.nifti import NEARLY, LabelFile
from medseg.space.reading import is_nifti, read_volume
from medseg.space.volume import ROUNDING_VOXELS, Volume, distance_in_voxels
from medseg.verify.headers import header_remarks
from medseg.verify.rewriting import IN_ONE_FILE


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        case: Whose; empty for the dataset as a whole.
        file: Where, None for the dataset as a whole.
        kind: One word for machines: missing, unreadable, channels, shape, spacing, direction, origin, non-finite,
            constant, undeclared, unused, fractional, duplicate, leakage, impossible-spacing, unlabelled, weight,
            refused, died; and of less weight: float-labels, no-segment, rounding, no-foreground, cut-away, two-affines,
            quaternion, pixdim, sheared, far-spacing, units, tie, unlisted, count.
        problem: For people, as the end of a sentence that begins with the file.
        remedy: What to do.
        repair: How `medseg.verify.repair` would mend it: ``"affine"``, ``"integers"``, or empty if it cannot.
        like: The file whose affine is right.
        harmless: Training and prediction would not stumble over it.
    """

    case: str
    file: Path | None
    kind: str
    problem: str
    remedy: str
    repair: str = ""
    like: Path | None = None
    harmless: bool = False


@dataclass(frozen=True)
class Inspection:
    """What was found in one case.

    Attributes:
        case: Its id.
        problems: What is wrong, file by file.
        digests: Hash of the voxels of every channel that is not constant, with its file.
        values: Values in the label, None where there is no readable label.
        ct: Modality and spread of every channel that is a CT, with its file.
    """

    case: str
    problems: tuple[Problem, ...]
    digests: tuple[tuple[str, Path], ...] = ()
    values: frozenset[int] | None = None
    ct: tuple[tuple[str, Spread, Path], ...] = ()


@dataclass
class _Notes:
    """Collects the problems of a case."""

    case: str
    problems: list[Problem] = field(default_factory=list)

    def add(
        self,
        file: Path,
        kind: str,
        problem: str,
        remedy: str,
        *,
        repair: str = "",
        like: Path | None = None,
        harmless: bool = False,
    ) -> None:
        self.problems.append(Problem(self.case, file, kind, problem, remedy, repair, like, harmless))

    def add_error(self, kind: str, error: DataError) -> None:
        self.add(error.path, kind, error.problem, error.remedy)

    @property
    def grave(self) -> bool:
        """Whether something was found that stands in the way."""
        return any(not problem.harmless for problem in self.problems)

    def settled(self) -> tuple[Problem, ...]:
        """All of them; what could be repaired is not, in a file with a fault that cannot be."""
        broken = {problem.file for problem in self.problems if not (problem.harmless or problem.repair)}
        remedy = "Mend its other faults first"
        return tuple(
            replace(problem, repair="", like=None, remedy=remedy)
            if problem.repair and problem.file in broken
            else problem
            for problem in self.problems
        )


def inspect_case(task: tuple[Case, Dataset]) -> Inspection:
    """Look for everything that is wrong with one case.

    Args:
        task: The case and its dataset, whose own lists of cases may be empty, as one argument for a worker process.
    """
    case, dataset = task
    notes = _Notes(case.id)
    images = {path: volume for path in case.images if (volume := _read_image(path, notes)) is not None}
    for path, volume in images.items():
        _check_voxels(path, volume, notes)
    _check_channels(case, images, dataset, notes)
    reference = next(iter(images.items()), None)
    for path, volume in list(images.items())[1:]:
        _check_grid(path, volume, reference, notes)
    drawn = [_inspect_label(case, path, reference, dataset, notes) for path in case.drawn]
    labels = drawn[0] if drawn else None
    if reference is not None and not notes.grave:
        _check_weight(case, reference[1], notes)
    if len(drawn) > 1 and not notes.grave:
        _tell_of_ties(case, [one for one in drawn if one is not None], dataset, notes)
    if labels is not None and not notes.grave:
        _check_cropping(case.label or Path(), labels, list(images.values()), dataset, notes)
    if not notes.grave:  # the last word has what preparation asks
        _check_as_preparation_does(case, dataset, notes)
    digests = tuple(pair for path, volume in images.items() for pair in _digests(path, volume))
    read = [frozenset(value_counts(one)) for one in drawn if one is not None]
    values = frozenset[int]().union(*read) if read else None
    return Inspection(case.id, notes.settled(), digests, values, tuple(_spreads_of_ct(images, dataset)))


def _check_as_preparation_does(case: Case, dataset: Dataset, notes: _Notes) -> None:
    try:
        require_complete(case, dataset)
    except DataError as error:
        notes.add_error("refused", error)


def _read_image(path: Path, notes: _Notes) -> Volume | None:
    try:
        volume = read_volume(path)
    except DataError as error:
        notes.add_error("unreadable" if os.path.exists(path) else "missing", error)
        return None
    _remark_on_header(path, notes)
    return volume


def _remark_on_header(path: Path, notes: _Notes) -> None:
    for remark in header_remarks(path) if is_nifti(path) else ():
        notes.add(path, *remark, harmless=True)


def _check_voxels(path: Path, volume: Volume, notes: _Notes) -> None:
    for index, channel in enumerate(volume.array):
        which = f"in channel {index} " if len(volume.array) > 1 else ""
        if strays := int(channel.size - np.count_nonzero(np.isfinite(channel))):
            problem = f"holds {strays} voxels {which}that are NaN or infinite"
            notes.add(path, "non-finite", problem, "Replace them, for CT by -1024")
        elif channel.min() == channel.max():
            problem = f"is constant {which}: every voxel is {channel.flat[0]:g}".replace("  ", " ").replace(" :", ":")
            notes.add(path, "constant", problem, "Re-export it, or leave the case out")


def _check_channels(case: Case, images: dict[Path, Volume], dataset: Dataset, notes: _Notes) -> None:
    channels = sum(len(volume.array) for volume in images.values())
    expected = len(dataset.modalities)
    if len(images) == len(case.images) and channels != expected:
        names = ", ".join(dataset.modalities)
        notes.add(
            case.images[0],
            "channels",
            f"belongs to a case of {counted(channels, 'channel')}, expected {expected} ({names})",
            "Give one file per modality, or one 4D file that holds them all in this order",
        )


def _check_grid(path: Path, volume: Volume, reference: tuple[Path, Volume] | None, notes: _Notes) -> None:
    if reference is None:
        return
    like, image = reference
    apart = distance_in_voxels(volume.affine, image.affine, volume.shape)
    if volume.shape == image.shape and 1e-3 < apart <= ROUNDING_VOXELS:
        notes.add(
            path,
            "rounding",
            f"has an affine that puts voxels up to {apart:.2g} of a voxel away from those of {like.name}",
            "Let --fix copy the affine"
            if is_nifti(path)
            else "Export it on the same grid, for --fix mends that of NIfTI alone",
            repair="affine" if is_nifti(path) else "",
            like=like,
            harmless=True,
        )
        return
    try:
        require_same_grid(path, volume, like, image)
    except DataError as error:
        kind = "shape" if volume.shape != image.shape else affine_difference(volume, image).split()[0]
        notes.add_error(kind, error)


def _inspect_label(
    case: Case, path: Path, reference: tuple[Path, Volume] | None, dataset: Dataset, notes: _Notes
) -> NDArray[np.integer] | None:
    """Values of the label, ``(i, j, k)``; None where there are none that could be meant."""
    try:
        file = read_drawn(path, case.images[0], dataset.meaning_of(case))
    except DataError as error:
        kind = "channels" if "channels" in error.problem else "unreadable" if os.path.exists(path) else "missing"
        notes.add_error(kind, error)
        return None
    _remark_on_header(path, notes)
    _check_grid(path, file.volume, reference, notes)
    if file.gap > NEARLY and not file.exact:
        problem = "holds values that are not whole numbers"
        notes.add(
            path, "fractional", problem, "Resample labels with nearest neighbour; if it is a scan, name the label"
        )
        return None
    _check_label_type(file, notes)
    if lacking := [organ for organ in file.lacks if organ in (case.annotated or dataset.organs)]:
        problem = f"has no segment called {listed(lacking)}, so nothing of it is there"
        remedy = 'If it was not drawn, say what was: "annotated": {"' + case.id + '": [...]}'
        notes.add(path, "no-segment", problem, remedy, harmless=True)
    labels: NDArray[np.integer] = file.volume.array[0]
    try:
        meant = settled(path, labels, dataset.meaning_of(case))
    except DataError as error:
        notes.add_error("undeclared", error)
        meant = labels
    labels = meant if case.meaning else labels
    if not np.isin(labels, list(set(dataset.values) - {0, dataset.ignore})).any():
        remedy = "Make sure that nothing is there, or that nobody forgot to draw"
        notes.add(path, "no-foreground", "marks no organ at all", remedy, harmless=True)
    return labels


def _check_weight(case: Case, image: Volume, notes: _Notes) -> None:
    try:
        read_weight(case, image)
    except DataError as error:
        notes.add_error("weight", error)


def _tell_of_ties(case: Case, drawn: list[NDArray[np.integer]], dataset: Dataset, notes: _Notes) -> None:
    ignore = IGNORED if dataset.ignore is None else dataset.ignore
    maps = [Volume(one[None], np.eye(4)) for one in drawn]
    tied = np.count_nonzero(
        (agreed(maps, ignore).array[0] == ignore) & np.any([one != ignore for one in drawn], axis=0)
    )
    if tied:
        problem = f"and {counted(len(drawn) - 1, 'other label')} of the case agree on no value for {tied} voxels"
        remedy = 'Those count neither for nor against, but for losses that take the mean of raters ("raters": "mean")'
        notes.add(case.drawn[0], "tie", problem, remedy, harmless=True)


def _check_label_type(file: LabelFile, notes: _Notes) -> None:
    if np.issubdtype(np.dtype(file.stored.split()[0]), np.integer) and " " not in file.stored:
        return
    mendable = is_nifti(file.path) or file.path.name.endswith(IN_ONE_FILE)
    problem = f"holds labels as {file.stored}" + (f", up to {file.gap:.2g} from whole numbers" if file.gap else "")
    notes.add(
        file.path,
        "float-labels",
        problem,
        "Let --fix write integers" if mendable else "Export it as integers",
        repair="integers" if mendable else "",
        harmless=file.exact,
    )


def _check_cropping(
    path: Path, labels: NDArray[np.integer], images: list[Volume], dataset: Dataset, notes: _Notes
) -> None:
    boxes = [nonzero_box(volume.array) for volume in images]
    i, j, k = (slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
    if lost := cut_away(labels, labels[i, j, k], dataset.labels):
        problem = f"marks {listed(lost)} where every channel of the image is zero, which preparation crops away"
        remedy = "Correct the label or the image: nothing can be found there"
        notes.add(path, "cut-away", problem, remedy, harmless=True)


def _spreads_of_ct(images: dict[Path, Volume], dataset: Dataset) -> Iterator[tuple[str, Spread, Path]]:
    channels = [(channel, path) for path, volume in images.items() for channel in volume.array]
    if len(channels) == len(dataset.modalities):
        for modality, (channel, path) in zip(dataset.modalities, channels, strict=True):
            if is_ct(modality) and np.isfinite(channel).all() and channel.min() < channel.max():
                yield modality, spread_of(channel), path


def _digests(path: Path, volume: Volume) -> list[tuple[str, Path]]:
    digests = []
    for channel in volume.array:
        if channel.min() != channel.max():
            digest = hashlib.blake2b(repr(channel.shape).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(channel).data)
            digests.append((digest.hexdigest(), path))
    return digests
