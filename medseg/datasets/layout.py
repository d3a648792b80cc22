"""Which files belong to which case: the Decathlon's lists, nnU-Net's channel files, BIDS, files matched by name."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.datasets.bids import derivative_folder, find_images, find_labels
from medseg.datasets.files import Files, checked_pattern, several, with_raters
from medseg.datasets.manifest import Manifest, suffixes_of
from medseg.datasets.names import Channels, apart, by_channel, by_suffix, composed, existing, single, spellings, volumes
from medseg.datasets.patterns import fill, find_files, pattern_of
from medseg.errors import DataError, listed
from medseg.space.reading import ENDINGS, case_name, is_there

_log = logging.getLogger(__name__)


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
    spellings.cache_clear()
    if "channel_names" in manifest.content:
        training, test = _nnunet(root, manifest)
    elif "derivative" in manifest.content:
        training, test = _bids(manifest)
    elif "training" in manifest.content:
        training, test = _decathlon(root, manifest)
    elif "image" in manifest.content:
        training, test = _patterned(root, manifest)
    else:
        training, test = _plain(root, manifest)
    training, test = (sorted(part, key=lambda files: files.id) for part in (training, test))
    return with_raters(root, manifest, training), test


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
    images, drawn, weight = several(table.get("image")), several(table.get("label") or []), table.get("weight")
    named, told = (
        [*images, *drawn, *([] if weight is None else [weight])],
        [*map(table.get, ("case", "dataset"), ("", ""))],
    )
    if not images or not all(isinstance(name, str) and name for name in named) or not all(map(_is_text, told)):
        raise DataError(
            manifest.file,
            f'has the entry {entry!r} under "{key}"',
            'Write it as {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}',
        )
    paths = tuple(existing(root / _slashed(name)) for name in images)
    masks = [existing(root / _slashed(name)) for name in drawn]
    mask = masks[0] if masks else None
    case = composed(told[0]) or case_name(mask or paths[0])
    if len(paths) == 1 and not is_there(paths[0]):
        paths = _channel_files(paths[0], len(manifest.modalities)) or paths
    merged = "Put it back where it was, or run medseg merge again" if told[1] else ""
    return Files(
        id=case,
        images=paths,
        label=mask,
        remedy=merged or f'Add the file, or remove the entry from "{key}" in {manifest.file.name}',
        raters=tuple(masks[1:]),
        weight=existing(root / _slashed(weight)) if weight else None,
        dataset=told[1],
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _slashed(name: str) -> str:
    """A path as lists made on Windows write it, too."""
    return name.replace("\\", "/")


def _is_apple_double(entry: Any) -> bool:
    name = entry.get("image") if isinstance(entry, dict) else entry
    return isinstance(name, str) and Path(name).name.startswith("._")


def _channel_files(image: Path, channels: int) -> tuple[Path, ...]:
    """Older nnU-Net lists name ``a.nii.gz`` where the files are called ``a_0000.nii.gz``, ``a_0001.nii.gz``."""
    ending = next((ending for ending in ENDINGS if image.name.endswith(ending)), "")
    stem = image.name.removesuffix(ending)
    numbered = (image.with_name(f"{stem}_{number:04d}{ending}") for number in range(channels))
    return tuple(path for path in numbered if path.is_file())


def _distinct(entries: list[Files]) -> list[Files]:
    """Where file names repeat (``case_1/image.nii.gz``, ``case_2/image.nii.gz``) the folder tells cases apart."""
    times = Counter(entry.id for entry in entries)
    if max(times.values(), default=1) == 1:
        return entries
    renamed = [
        replace(entry, id=(entry.label or entry.images[0]).parent.name) if times[entry.id] > 1 else entry
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
        drawn = several(entry.get("label")) if isinstance(entry, dict) else []
        if not isinstance(images, list) or not images or not drawn or not all(isinstance(one, str) for one in drawn):
            raise DataError(
                manifest.file,
                f'has the entry {entry!r} for case {case!r} under "dataset"',
                'Write it as {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}',
            )
        remedy = f'Add the file, or remove case {case!r} from "dataset"'
        paths = tuple(existing(root / str(image)) for image in images)
        label, *raters = (existing(root / one) for one in drawn)
        weight = existing(root / str(entry["weight"])) if "weight" in entry else None
        listed.append(Files(composed(case), paths, label, remedy, tuple(raters), weight))
    return listed


def _nnunet_folder(root: Path, manifest: Manifest, part: str, endings: Sequence[str]) -> list[Files]:
    folder, needs_label = root / f"labels{part}", part == "Tr"
    if needs_label and "label_folder" in manifest.content:
        folder = existing(root / str(several(manifest.content["label_folder"])[0]))
    scans = volumes(root / f"images{part}", endings)
    if needs_label and scans and not folder.is_dir():
        remedy = f"Put the labels of images{part} there; images that are only to be predicted belong in imagesTs"
        raise DataError(folder, "is missing", remedy)
    labels = single(by_suffix(volumes(folder, endings, labels=True))) if needs_label or folder.is_dir() else {}
    channels: Channels = {}
    for path in scans:
        case, number = _numbered(path, labels)
        channels.setdefault(case, {}).setdefault(number, []).append(path)
    images = single(channels)
    one_file = max(map(len, images.values()), default=1) == 1  # per case, perhaps with all channels in it
    numbers = range(1 if one_file else len(manifest.modalities))
    return [
        Files(
            case,
            _channels(images.get(case, {}), root / f"images{part}" / case, numbers, endings[0]),
            labels[case][0] if case in labels else folder / f"{case}{endings[0]}" if needs_label else None,
            "Add it, or remove the other files of this case",
        )
        for case in sorted(set(images) | set(labels))
    ]


def _numbered(path: Path, labels: Collection[str]) -> tuple[str, int]:
    """The case and the channel of an image, as nnU-Net names it."""
    name = case_name(path)
    found = re.fullmatch(r"(.+)_(\d{4})", name)
    if found is not None and (name not in labels or found[1] in labels):
        return found[1], int(found[2])
    raise DataError(
        path,
        'has no channel number, though dataset.json has "channel_names" as nnU-Net\'s raw layout has',
        f'Call it {name}_0000..., or declare "modality" instead of "channel_names"',
    )


def _channels(found: dict[int, Path], stem: Path, numbers: Sequence[int], ending: str) -> tuple[Path, ...]:
    """The files of a case in the order of their numbers, with the names of those that should be there and are not."""
    expected = {number: stem.with_name(f"{stem.name}_{number:04d}{ending}") for number in numbers}
    return tuple(path for _, path in sorted((expected | found).items()))


def _bids(manifest: Manifest) -> FilesOfDataset:
    content, file = manifest.content, manifest.file
    images = find_images(file, suffixes := suffixes_of(file, content))
    folder = derivative_folder(file, content["derivative"])
    labels = find_labels(file, folder, str(content.get("label_suffix", "")), images)
    weights = dict[str, list[Path]]()
    if "weight_suffix" in content:
        weights = find_labels(file, folder, str(content["weight_suffix"]), images, key="weight_suffix")
        if doubled := [paths for paths in weights.values() if len(paths) > 1]:
            problem = f"and {doubled[0][1].name} could both be the weight map of one case"
            raise DataError(doubled[0][0], problem, 'Say how their names end, such as "weight_suffix": "desc-a_weight"')
        maps = {path for paths in weights.values() for path in paths}
        labels = {
            case: kept for case, paths in labels.items() if (kept := [path for path in paths if path not in maps])
        }
    for case, drawn in labels.items():
        if len(drawn) > 1 and manifest.raters is None:
            remedy = 'Say how their names end, such as "label_suffix": "desc-manual_dseg", or how they agree: "raters"'
            raise DataError(drawn[0], f"and {drawn[1].name} could both be the label of {case}", remedy)
    training, test = list[Files](), list[Files]()
    for case, channels in images.items():
        like = next(iter(channels.values()))
        ending = like.name.removeprefix(case_name(like))
        expected = {number: like.with_name(f"{case}_{suffix}{ending}") for number, suffix in enumerate(suffixes)}
        paths = tuple((expected | channels)[number] for number in expected)
        remedy = "Add it, or take the other files of this session away"
        if case not in labels:
            test.append(Files(case, paths, None, remedy))
            continue
        (label, *raters), weight = labels[case], weights[case][0] if case in weights else None
        training.append(Files(case, paths, label, remedy, tuple(raters), weight))
    return training, test


def _patterned(root: Path, manifest: Manifest) -> FilesOfDataset:
    patterns = {key: several(manifest.content.get(key) or "")[0] for key in ("image", "label", "test_image")}
    image, label, test = (checked_pattern(manifest, key, pattern) for key, pattern in patterns.items())
    if not image or not label:
        raise DataError(
            manifest.file,
            f'lacks "{"label" if image else "image"}", the pattern of the paths',
            'Write both, such as "image": "{case}/ct.nii.gz", "label": "{case}/organs.nii.gz"',
        )
    scans = find_files(root, image, manifest.modalities)
    if not scans:
        remedy = "Compare it with the path of a file; {case} stands for what differs from case to case"
        raise DataError(manifest.file, f'finds no file that fits "image": "{image}"', remedy)
    images, labels = map(single, apart(scans, find_files(root, label, labels=True)))
    if "*" in image:  # which also finds what was not meant
        nobodys = sorted(set(images) - set(labels))
        if nobodys and labels:
            _log.warning("%s: %d images without a label left out: %s", manifest.file, len(nobodys), listed(nobodys))
            images = {case: files for case, files in images.items() if case in labels}
    training = [_fitted(root, manifest, (image, label), images, labels, case) for case in set(images) | set(labels)]
    tests = single(find_files(root, test, manifest.modalities)) if test else {}
    return training, [_fitted(root, manifest, (test, ""), tests, {}, case) for case in tests]


def _fitted(
    root: Path,
    manifest: Manifest,
    patterns: tuple[str, str],
    images: dict[str, dict[int, Path]],
    labels: dict[str, dict[int, Path]],
    case: str,
) -> Files:
    image, label = patterns
    names = manifest.modalities if "{modality}" in image else ("",)
    expected = {index: root / fill(image, case, name) for index, name in enumerate(names)}
    return Files(
        case,
        tuple(path for _, path in sorted((expected | images.get(case, {})).items())),
        labels.get(case, {0: root / fill(label, case)})[0] if label else None,
        'Add it, or correct the patterns in dataset.json; images without labels belong under "test_image"',
    )


def _ending(labels: dict[int, Path] | None) -> str:
    """That of an image that should be there: what is drawn on a series belongs to a folder."""
    return "" if labels and labels[0].name.endswith(".dcm") else ".nii.gz"


def _plain(root: Path, manifest: Manifest) -> FilesOfDataset:
    content = manifest.content
    image_folder = _folder(root, manifest, "image_folder", ("images", "imagesTr"))
    label_folder = _folder(root, manifest, "label_folder", ("labels", "labelsTr"))
    suffix = composed(str(content.get("label_suffix", "")))
    images, labels = _pairs(manifest, image_folder, label_folder, suffix)
    remedy = (
        'Add it; if the names differ by an ending, state it as "label_suffix" in dataset.json; images without labels '
        'belong in a "test_folder"'
    )
    training = [
        Files(
            case,
            tuple(images.get(case, {0: image_folder / f"{case}{_ending(labels.get(case))}"}).values()),
            labels.get(case, {0: label_folder / f"{case}{suffix}.nii.gz"})[0],
            remedy,
        )
        for case in set(images) | set(labels)
    ]
    test_folder = existing(root / str(content.get("test_folder", "imagesTs")))
    if "test_folder" not in content and not test_folder.is_dir():
        return training, []
    test = single(by_channel(volumes(test_folder), manifest.modalities))
    return training, [Files(case, tuple(files.values()), None, remedy) for case, files in test.items()]


def _pairs(
    manifest: Manifest, image_folder: Path, label_folder: Path, suffix: str
) -> tuple[dict[str, dict[int, Path]], dict[str, dict[int, Path]]]:
    """The images and the labels of two folders, which may be one where labels have a suffix."""
    scans, masks = volumes(image_folder), by_suffix(volumes(label_folder, labels=True), suffix)
    images = by_channel(scans, manifest.modalities, cases=masks)
    if image_folder.resolve() == label_folder.resolve():
        if not suffix:
            remedy = 'Say what ends the names of the labels, such as "label_suffix": "_seg", or name two folders'
            raise DataError(manifest.file, f"names {image_folder.name} for images and for labels", remedy)
        images, masks = apart(images, masks)
    found, labels = single(images), single(masks)
    if found and labels and not set(found) & set(labels):
        raise _another_rule(manifest, scans, [files[0] for files in labels.values()])
    return found, labels


def _another_rule(manifest: Manifest, scans: Sequence[Path], masks: Sequence[Path]) -> DataError:
    """Names of which none is in both folders follow a rule of their own."""
    root = manifest.file.parent
    told = []
    for paths, others in ((scans, masks), (masks, scans)):
        folder = os.path.relpath(paths[0].parent, root)
        ending = next((ending for ending in ENDINGS if paths[0].name.endswith(ending)), "")
        told.append(pattern_of(folder, [*map(case_name, paths)], [*map(case_name, others)], ending))
    seen = (f"{paths[0].name} in {os.path.relpath(paths[0].parent, root)}" for paths in (scans, masks))
    problem = f"finds no label for any image: {', '.join(seen)}"
    return DataError(manifest.file, problem, f'Say how they are called: "image": "{told[0]}", "label": "{told[1]}"')


def _folder(root: Path, manifest: Manifest, key: str, defaults: tuple[str, ...]) -> Path:
    if key in manifest.content:
        return existing(root / str((several(manifest.content[key]) or [""])[0]))
    found = next((root / name for name in defaults if (root / name).is_dir()), None)
    if found is None:
        raise DataError(
            manifest.file,
            f'lists no "training" cases and there is no folder {" or ".join(defaults)} beside it',
            f'Name the folder, "{key}": "...", or say how the files are called, such as "image": '
            '"{case}/ct.nii.gz", "label": "{case}/organs.nii.gz"',
        )
    return found
