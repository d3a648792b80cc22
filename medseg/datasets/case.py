"""A case and a dataset as plain values, and the one door through which their files are read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.drawn import Meaning, agreed, read_drawn
from medseg.datasets.files import Files, why_absent
from medseg.datasets.grids import require_same_grid
from medseg.datasets.layout import list_files
from medseg.datasets.manifest import Manifest, Raters, read_manifest
from medseg.errors import DataError, meant
from medseg.space.labels import LabelValue, Others, others_value, values_of
from medseg.space.nifti import require_finite
from medseg.space.reading import ENDINGS, is_drawn, is_flat, is_there, read_volume
from medseg.space.volume import Volume

_COLOURS = 'Declare "modality": ["R", "G", "B"] for colours and one modality for grey, or save the picture accordingly'
_LONGEST = 230  # bytes of a name, for those of files have at most 255 and endings of their own
_CHANNELS = "Give one file per modality, or one 4D file that holds them all in this order"


@dataclass(frozen=True)
class Case:
    """The files of one examination.

    Attributes:
        id: Unique within its dataset; the file name without ending and channel number.
        images: One file per modality, or one 4D file that holds them all.
        label: The reference segmentation, None where there is none.
        patient: Who was scanned; cases of one patient never part over a fold's border.
        annotated: The organs that the reference segmentation covers; None means all.
        raters: What others drew, whose agreement with `label` is the reference; mostly nothing.
        weight: A map of how many voxels each voxel counts as in training; None counts all alike.
        dataset: Of a merged dataset, the one that the case comes from; empty elsewhere.
        meaning: Of a merged dataset, what its label file says, in the words of that one, and what becomes of it.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str
    annotated: tuple[str, ...] | None = None
    raters: tuple[Path, ...] = ()
    weight: Path | None = None
    dataset: str = ""
    meaning: Meaning | None = None

    @property
    def drawn(self) -> tuple[Path, ...]:
        """The label files, one per rater."""
        return () if self.label is None else (self.label, *self.raters)


@dataclass(frozen=True)
class Dataset:
    """What a ``dataset.json`` declares, whichever dialect it is written in.

    Attributes:
        name: For reports.
        modalities: Names of the channels, in order.
        labels: Organ name to the value in the label files, or to several values where regions overlap; background
            (value 0) is left out.
        ignore: The value of voxels that count neither for nor against, or None.
        cases: The labelled cases.
        test: Cases to predict; they may lack a label.
        paint_order: For overlapping regions, the value to paint for each region, first region first.
        others: What becomes of values that no label has; None refuses them.
        raters: How several labels of a case agree.
    """

    name: str
    modalities: tuple[str, ...]
    labels: dict[str, LabelValue]
    ignore: int | None
    cases: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    paint_order: tuple[int, ...] | None = None
    others: Others | None = None
    raters: Raters | None = None

    @property
    def organs(self) -> tuple[str, ...]:
        """Names of the labels, background left out."""
        return tuple(self.labels)

    @property
    def meaning(self) -> Meaning:
        """What its label files say."""
        return Meaning(self.labels, self.ignore, others_value(self.others, self.ignore))

    @property
    def values(self) -> tuple[int, ...]:
        """Every value that a label file may hold, in ascending order: background, organs, ignored."""
        organs = {v for value in self.labels.values() for v in values_of(value)}
        return tuple(sorted(organs | {0} | ({self.ignore} if self.ignore is not None else set())))

    def meaning_of(self, case: Case) -> Meaning:
        """What the label file of a case says."""
        return case.meaning or self.meaning


def read_dataset(root: Path, *, missing_ok: bool = False) -> Dataset:
    """Read a dataset's description and find its files; no voxel is read.

    Dialects are told apart by content: the Decathlon's as downloaded (a ``training`` list), nnU-Net's raw layout
    (``channel_names``), and a plain folder of images and labels matched by name (``image_folder``, ``label_folder``).

    Args:
        root: The folder, or its ``dataset.json``.
        missing_ok: List cases whose files are missing instead of refusing them; `medseg.verify.verify` reports them
            one by one.

    Returns:
        The dataset, its cases sorted by id.

    Raises:
        DataError: With what is wrong in the description, or which listed file is missing.
    """
    listing = read_listing(root)
    dataset = listing.dataset
    if not missing_ok:
        for case, files in zip((*dataset.cases, *dataset.test), (*listing.training, *listing.test), strict=True):
            _require_files(listing.manifest.file, files)
            require_complete(case, dataset)
    return dataset


