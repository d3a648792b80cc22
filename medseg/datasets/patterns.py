"""Files found by a pattern of their paths, such as ``{case}/{case}_{modality}.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from medseg.datasets.names import Channels, composed
from medseg.space.reading import is_image, is_there, masks_of

_FIELD = re.compile(r"\{(.*?)\}")
FIELDS = ("case", "modality")


def mistake_in(pattern: object, *, fields: Sequence[str] = FIELDS) -> str:
    """What keeps a pattern from being one, as the end of a sentence; empty if nothing does.

    Example:
        >>> mistake_in("{case}/ct.nii.gz"), mistake_in("{patient}/ct.nii.gz")
        ('', 'has the field {patient}')
    """
    if not isinstance(pattern, str):
        return f"is {type(pattern).__name__}, not text"
    strays = [name for name in _FIELD.findall(pattern) if name not in fields]
    if strays:
        return f"has the field {{{strays[0]}}}"
    if "{case}" not in pattern:
        return "lacks {case}"
    if "**" in pattern:
        return "has **, where * stands for one folder each"
    if PurePosixPath(pattern).is_absolute() or "\0" in pattern:
        return "does not begin at the folder of the dataset"
    return ""


def find_files(root: Path, pattern: str, modalities: Sequence[str] = (), *, labels: bool = False) -> Channels:
    """Find the files whose path fits a pattern.

    Args:
        root: Where the pattern begins.
        pattern: A path with ``{case}``, which stands for any text without a slash, the same in every place, and perhaps
            ``{modality}``, which stands for a modality's name, the longest that fits, or its number in four digits;
            ``*`` stands for any text without a slash, such as the session of a BIDS folder.
        modalities: Their names, in order.
        labels: Take what only a label may be, too: a folder with a mask per organ.

    Returns:
        Case to modality's number to files; 0 where the pattern has no modality. Hidden files and folders are left out.
    """
    names = {f"{index:04d}": index for index in range(len(modalities))}
    names |= {composed(name): index for index, name in enumerate(modalities)}
    form = re.compile(_as_regex(composed(pattern), sorted(names, key=len, reverse=True)))
    found: Channels = {}
    for path in sorted(root.glob(_FIELD.sub("*", re.sub(r"([?\[])|[^\0-\x7f]+", _for_glob, pattern)))):
        place = path.relative_to(root)
        fit = form.fullmatch(composed(place.as_posix()))
        hidden = any(part.startswith(".") and part not in pattern.split("/") for part in place.parts)
        there = is_image(path) if pattern.endswith("}") else is_there(path)
        if fit is not None and not hidden and (there or (labels and masks_of(path))):
            channel = names.get(fit.groupdict().get("modality", ""), 0)
            found.setdefault(fit["case"], {}).setdefault(channel, []).append(path)
    return found


def _for_glob(found: re.Match[str]) -> str:
    """A letter for `Path.glob`, which knows but one way to encode an accent and gives ``?`` and ``[`` a meaning."""
    return f"[{found[1]}]" if found[1] else "*"


def fill(pattern: str, case: str, modality: str = "") -> str:
    """The path that a pattern stands for.

    Example:
        >>> fill("{case}/{case}_{modality}.nii.gz", "anna", "T1")
        'anna/anna_T1.nii.gz'
    """
    return pattern.replace("{case}", case).replace("{modality}", modality)


def pattern_of(folder: str, names: Sequence[str], others: Sequence[str], ending: str) -> str:
    """Guess a pattern from the names in one folder: what all have at an end, and not all of another folder have too.

    Example:
        >>> pattern_of("scans", ["volume-1", "volume-21"], ["segmentation-1", "segmentation-21"], ".nii")
        'scans/volume-{case}.nii'
    """
    before, other_before = _beginning(names), _beginning(others)
    after, other_after = (_beginning([name[::-1] for name in many])[::-1] for many in (names, others))
    before = re.sub(r"\d*$", "", before) if before != other_before else ""
    after = re.sub(r"^\d*", "", after) if after != other_after else ""
    return f"{folder}/{before}{{case}}{after}{ending}"


def _beginning(names: Sequence[str]) -> str:
    """What several names begin with; one alone tells nothing."""
    if len(names) == 1:
        return ""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike)


def _as_regex(pattern: str, modalities: Sequence[str]) -> str:
    legal = "|".join(map(re.escape, modalities)) or "(?!)"
    seen: set[str] = set()
    form = ""
    for place, part in enumerate(_FIELD.split(pattern.removeprefix("./"))):
        if place % 2 == 0:
            form += "[^/]*".join(map(re.escape, part.split("*")))
        elif part in seen:
            form += f"(?P={part})"
        else:
            seen.add(part)
            form += f"(?P<{part}>[^/]+?)" if part == "case" else f"(?P<{part}>{legal})"
    return form
