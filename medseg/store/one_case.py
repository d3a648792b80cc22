"""One case from its files to its folder in the store: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Int32
from numpy.typing import NDArray

from medseg.datasets.case import Case, Dataset, read_image, read_maps, read_weight
from medseg.datasets.drawn import agreed
from medseg.errors import DataError, MachineError, explained
from medseg.machine.files import digest_of, whole, write_json
from medseg.plan.grid import foreign_unit, kept_box, labels_to_plan_grid, to_plan_grid, weight_to_plan_grid
from medseg.plan.plan import Plan
from medseg.space.labels import cut_away, value_counts
from medseg.space.reading import parts_of
from medseg.store.arrays import write_array
from medseg.store.store import SCHEMA, CaseInfo, Source, read_info

FOREGROUND_SAMPLES = 10_000
REMEDY = "Free space or choose another place, then run again; finished cases are kept"


@dataclass(frozen=True)
class CaseTask:
    """What a worker needs to prepare one case.

    Attributes:
        case: Its files.
        dataset: What they must agree with; its lists of cases may be empty.
        plan: The grid to prepare for.
        grid: What `grid_of` says of it.
        store: The folder of the store.
    """

    case: Case
    dataset: Dataset
    plan: Plan
    grid: dict[str, Any]
    store: Path

    @cached_property
    def settings(self) -> str:
        """Digest of all that decides the result, but for the bytes of the files."""
        told: list[Any] = [SCHEMA, self.grid, self.case.id, self.case.patient, self.case.annotated]
        if self.case.raters or self.case.weight:
            told += [len(self.case.raters), self.dataset.raters, self.case.weight is not None]
        if self.case.meaning is not None:
            told += [self.case.dataset, self.case.meaning.to_dict()]
        return _digest(json.dumps(told))

    @property
    def files(self) -> tuple[Path, ...]:
        """What the images are made of, then the labels and the weights."""
        named = (*self.case.images, *self.case.drawn, *([self.case.weight] if self.case.weight else []))
        return tuple(part for path in named for part in parts_of(path))


@dataclass(frozen=True)
class StoredCase:
    """What became of one case.

    Attributes:
        folder: The name of its folder.
        cut_away: Organs of which the label has voxels where every channel is zero, in words; those are cropped away.
        too_small: Organs of which nothing is left, because they are smaller than the voxels of the plan.
        unit: What `medseg.plan.grid.foreign_unit` says of the image.
    """

    folder: str
    cut_away: tuple[str, ...] = ()
    too_small: tuple[str, ...] = ()
    unit: str = ""


def prepare_case(task: CaseTask) -> StoredCase:
    """Prepare one case, unless the store already holds it.

    Returns:
        Where it is, and what of its label is not there.

    Raises:
        DataError: The case is at fault.
        MachineError: The store cannot be written.
    """
    sources = tuple(_source(path) for path in task.files)
    name = folder_name(task, sources)
    final = task.store / "cases" / name
    if final.is_dir():
        _refresh(final, task, sources)
        return StoredCase(name)
    image = read_image(task.case.images, task.dataset.modalities)
    maps, weight = read_maps(task.case, task.dataset, image), read_weight(task.case, image)
    if not all(source.unchanged() for source in sources):
        raise DataError(task.case.images[0], "or its label changed while it was read", "Run again when it is complete")
    try:
        array, change = to_plan_grid(image, task.plan)
    except ValueError as error:
        remedy = "Correct spacing_mm in the plan, or the spacing in the file's header"
        raise DataError(task.case.images[0], str(error), remedy) from None
    unit = foreign_unit(image, task.plan)
    del image  # as large as the result: let go before the labels are resampled
    labels = agreed(maps, task.dataset.ignore) if maps else None
    atoms = None if labels is None else labels_to_plan_grid(labels, task.plan, change)
    soft = task.dataset.raters == "mean" and len(maps) > 1
    raters = np.stack([labels_to_plan_grid(one, task.plan, change) for one in maps]) if soft else None
    info = CaseInfo(
        id=task.case.id,
        patient=task.case.patient,
        annotated=task.case.annotated,
        images=_names(task.case.images),
        label=None if task.case.label is None else str(task.case.label.resolve()),
        sources=sources,
        settings=task.settings,
        change=change,
        voxels={} if atoms is None else _count(atoms),
        drawn=_names(task.case.drawn),
        soft=soft,
        weighted=weight is not None,
        dataset=task.case.dataset,
        meaning=task.case.meaning,
    )
    further = {"raters": raters, "weight": None if weight is None else weight_to_plan_grid(weight, change)}
    _write(final, array, atoms, info, task.plan, further)
    if labels is None:
        return StoredCase(name, unit=unit)
    kept = kept_box(labels.array[0], change)
    cropped = cut_away(labels.array[0], kept, task.plan.labels)
    return StoredCase(name, tuple(cropped), lost_organs(kept, info.voxels, task.plan), unit)


def lost_organs(values: NDArray[np.integer[Any]], voxels: Mapping[int, int], plan: Plan) -> tuple[str, ...]:
    """Name the organs that a label holds and the plan's grid does not: they were smaller than its voxels.

    Args:
        values: Of the label file, cropped as the image was.
        voxels: Voxels per atom index on the plan's grid.
        plan: Names both.
    """
    kept = {atom for index, atom in enumerate(plan.atoms, start=1) if voxels.get(index)}
    gone = {name: set(own) for name, own in zip(plan.organs, plan.values, strict=True) if not kept & set(own)}
    present = set(value_counts(values)) if gone else set()
    return tuple(name for name, own in gone.items() if own & present)


def folder_name(task: CaseTask, sources: tuple[Source, ...]) -> str:
    """The case's id and a digest of its files' content and of the settings."""
    return f"{task.case.id}.{_digest(task.settings + ''.join(source.digest for source in sources))}"


def is_case_folder(name: str) -> bool:
    """Whether a name is one that `folder_name` gives.

    Example:
        >>> is_case_folder("spleen_2.0123456789abcdef"), is_case_folder("patient_2")
        (True, False)
    """
    return re.fullmatch(r"[^.].*\.[0-9a-f]{16}", name) is not None


def foreground(
    atoms: Int16[np.ndarray, "i j k"], membership: NDArray[np.float32], *, exclusive: bool, seed: int
) -> Int32[np.ndarray, "n 4"]:
    """Rows of (class, i, j, k): for each class at most `FOREGROUND_SAMPLES` of its voxels, drawn evenly.

    Args:
        atoms: Atom indices; −1 is ignored.
        membership: The plan's table of classes and atoms.
        exclusive: Leave out row 0 of the table, which is the background.
        seed: Makes the draw repeatable.
    """
    draw = np.random.default_rng(seed)
    inside = np.flatnonzero(atoms > 0)
    values = atoms.reshape(-1)[inside]
    parts = [np.zeros((0, 4), dtype=np.int32)]
    for row in range(int(exclusive), len(membership)):
        voxels = inside[membership[row][values] > 0]
        if voxels.size > FOREGROUND_SAMPLES:
            voxels = voxels[np.sort(draw.choice(voxels.size, FOREGROUND_SAMPLES, replace=False, shuffle=False))]
        places = np.stack(np.unravel_index(voxels, atoms.shape), axis=1).astype(np.int32)
        parts.append(np.column_stack([np.full(len(places), row, dtype=np.int32), places]))
    return np.concatenate(parts)


def _write(
    final: Path,
    array: NDArray[np.float32],
    atoms: NDArray[np.int16] | None,
    info: CaseInfo,
    plan: Plan,
    further: Mapping[str, NDArray[Any] | None],
) -> None:
    try:
        with whole(final, remedy=REMEDY) as folder:
            folder.mkdir()
            write_array(folder, "image", array, patch=plan.patch_size)
            for name, more in further.items():
                if more is not None:
                    write_array(folder, name, more, patch=plan.patch_size)
            if atoms is not None:
                seed = int(final.name.rsplit(".", 1)[-1], 16)
                table = foreground(atoms, plan.membership, exclusive=plan.exclusive, seed=seed)
                write_array(folder, "labels", atoms, patch=plan.patch_size)
                np.save(folder / "foreground.npy", table)
            (folder / "info.json").write_text(json.dumps(info.to_dict()), encoding="utf-8")
    except MachineError:
        if not final.is_dir():  # else another process finished the very same case first
            raise


def _refresh(final: Path, task: CaseTask, sources: tuple[Source, ...]) -> None:
    """Note where the very same files lie now."""
    known = read_info(final)
    label = None if task.case.label is None else str(task.case.label.resolve())
    drawn = _names(task.case.drawn)
    info = replace(known, images=_names(task.case.images), label=label, sources=sources, drawn=drawn)
    if info != known:
        write_json(final / "info.json", info.to_dict(), remedy=REMEDY)


def _count(atoms: NDArray[np.int16]) -> dict[int, int]:
    foreground = atoms[atoms != 0]  # the background is most of the volume: not worth a histogram
    counts = np.bincount(foreground.astype(np.intp) + 1, minlength=2)
    counts[1] = atoms.size - foreground.size
    return {index - 1: int(count) for index, count in enumerate(counts) if count}


def _source(path: Path) -> Source:
    try:
        before = path.stat()
        digest = digest_of(path, "sha256")
    except OSError as error:
        raise explained(error, path) from None
    return Source(str(path.resolve()), before.st_size, before.st_mtime_ns, digest)


def _names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(str(path.resolve()) for path in paths)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