@dataclass(frozen=True)
class Listing:
    """A dataset's description and the files that it means, of which some may be missing.

    Attributes:
        manifest: The description.
        training: Files of each labelled case, sorted by id.
        test: Those of the others.
    """

    manifest: Manifest
    training: list[Files]
    test: list[Files]

    @property
    def dataset(self) -> Dataset:
        """The dataset that they make."""
        manifest = self.manifest
        return Dataset(
            name=manifest.name,
            modalities=manifest.modalities,
            labels=manifest.labels,
            ignore=manifest.ignore,
            cases=tuple(_case(manifest.file, files, manifest) for files in self.training),
            test=tuple(_case(manifest.file, files, manifest) for files in self.test),
            paint_order=manifest.paint_order,
            others=manifest.others,
            raters=manifest.raters,
        )


def read_listing(root: Path) -> Listing:
    """Read a dataset's description and list its files, wherever they are.

    Raises:
        DataError: As `read_dataset`, but for files that are missing.
    """
    file = dataset_json(root)
    manifest = read_manifest(file)
    training, test = list_files(file.parent, manifest)
    if not training and not test:
        remedy = 'Add entries to "training", or files to its image and label folders'
        raise DataError(file, f"lists no cases{_instead(file.parent)}", remedy)
    _require_known(file, manifest, [files.id for files in (*training, *test)])
    return Listing(manifest, training, test)


def read_case(case: Case, dataset: Dataset) -> tuple[Volume, Volume | None]:
    """Read the voxels of one case and check everything that training relies on.

    Args:
        case: One of the dataset's.
        dataset: What its files must agree with.

    Returns:
        The image ``(m, i, j, k)`` in float32 with one channel per modality, and the labels ``(1, i, j, k)`` in int32
        with the values that the dataset names, or None where the case has no label.

    Raises:
        DataError: A file is missing, unreadable or truncated; holds NaN or infinite voxels; the number of channels is
            not the number of modalities; the images and the label do not share one grid; the label holds a value that
            the dataset neither names nor counts among the others.
    """
    image = read_image(case.images, dataset.modalities)
    maps = read_maps(case, dataset, image)
    return image, agreed(maps, dataset.ignore) if maps else None


def read_maps(case: Case, dataset: Dataset, image: Volume) -> list[Volume]:
    """What each rater drew, ``(1, i, j, k)`` in the dataset's values; nothing where the case has no label.

    Raises:
        DataError: As `read_case`, for the labels.
    """
    maps = []
    for path in case.drawn:
        labels = read_drawn(path, case.images[0], dataset.meaning_of(case)).require_labels()
        require_same_grid(path, labels, case.images[0], image)
        maps.append(Volume(settled(path, labels.array, dataset.meaning_of(case)), labels.affine))
    return maps


def read_weight(case: Case, image: Volume) -> Volume | None:
    """How many voxels each voxel counts as, ``(1, i, j, k)``; None where all count alike.

    Raises:
        DataError: It has several channels, another grid, or numbers that are negative, not finite or all 0.
    """
    if case.weight is None:
        return None
    weight = read_volume(case.weight)
    require_finite(case.weight, weight)
    if len(weight.array) != 1:
        raise DataError(case.weight, f"has {len(weight.array)} channels, expected one weight a voxel", "Save one")
    require_same_grid(case.weight, weight, case.images[0], image)
    low, high = float(weight.array.min()), float(weight.array.max())
    if low < 0 or high == 0:
        problem = f"holds weights from {low:g} to {high:g}: a voxel counts as 0 voxels or more, and some must count"
        raise DataError(case.weight, problem, "Correct it, or leave it out to count all alike")
    return weight


def read_image(files: Sequence[Path], modalities: Sequence[str]) -> Volume:
    """Read the files of one examination as one volume with a channel per modality.

    Raises:
        DataError: As `read_case`, for the images.
    """
    if not files:
        raise ValueError("expected at least one image file, got none")
    if len(files) not in (1, len(modalities)):
        raise DataError(files[0], f"is one of {len(files)} files, expected 1 or {len(modalities)}", _CHANNELS)
    volumes: list[Volume] = []
    for path in files:
        volume = read_volume(path)
        require_finite(path, volume)
        if volumes:
            require_same_grid(path, volume, files[0], volumes[0])
        volumes.append(volume)
    array = volumes[0].array if len(volumes) == 1 else np.concatenate([volume.array for volume in volumes])
    if len(array) != len(modalities):
        where = files[0] if len(files) == 1 else files[0].parent
        raise DataError(
            where,
            f"has {counted(len(array), 'channel')}, expected {len(modalities)} ({', '.join(modalities)})",
            _COLOURS if is_flat(where) else _CHANNELS,
        )
    return Volume(array, volumes[0].affine)


