"""Which files belong to which case: the Decathlon's lists, nnU-Net's channel files, files matched by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from medseg.datasets.manifest import Manifest
from medseg.datasets.patterns import FIELDS, fill, find_files, mistake_in, pattern_of
from medseg.errors import DataError
from medseg.space.reading import ENDINGS, case_name, images_in, is_there


@dataclass(frozen=True)
class Files:
    """The files of one case before anything but their names is known, and what to do if one is missing."""

    id: str
    images: tuple[Path, ...]
    label: Path | None
    remedy: str


FilesOfDataset = tuple[list[Files], list[Files]]
"""Labelled cases, and cases to predict."""


def list_files(root: Path, manifest: Manifest) -> FilesOfDataset:
    """Find the files of every case, sorted by case id.

    Args:
        root: The folder that the description lies in.
        manifest: The description; its content decides the dialect.

    Raises:
        DataError: A list entry makes no sense, a folder is missing, or the files are no images.
    """
    if "channel_names" in manifest.content:
        training, test = _nnunet(root, manifest)
    elif "training" in manifest.content:
        training, test = _decathlon(root, manifest)
    elif "image" in manifest.content:
        training, test = _patterned(root, manifest)
    else:
        training, test = _plain(root, manifest)
    return sorted(training, key=lambda files: files.id), sorted(test, key=lambda files: files.id)


def _decathlon(root: Path, manifest: Manifest) -> FilesOfDataset:
    training = _entries(root, manifest, "training")
    for entry in training:
        if entry.label is None:
            raise DataError(
                manifest.file,
                f'lists {entry.images[0].name} under "training" without a label',
                'Name its label, or move the entry to "test"',
            )
    test = [entry for entry in _entries(root, manifest, "test") if entry.images[0].parent.is_dir()]
    return _distinct(training), _distinct(test)


def _entries(root: Path, manifest: Manifest, key: str) -> list[Files]:
    entries = manifest.content.get(key, [])
    if not isinstance(entries, list):
        raise DataError(
            manifest.file, f'has a "{key}" that is {type(entries).__name__}, not a list', "Write it as a list"
        )
    return [_entry(root, manifest, key, entry) for entry in entries if not _is_apple_double(entry)]


def _entry(root: Path, manifest: Manifest, key: str, entry: Any) -> Files:
    table = entry if isinstance(entry, dict) else {"image": entry}
    images, label = table.get("image"), table.get("label")
    names = [name for name in (images if isinstance(images, list) else [images]) if isinstance(name, str) and name]
    complete = len(names) == (len(images) if isinstance(images, list) else 1)
    if not names or not complete or not isinstance(label, (str, type(None))):
        raise DataError(
            manifest.file,
            f'has the entry {entry!r} under "{key}"',
            'Write it as {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}',
        )
    names, label = [_slashed(name) for name in names], _slashed(label) if label else None
    paths = tuple(root / name for name in names)
    if len(paths) == 1 and not is_there(paths[0]):
        paths = _channel_files(paths[0]) or paths
    return Files(
        id=case_name(root / (label or names[0])),
        images=paths,
        label=root / label if label else None,
        remedy=f'Add the file, or remove the entry from "{key}" in {manifest.file.name}',
    )


def _slashed(name: str) -> str:
    """A path as lists made on Windows write it, too."""
    return name.replace("\\", "/")


def _is_apple_double(entry: Any) -> bool:
    name = entry.get("image") if isinstance(entry, dict) else entry
    return isinstance(name, str) and Path(name).name.startswith("._")


def _channel_files(image: Path) -> tuple[Path, ...]:
    """Older nnU-Net lists name ``a.nii.gz`` where the files are called ``a_0000.nii.gz``, ``a_0001.nii.gz``."""
    ending = image.name[len(case_name(image)) :]
    return tuple(sorted(image.parent.glob(f"{_escape(case_name(image))}_[0-9][0-9][0-9][0-9]{ending}")))


def _escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _distinct(entries: list[Files]) -> list[Files]:
    """Where file names repeat (``case_1/image.nii.gz``, ``case_2/image.nii.gz``) the folder tells cases apart."""
    times = Counter(entry.id for entry in entries)
    if max(times.values(), default=1) == 1:
        return entries
    renamed = [
        Files((entry.label or entry.images[0]).parent.name, entry.images, entry.label, entry.remedy)
        if times[entry.id] > 1
        else entry
        for entry in entries
    ]
    return renamed if len({entry.id for entry in renamed}) == len(entries) else entries


def _nnunet(root: Path, manifest: Manifest) -> FilesOfDataset:
    ending = manifest.content.get("file_ending")
    if ending is not None and ending not in ENDINGS:
        remedy = f'Convert them, and write one of {", ".join(ENDINGS)} as "file_ending"'
        raise DataError(manifest.file, f"declares files ending in {ending!r}", remedy)
    if isinstance(manifest.content.get("dataset"), dict):
        return _nnunet_listed(root, manifest, manifest.content["dataset"]), []
    endings = (ending,) if ending else ENDINGS
    test = _nnunet_folder(root, manifest, "Ts", endings) if (root / "imagesTs").is_dir() else []
    if test and not (root / "imagesTr").is_dir():
        return [], test
    return _nnunet_folder(root, manifest, "Tr", endings), test


def _nnunet_listed(root: Path, manifest: Manifest, table: dict[str, Any]) -> list[Files]:
    listed = []
    for case, entry in table.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not images or not isinstance(label, str):
            raise DataError(
                manifest.file,
                f'has the entry {entry!r} for case {case!r} under "dataset"',
                'Write it as {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}',
            )
        remedy = f'Add the file, or remove case {case!r} from "dataset"'
        listed.append(Files(case, tuple(root / str(image) for image in images), root / label, remedy))
    return listed


def _nnunet_folder(root: Path, manifest: Manifest, part: str, endings: Sequence[str]) -> list[Files]:
    images: dict[str, dict[int, Path]] = {}
    for path in _volumes(root / f"images{part}", endings):
        found = re.fullmatch(r"(.+)_(\d{4})", case_name(path))
        if found is None:
            raise DataError(
                path,
                'has no channel number, though dataset.json has "channel_names" as nnU-Net\'s raw layout has',
                'Call it ..._0000.nii.gz, or declare "modality" instead of "channel_names"',
            )
        images.setdefault(found.group(1), {})[int(found.group(2))] = path
    folder, needs_label = root / f"labels{part}", part == "Tr"
    if needs_label and images and not folder.is_dir():
        remedy = f"Put the labels of images{part} there; images that are only to be predicted belong in imagesTs"
        raise DataError(folder, "is missing", remedy)
    labels = {case_name(path): path for path in _volumes(folder, endings)} if needs_label or folder.is_dir() else {}
    one_file = max(map(len, images.values()), default=1) == 1  # per case, perhaps with all channels in it
    numbers = range(1 if one_file else len(manifest.modalities))
    return [
        Files(
            case,
            _channels(images.get(case, {}), root / f"images{part}" / case, numbers, endings[0]),
            labels.get(case) or (folder / f"{case}{endings[0]}" if needs_label else None),
            "Add it, or remove the other files of this case",
        )
        for case in sorted(set(images) | set(labels))
    ]


def _channels(found: dict[int, Path], stem: Path, numbers: Sequence[int], ending: str) -> tuple[Path, ...]:
    """The files of a case in the order of their numbers, with the names of those that should be there and are not."""
    expected = {number: stem.with_name(f"{stem.name}_{number:04d}{ending}") for number in numbers}
    return tuple(path for _, path in sorted((expected | found).items()))


def _patterned(root: Path, manifest: Manifest) -> FilesOfDataset:
    image, label, test = (_pattern(manifest, key) for key in ("image", "label", "test_image"))
    if not image or not label:
        raise DataError(
            manifest.file,
            f'lacks "{"label" if image else "image"}", the pattern of the paths',
            'Write both, such as "image": "{case}/ct.nii.gz", "label": "{case}/organs.nii.gz"',
        )
    images = find_files(root, image, manifest.modalities)
    if not images:
        remedy = "Compare it with the path of a file; {case} stands for what differs from case to case"
        raise DataError(manifest.file, f'finds no file that fits "image": "{image}"', remedy)
    labels = {case: files[0] for case, files in find_files(root, label).items()}
    training = [_fitted(root, manifest, (image, label), images, labels, case) for case in set(images) | set(labels)]
    tests = find_files(root, test, manifest.modalities) if test else {}
    return training, [_fitted(root, manifest, (test, ""), tests, {}, case) for case in tests]


def _pattern(manifest: Manifest, key: str) -> str:
    pattern = manifest.content.get(key, "")
    fields = FIELDS if key != "label" else FIELDS[:1]
    if pattern != "" and (mistake := mistake_in(pattern, fields=fields)):
        legal = " and ".join(f"{{{name}}}" for name in fields)
        raise DataError(manifest.file, f'has a "{key}" that {mistake}', f"Write a path with {legal} in it")
    return str(pattern).removeprefix("./")


def _fitted(
    root: Path,
    manifest: Manifest,
    patterns: tuple[str, str],
    images: dict[str, dict[int, Path]],
    labels: dict[str, Path],
    case: str,
) -> Files:
    image, label = patterns
    names = manifest.modalities if "{modality}" in image else ("",)
    expected = {index: root / fill(image, case, name) for index, name in enumerate(names)}
    return Files(
        case,
        tuple(path for _, path in sorted((expected | images.get(case, {})).items())),
        labels.get(case, root / fill(label, case)) if label else None,
        'Add it, or correct the patterns in dataset.json; images without labels belong under "test_image"',
    )


def _plain(root: Path, manifest: Manifest) -> FilesOfDataset:
    content = manifest.content
    image_folder = _folder(root, manifest, "image_folder", ("images", "imagesTr"))
    label_folder = _folder(root, manifest, "label_folder", ("labels", "labelsTr"))
    suffix = str(content.get("label_suffix", ""))
    images = images_by_name(image_folder, manifest.modalities)
    labels = {_without(case_name(path), suffix): path for path in _volumes(label_folder)}
    _require_pairs(manifest, (image_folder, images), (label_folder, labels))
    remedy = (
        'Add it; if the names differ by an ending, state it as "label_suffix" in dataset.json; images without labels '
        'belong in a "test_folder"'
    )
    training = [
        Files(
            case,
            images.get(case) or (image_folder / f"{case}.nii.gz",),
            labels.get(case, label_folder / f"{case}{suffix}.nii.gz"),
            remedy,
        )
        for case in sorted(set(images) | set(labels))
    ]
    test_folder = root / str(content.get("test_folder", "imagesTs"))
    if "test_folder" not in content and not test_folder.is_dir():
        return training, []
    test = images_by_name(test_folder, manifest.modalities)
    return training, [Files(case, files, None, remedy) for case, files in test.items()]


def _require_pairs(
    manifest: Manifest, images: tuple[Path, dict[str, tuple[Path, ...]]], labels: tuple[Path, dict[str, Path]]
) -> None:
    """Names of which none is in both folders follow a rule of their own."""
    (image_folder, scans), (label_folder, masks) = images, labels
    if not scans or not masks or set(scans) & set(masks):
        return
    scan, mask = min(scans), min(masks)
    ends = scans[scan][0].name[len(scan) :], masks[mask].name[len(case_name(masks[mask])) :]
    root = manifest.file.parent
    folders = [os.path.relpath(folder, root) for folder in (image_folder, label_folder)]
    raw = [case_name(path) for path in masks.values()]
    told = pattern_of(folders[0], list(scans), raw, ends[0]), pattern_of(folders[1], raw, list(scans), ends[1])
    raise DataError(
        manifest.file,
        f"finds no label for any image: {scans[scan][0].name} in {folders[0]}, {masks[mask].name} in {folders[1]}",
        f'Say how they are called: "image": "{told[0]}", "label": "{told[1]}"',
    )


def _folder(root: Path, manifest: Manifest, key: str, defaults: tuple[str, ...]) -> Path:
    if key in manifest.content:
        return root / str(manifest.content[key])
    found = next((root / name for name in defaults if (root / name).is_dir()), None)
    if found is None:
        raise DataError(
            manifest.file,
            f'lists no "training" cases and there is no folder {" or ".join(defaults)} beside it',
            f'Name the folder, "{key}": "...", or say how the files are called, such as "image": '
            '"{case}/ct.nii.gz", "label": "{case}/organs.nii.gz"',
        )
    return found


def images_by_name(
    folder: Path, modalities: tuple[str, ...], *, leave_out: Collection[Path] = ()
) -> dict[str, tuple[Path, ...]]:
    """Group files by case; ``_0000`` or the modality's own name may end the name of a file that holds one channel.

    Raises:
        DataError: The folder is missing, or two files could be the same channel of a case.
    """
    cases: dict[str, dict[int, Path]] = {}
    for path in _volumes(folder, leave_out=leave_out):
        case, channel = channel_of(path, modalities)
        other = cases.setdefault(case, {}).setdefault(channel, path)
        if other != path:
            raise DataError(path, f"and {other.name} could both be channel {channel} of {case}", "Keep one of the two")
    return {case: tuple(files[index] for index in sorted(files)) for case, files in sorted(cases.items())}


def channel_of(path: Path, modalities: tuple[str, ...]) -> tuple[str, int]:
    """Which case an image belongs to by its name, and which of its channels it is, or begins with.

    Example:
        >>> channel_of(Path("a_0001.nii.gz"), ("T1", "T2")), channel_of(Path("b_T2.nii"), ("T1", "T2"))
        (('a', 1), ('b', 1))
    """
    order = {f"_{index:04d}": index for index in range(len(modalities))}
    if len(modalities) > 1:
        order |= {f"_{name}": index for index, name in enumerate(modalities)}
    name = case_name(path)
    ending = next((ending for ending in order if name.endswith(ending)), "")
    return _without(name, ending), order.get(ending, 0)


def _without(name: str, ending: str) -> str:
    return name[: -len(ending)] if ending and name.endswith(ending) else name


def _volumes(folder: Path, endings: Sequence[str] = ENDINGS, leave_out: Collection[Path] = ()) -> list[Path]:
    """The images of a folder with one of these endings and its DICOM series; no two of one name."""
    if not folder.is_dir():
        raise DataError(folder, "is missing", "Check the dataset's path, or name the folder in dataset.json")
    found = [path for path in images_in(folder) if path.name.endswith(tuple(endings)) or path.is_dir()]
    found = [path for path in found if path not in leave_out]
    for one, other in pairwise(found):
        if case_name(one) == case_name(other):
            raise DataError(one, f"lies beside {other.name}: either could be meant", "Keep one of the two")
    return found
