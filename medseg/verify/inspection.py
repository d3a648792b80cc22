"""Everything that is wrong with the files of one case, found in one pass."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.datasets.case import (
    Case,
    Dataset,
    affine_difference,
    counted,
    require_same_grid,
    undeclared_values,
    value_counts,
)
from medseg.errors import DataError
from medseg.space.reading import is_nifti, read_volume
from medseg.space.volume import Affine, Shape, Volume, orientation_of, same_place, spacing_of

FORGIVEN_VOXELS = 0.05
"""How far apart, as a fraction of a voxel, two grids may lie and still count as one; `read_case` agrees."""

ROUNDING_VOXELS = 0.5
"""How far apart two affines may put a corner and still be one affine written with rounding."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        case: Whose; empty for the dataset as a whole.
        file: Where, None for the dataset as a whole.
        kind: One word for machines: missing, unreadable, channels, shape, spacing, direction, origin, non-finite,
            constant, undeclared, unused, fractional, duplicate, leakage, died; and of less weight: float-labels,
            rounding, no-foreground, two-affines, unlisted, count.
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
    """

    case: str
    problems: tuple[Problem, ...]
    digests: tuple[tuple[str, Path], ...] = ()
    values: frozenset[int] | None = None


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


def inspect_case(task: tuple[Case, Dataset]) -> Inspection:
    """Look for everything that is wrong with one case.

    Args:
        task: The case and its dataset, as one argument so that worker processes can be handed it.
    """
    case, dataset = task
    notes = _Notes(case.id)
    images = {path: volume for path in case.images if (volume := _read(path, notes)) is not None}
    for path, volume in images.items():
        _check_voxels(path, volume, notes)
    _check_channels(case, images, dataset, notes)
    reference = next(iter(images.items()), None)
    for path, volume in list(images.items())[1:]:
        _check_grid(path, volume, reference, notes)
    values = _inspect_label(case.label, reference, dataset, notes) if case.label is not None else None
    digests = tuple(pair for path, volume in images.items() for pair in _digests(path, volume))
    return Inspection(case.id, tuple(notes.problems), digests, values)


def _read(path: Path, notes: _Notes) -> Volume | None:
    try:
        volume = read_volume(path)
    except DataError as error:
        notes.add_error("unreadable" if path.exists() else "missing", error)
        return None
    _check_header(path, notes)
    return volume


def _check_header(path: Path, notes: _Notes) -> None:
    header = nib.load(path).header if is_nifti(path) else None
    if header is None or not (header["qform_code"] and header["sform_code"]):
        return
    qform, sform = header.get_qform(), header.get_sform()
    shape = (header.get_data_shape()[0], header.get_data_shape()[1], header.get_data_shape()[2])
    if not same_place(qform, sform, shape, ROUNDING_VOXELS):
        notes.add(
            path,
            "two-affines",
            f"has a qform ({_describe(qform)}) that disagrees with its sform ({_describe(sform)})",
            "medseg follows the sform; other programs may not: make them agree",
            harmless=True,
        )


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
            "Let --fix copy the affine",
            repair="affine" if is_nifti(path) and is_nifti(like) else "",
            like=like,
            harmless=apart <= FORGIVEN_VOXELS,
        )
        return
    try:
        require_same_grid(path, volume, like, image)
    except DataError as error:
        kind = "shape" if volume.shape != image.shape else affine_difference(volume, image).split()[0]
        notes.add_error(kind, error)


def distance_in_voxels(a: Affine, b: Affine, shape: Shape) -> float:
    """How far apart two affines put the corners of a grid, as a fraction of the shortest edge of a voxel."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    displacement_mm = np.abs((a - b) @ np.vstack([corners, np.ones(corners.shape[1])]))[:3].max()
    return float(displacement_mm / min(spacing_of(a)))


def _inspect_label(
    path: Path, reference: tuple[Path, Volume] | None, dataset: Dataset, notes: _Notes
) -> frozenset[int] | None:
    volume = _read(path, notes)
    if volume is None:
        return None
    if len(volume.array) != 1:
        problem = f"has {len(volume.array)} channels, expected a label volume with one"
        notes.add(path, "channels", problem, "Merge them into one map")
        return None
    _check_grid(path, volume, reference, notes)
    labels = np.rint(volume.array)
    off = float(np.abs(labels - volume.array).max()) if np.isfinite(volume.array).all() else np.inf
    if off > 0.01:
        problem = "holds values that are not whole numbers"
        notes.add(path, "fractional", problem, "Resample labels with nearest neighbour")
        return None
    _check_label_type(path, off, reference, notes)
    return _check_values(path, labels.astype(np.int64), dataset, notes)


def _check_label_type(path: Path, off: float, reference: tuple[Path, Volume] | None, notes: _Notes) -> None:
    kind = nib.load(path).get_data_dtype() if is_nifti(path) else np.dtype(np.uint8)
    if np.issubdtype(kind, np.integer) and off == 0:
        return
    like = reference[0] if reference and is_nifti(reference[0]) else None
    problem = f"holds labels as {kind}" + (f", up to {off:.2g} from whole numbers" if off else "")
    notes.add(
        path,
        "float-labels",
        problem,
        "Let --fix write integers",
        repair="integers" if like else "",
        like=like,
        harmless=off == 0,
    )


def _check_values(path: Path, labels: np.ndarray, dataset: Dataset, notes: _Notes) -> frozenset[int]:
    for value, count in sorted(undeclared_values(labels, dataset).items()) if dataset.others is None else ():
        notes.add(
            path,
            "undeclared",
            f"holds {counted(count, 'voxel')} with the value {value}, which the dataset does not name",
            f'Name the value under "labels" in dataset.json ("...": {value}), or set those voxels to 0',
        )
    values = frozenset(value_counts(labels))
    if not values & set(dataset.values) - {0, dataset.ignore}:
        remedy = "Make sure that nothing is there, or that nobody forgot to draw"
        notes.add(path, "no-foreground", "marks no organ at all", remedy, harmless=True)
    return values


def _digests(path: Path, volume: Volume) -> list[tuple[str, Path]]:
    digests = []
    for channel in volume.array:
        if channel.min() != channel.max():
            digest = hashlib.blake2b(repr(channel.shape).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(channel).data)
            digests.append((digest.hexdigest(), path))
    return digests


def _describe(affine: Affine) -> str:
    spacing = " x ".join(f"{length:.3g}" for length in spacing_of(affine))
    return f"{orientation_of(affine)}, {spacing} mm"
