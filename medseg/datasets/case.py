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

from medseg.datasets.drawn import Meaning, read_drawn
from medseg.datasets.layout import Files, list_files
from medseg.datasets.manifest import Manifest, read_manifest
from medseg.errors import DataError, meant
from medseg.space.labels import LabelValue, Others, others_value, values_of
from medseg.space.nifti import require_finite
from medseg.space.reading import ENDINGS, is_flat, is_there, read_volume
from medseg.space.volume import Volume, same_place

_COLOURS = 'Declare "modality": ["R", "G", "B"] for colours and one modality for grey, or save the picture accordingly'
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
        dataset: Of a merged dataset, the one that the case comes from; empty elsewhere.
        meaning: Of a merged dataset, what its label file says, in the words of that one, and what becomes of it.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str
    annotated: tuple[str, ...] | None = None
    dataset: str = ""
    meaning: Meaning | None = None


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
    """

    name: str
    modalities: tuple[str, ...]
    labels: dict[str, LabelValue]
    ignore: int | None
    cases: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    paint_order: tuple[int, ...] | None = None
    others: Others | None = None

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
    if case.label is None:
        return image, None
    labels = read_drawn(case.label, case.images[0], dataset.meaning_of(case)).require_labels()
    require_same_grid(case.label, labels, case.images[0], image)
    return image, Volume(settled(case.label, labels.array, dataset.meaning_of(case)), labels.affine)


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


def require_same_grid(path: Path, volume: Volume, reference_path: Path, reference: Volume) -> None:
    """Refuse a volume whose voxels do not lie where those of the reference lie.

    Raises:
        DataError: Naming the first of shape, spacing, direction and origin that differs.
    """
    other = reference_path.name if reference_path.name != path.name else str(reference_path)
    if volume.shape != reference.shape:
        raise DataError(
            path, f"has shape {volume.shape}, but {other} has {reference.shape}", "Resample one onto the other's grid"
        )
    if same_place(volume.affine, reference.affine, volume.shape):
        return
    raise DataError(
        path,
        f"has another affine than {other}: {affine_difference(volume, reference)}",
        "Resample it, or copy the affine if you know that only the header is wrong",
    )


def affine_difference(volume: Volume, reference: Volume) -> str:
    """Say which of spacing, direction and origin sets two grids of one shape apart, spacing first.

    Example:
        >>> thin, thick = (Volume(np.zeros((1, 2, 2, 2)), np.diag([1.0, 1.0, z, 1.0])) for z in (1, 5))
        >>> affine_difference(thin, thick)
        'spacing (1, 1, 1) mm, expected (1, 1, 5) mm'
    """
    ours, theirs = volume.affine, reference.affine
    if not np.allclose(volume.spacing_mm, reference.spacing_mm, rtol=1e-3):
        return f"spacing {_triple(volume.spacing_mm)} mm, expected {_triple(reference.spacing_mm)} mm"
    if volume.orientation != reference.orientation:
        return f"direction {volume.orientation}, expected {reference.orientation}"
    cosines = np.clip((ours[:3, :3] * theirs[:3, :3]).sum(0) / (ours[:3, :3] ** 2).sum(0), -1, 1)
    if not np.allclose(cosines, 1, atol=1e-4):
        return f"direction turned by {np.degrees(np.arccos(cosines.min())):.2g} degrees"
    return f"origin {_triple(ours[:3, 3])} mm, expected {_triple(theirs[:3, 3])} mm"


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
    meaning = source.meaning if source else None
    return Case(files.id, files.images, files.label, patient, annotated, files.dataset, meaning)


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
    for path in (*files.images, *([files.label] if files.label else [])):
        if not is_there(path):
            raise DataError(path, f"{why_absent(path)}, {file.name} needs it for case {files.id!r}", files.remedy)


def why_absent(path: Path) -> str:
    """What is there in place of a file, as the end of a sentence.

    Example:
        >>> why_absent(Path("nowhere.nii.gz"))
        'is missing'
    """
    if path.is_dir():
        return "is a folder, though it is named like a file"
    if path.is_symlink():
        return f"is missing: a link leads to {os.readlink(path)}, where there is none"
    return "is missing"


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


def _triple(numbers: Any) -> str:
    return "(" + ", ".join(f"{float(n):.4g}" for n in numbers) + ")"
