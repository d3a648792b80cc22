"""What a file is called: whose case it is and which channel of it. Every command asks here, so all find the same files.

A name is compared in Unicode's composed form (NFC), for macOS unpacks an accent apart from its letter. Where two files
could both be meant, neither is picked.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from medseg.errors import DataError
from medseg.space.reading import ENDINGS, case_name, images_in, masks_of

Channels = dict[str, dict[int, list[Path]]]
"""Case -> channel -> the files that could be it, one unless something is wrong."""


def composed(text: str) -> str:
    r"""A name in the form in which names are compared.

    Example:
        >>> composed("Zoe\u0308") == "Zo\xeb"
        True
    """
    return unicodedata.normalize("NFC", text)


def existing(path: Path) -> Path:
    """The path as the disk spells it, where the same letters are encoded otherwise; itself where there is none."""
    if str(path).isascii() or path.exists():
        return path
    folder = existing(path.parent)
    twins = spellings(folder).get(composed(path.name), ()) if folder.is_dir() else ()
    return folder / (twins[0] if len(twins) == 1 else path.name)


@lru_cache(maxsize=32)
def spellings(folder: Path) -> dict[str, list[str]]:
    """Composed name -> names of a folder, read once for all its files; whoever begins anew clears the cache."""
    spelt: dict[str, list[str]] = {}
    for entry in os.listdir(folder):
        spelt.setdefault(composed(entry), []).append(entry)
    return spelt


def volumes(folder: Path, endings: Sequence[str] = ENDINGS, *, labels: bool = False) -> list[Path]:
    """The images of a folder with one of these endings and its DICOM series, sorted; what is hidden is left out.

    Where a folder of labels holds no other, its folders with a mask per organ are meant.

    Args:
        folder: Where they lie.
        endings: Of files of voxels.
        labels: Take segmentation objects and structure sets, too.

    Raises:
        DataError: The folder is missing, or an ending has capitals.
    """
    if not folder.is_dir():
        raise DataError(folder, "is missing", "Check the path, or name the folder in dataset.json")
    other = (path for path in images_in(folder, objects=labels) if not path.name.endswith(ENDINGS))
    voxels = (path for path in images_in(folder) if path.name.endswith(tuple(endings)))
    found = sorted([*voxels, *other])
    return found or sorted(path for path in folder.iterdir() if labels and path.name[:1] != "." and masks_of(path))


def by_suffix(paths: Iterable[Path], suffix: str = "") -> Channels:
    """Sort label files by case; those whose name lacks the suffix are left out.

    Example:
        >>> by_suffix([Path("a.nii"), Path("a-seg.nii")], "-seg")
        {'a': {0: [PosixPath('a-seg.nii')]}}
    """
    suffix = composed(suffix)
    found: Channels = {}
    for path in paths:
        name = case_name(path)
        if name.endswith(suffix) and name != suffix:
            found.setdefault(name.removesuffix(suffix), {0: []})[0].append(path)
    return found


def by_channel(paths: Iterable[Path], modalities: Sequence[str], *, cases: Collection[str] = ()) -> Channels:
    """Sort images by case and channel.

    ``_0000``, ``_0001`` or the longest fitting name of a modality may end the name of a file that holds one channel. A
    number is a part of the case's own name where some case is known by the whole of it, or where files of equal
    beginning have numbers that no channel has (``word_0002``, ``word_0003``).

    Args:
        paths: Of images.
        modalities: Names of the channels.
        cases: Names that are known to be cases', such as those of the labels.

    Example:
        >>> names = ("a_0000.nii.gz", "a_0001.nii.gz", "b_T1_Gd.nii", "w_0000.nii", "w_0002.nii")
        >>> {case: list(files) for case, files in by_channel(map(Path, names), ("T1", "T1_Gd")).items()}
        {'a': [0, 1], 'b': [1], 'w_0000': [0], 'w_0002': [0]}
    """
    files = [(case_name(path), path) for path in paths]
    numbered = {name: (found[1], int(found[2])) for name, _ in files if (found := re.fullmatch(r"(.+)_(\d{4})", name))}
    own = {stem for stem, number in numbered.values() if number >= len(modalities)}
    endings = {f"_{composed(name)}": index for index, name in enumerate(modalities)} if len(modalities) > 1 else {}
    sorted_: Channels = {}
    for name, path in files:
        stem, channel = numbered.get(name, (name, 0))
        if name in cases or stem in own:
            stem, channel = name, 0
        ending = max((ending for ending in endings if name.endswith(ending)), key=len, default="")
        if ending and name not in cases and name != ending:
            stem, channel = name.removesuffix(ending), endings[ending]
        sorted_.setdefault(stem, {}).setdefault(channel, []).append(path)
    return dict(sorted(sorted_.items()))


def single(channels: Channels) -> dict[str, dict[int, Path]]:
    """Case -> channel -> its only file.

    Raises:
        DataError: Two files could both be meant.
    """
    for case, files in channels.items():
        for channel, several in files.items():
            if len(several) > 1:
                which = f"channel {channel} of case {case}" if len(files) > 1 else f"case {case}"
                raise DataError(several[0], f"and {several[1].name} could both be {which}", "Keep one of the two")
    return {case: {channel: files[channel][0] for channel in sorted(files)} for case, files in channels.items()}


def apart(images: Channels, labels: Channels) -> tuple[Channels, Channels]:
    """Tell labels from images that lie beside them, where the names of both look alike but for an ending.

    What could be both is a label where its case has an image, and an image where its case has a label.

    Raises:
        DataError: A file could still be both.

    Example:
        >>> files = [Path(f"{name}.nii") for name in ("a", "a_gt", "b")]
        >>> images, labels = apart(by_channel(files, ("CT",)), by_suffix(files, "_gt"))
        >>> list(images), list(labels)
        (['a', 'b'], ['a'])
    """
    case_of_image, case_of_label = _case_of(images), _case_of(labels)
    never: dict[str, set[Path]] = {"image": set(), "label": set()}
    for path in sorted(set(case_of_image) & set(case_of_label)):
        labelled, imaged = case_of_label[path], case_of_image[path]
        has_image = any(other != path for files in images.get(labelled, {}).values() for other in files)
        has_label = any(other != path for files in labels.get(imaged, {}).values() for other in files)
        if has_image and has_label:
            problem = f"could be the label of {labelled} and the image of {imaged}"
            raise DataError(path, problem, "Keep images and labels in folders of their own")
        never["label" if has_label else "image"].add(path)
    return _without(images, never["image"]), _without(labels, never["label"])


def _case_of(channels: Channels) -> dict[Path, str]:
    return {path: case for case, files in channels.items() for several in files.values() for path in several}


def _without(channels: Channels, gone: Collection[Path]) -> Channels:
    left: Channels = {}
    for case, files in channels.items():
        for channel, several in files.items():
            if kept := [path for path in several if path not in gone]:
                left.setdefault(case, {})[channel] = kept
    return left


def names_of(case: str, images: Sequence[Path], label: Path | None, modalities: Sequence[str]) -> set[str]:
    """All that a prediction of a case may be called: by the case, by its image as `medseg predict` does, by its label.

    Example:
        >>> sorted(names_of("7", [Path("volume-7_0000.nii.gz")], Path("segmentation-7.nii.gz"), ("CT",)))
        ['7', 'segmentation-7', 'volume-7', 'volume-7_0000']
    """
    alone = {case_name(image) for image in images} if len(images) == 1 else set()
    together = by_channel(images, modalities)
    return {case, *alone, *(together if len(together) == 1 else ()), *({case_name(label)} if label else ())}