def dataset_json(root: Path) -> Path:
    """The description of a dataset, given its folder or the description itself.

    Raises:
        DataError: There is none; says so if one lies a folder deeper.
    """
    if root.is_file():
        if root.suffix != ".json":
            raise DataError(root, "is no dataset.json", "Name the folder of the dataset, or its dataset.json")
        return root
    file = root / "dataset.json"
    if file.is_file():
        return file
    if not root.exists():
        raise DataError(root, "does not exist", "Check the path of the dataset")
    deeper = sorted(found for found in root.glob("*/dataset.json") if found.is_file())
    if deeper:
        raise DataError(root, "holds no dataset.json itself", f"Did you mean {deeper[0].parent}?"[:-1])
    minimal = '{"labels": {"liver": 1}, "modality": ["CT"], "image_folder": "images", "label_folder": "labels"}'
    raise DataError(root, "holds no dataset.json", f"Write one, such as {minimal}")


def _instead(folder: Path) -> str:
    """What lies in a folder without cases, for whoever thought that it held some."""
    others = (path for path in folder.rglob("[!.]*") if path.is_file() and path.suffix != ".json")
    found = next(others, None)
    return (
        ""
        if found is None or found.name.endswith(ENDINGS)
        else f"; {found.relative_to(folder)} is no image of a known format"
    )


def _case(file: Path, files: Files, manifest: Manifest) -> Case:
    annotated, patient = manifest.annotated.get(files.id), _patient(file, files.id, manifest)
    source = manifest.sources.get(files.dataset)
    if files.dataset and source is None:
        raise DataError(
            file,
            f"says that case {files.id!r} comes from {files.dataset!r}, of which it has no source",
            'Name it under "sources", or run medseg merge again',
        )
    origin = (files.dataset, source.meaning if source else None)
    return Case(files.id, files.images, files.label, patient, annotated, files.raters, files.weight, *origin)


def _patient(file: Path, case: str, manifest: Manifest) -> str:
    if case in manifest.patients:
        return manifest.patients[case]
    if manifest.patient_pattern is None:
        return case
    found = re.search(manifest.patient_pattern, case)
    if found is None or not found.group(1):
        what = "does not match" if found is None else "finds no patient in"
        raise DataError(file, f'has a "patient" pattern that {what} case {case!r}', "Widen the regular expression")
    return found.group(1)


def _require_files(file: Path, files: Files) -> None:
    for path in files.every:
        if not (is_there if path in files.images else is_drawn)(path):
            raise DataError(path, f"{why_absent(path)}, {file.name} needs it for case {files.id!r}", files.remedy)


def require_complete(case: Case, dataset: Dataset) -> None:
    """Refuse a case whose number of image files fits no way of storing the channels.

    Raises:
        DataError: It has neither a file per modality nor one for all.
    """
    if len(case.images) not in (1, len(dataset.modalities)):
        raise DataError(
            case.images[0],
            f"is one of {counted(len(case.images), 'image file')} of case {case.id!r}, but the dataset declares "
            f"{counted(len(dataset.modalities), 'modality', 'modalities')}",
            _CHANNELS,
        )


def _require_known(file: Path, manifest: Manifest, ids: list[str]) -> None:
    duplicates = [case for case, times in Counter(ids).items() if times > 1]
    if duplicates:
        raise DataError(file, f"lists case {min(duplicates)!r} more than once", "Keep one entry per case")
    for case in ids:
        if (length := len(os.fsencode(case))) > _LONGEST:
            problem = f"names a case of {length} bytes, {case[:20]!r}..., too long for what is called by it"
            raise DataError(file, problem, "Shorten the name of its files")
        if Path(case).name != case or case.startswith(".") or "\\" in case or "\0" in case:
            raise DataError(
                file, f"names a case {case!r}, which cannot name a file", "Leave out slashes and leading dots"
            )
    for key, table in (("patients", manifest.patients), ("annotated", manifest.annotated)):
        for case in sorted(set(table) - set(ids)):
            raise DataError(
                file, f'names an unknown case {case!r} in "{key}"{meant(case, ids)}', "Correct or remove it"
            )


def settled(path: Path, labels: NDArray[Any], meaning: Meaning) -> NDArray[Any]:
    """The values of a label file as they are meant.

    Raises:
        DataError: Some are neither named nor counted among the others, in one sentence, however many there are.
    """
    if problem := meaning.numbering.strangers(labels):
        remedy = 'Name the values under "labels" in dataset.json, or say what becomes of all others: "others": '
        remedy += '"background" or "ignore"'
        raise DataError(path, problem, "Exchange the files of image and label" if "a scan" in problem else remedy)
    return meaning.numbering.settled(labels)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and what it counts.

    Example:
        >>> counted(1, "case"), counted(2, "modality", "modalities")
        ('1 case', '2 modalities')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
