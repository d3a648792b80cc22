"""BIDS (bids.neuroimaging.io): images by their suffix, labels in a derivative, told apart by what their names say."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medseg.datasets.names import composed
from medseg.errors import DataError, listed
from medseg.machine.documents import read_text
from medseg.space.reading import ENDINGS, case_name

Entities = Mapping[str, str]
"""What a name says: ``{"sub": "01", "ses": "2"}``."""

_OF_DERIVATIVES = {"space", "res", "den", "label", "desc", "seg", "atlas", "hemi", "cohort", "model", "from", "to"}
"""What only derivatives' names say; everything else tells which image a label belongs to."""

_WHOSE = ("sub", "ses", "run")
_NUMBERS = ("run", "echo", "inv", "split")  # are the same with and without zeros before them

_log = logging.getLogger(__name__)


def entities(name: str) -> tuple[dict[str, str], str]:
    """What a name without its ending says, and its suffix.

    Example:
        >>> entities("sub-01_ses-2_T1w"), entities("sub-01_T1w_lesion_mask")
        (({'sub': '01', 'ses': '2'}, 'T1w'), ({'sub': '01'}, 'T1w_lesion_mask'))
    """
    parts = composed(name).split("_")
    said = dict(part.split("-", 1) for part in parts if "-" in part)
    return said, "_".join(part for part in parts if "-" not in part)


def find_images(file: Path, suffixes: Sequence[str]) -> dict[str, dict[int, Path]]:
    """Case -> channel -> its image.

    A case is called by subject, session and run, such as ``sub-01_ses-2``; by all that its name says, where there are
    several of a kind.

    Args:
        file: The description, beside the subjects' folders.
        suffixes: Of the channels.

    Raises:
        DataError: There is no image of a suffix, or two for one case.
    """
    paths = sorted(path for folder in file.parent.glob("sub-*") for path in _volumes(folder))
    told = {path: entities(case_name(path)) for path in paths}
    found = {path: (said, suffixes.index(suffix)) for path, (said, suffix) in told.items() if suffix in suffixes}
    if lacking := set(range(len(suffixes))) - {channel for _, channel in found.values()}:
        there = listed(sorted({suffix for _, suffix in told.values()})) or "none"
        problem = f"finds no image sub-*_{suffixes[min(lacking)]} below its folder; the suffixes there are {there}"
        raise DataError(file, problem, 'Correct "suffix"')
    short = Counter((_called(said, _WHOSE), channel) for said, channel in found.values())
    whose = _WHOSE if max(short.values()) == 1 else None
    cases: dict[str, dict[int, Path]] = {}
    for path, (said, channel) in found.items():
        case = _called(said, whose)
        if (other := cases.setdefault(case, {}).setdefault(channel, path)) != path:
            raise DataError(
                path, f"and {other.name} could both be {suffixes[channel]} of {case}", "Keep one of the two"
            )
    return cases


def derivative_folder(file: Path, derivative: object) -> Path:
    """The folder of a derivative.

    Raises:
        DataError: There is none of that name.
    """
    place = file.parent / "derivatives"
    if isinstance(derivative, str) and derivative.strip() and (place / derivative).is_dir():
        return place / derivative
    there = [path.name for path in sorted(place.glob("*")) if path.is_dir()]
    remedy = f"There are {listed(there)}: name one of them" if there else "Put the labels there"
    raise DataError(file, f'names the "derivative" {derivative!r}, but there is no such folder in {place}', remedy)


def find_labels(
    file: Path, folder: Path, suffix: str, cases: Mapping[str, Mapping[int, Path]], *, key: str = "label_suffix"
) -> dict[str, list[Path]]:
    """Case -> the labels in the folder of a derivative that belong to it, by name; others are told and left out.

    A label belongs to the image about which it says nothing else: ``sub-01_ses-2_space-orig_desc-manual_dseg`` to
    ``sub-01_ses-2_T1w``, and to ``sub-01_ses-2_acq-mprage_T1w`` where no other image of that session is meant.

    Args:
        file: The description.
        folder: As `derivative_folder` has it.
        suffix: What the names of labels end with; "" for ``dseg`` where there are such, else for all.
        cases: As `find_images` has them.
        key: Of the description, that says so.

    Raises:
        DataError: No label in it belongs to an image, or one to several.
    """
    told = {path: entities(case_name(path)) for path in _volumes(folder)}
    wanted = suffix or ("dseg" if any(kind == "dseg" for _, kind in told.values()) else "")
    owners: dict[str, dict[str, dict[str, set[str]]]] = {}
    for case, channels in cases.items():
        values = _values(channels.values())
        for subject in values["sub"]:
            owners.setdefault(subject, {})[case] = values
    labels: dict[str, list[Path]] = {}
    nobodys: list[Path] = []
    for path, (said, _) in told.items():
        if not case_name(path).endswith(wanted):
            continue
        own = [case for case, theirs in owners.get(said.get("sub", ""), {}).items() if _belongs(said, theirs)]
        if len(own) > 1:
            raise DataError(path, f"could be the label of {listed(own)}", "Say in its name which image it belongs to")
        if own:
            labels.setdefault(own[0], []).append(path)
        else:
            nobodys.append(path)
    if not labels:
        problem = f"finds no label in {folder} that belongs to an image, such as {max(cases)}_{wanted or 'dseg'}.nii.gz"
        raise DataError(file, problem, f'Name another "derivative", or the end of the files\' names as "{key}"')
    if nobodys:
        told_of = listed(path.name for path in nobodys)
        _log.warning("%s: left out for want of an image (%d): %s", folder, len(nobodys), told_of)
    return {case: sorted(paths) for case, paths in labels.items()}


def read_names(file: Path, folder: Path) -> dict[str, int]:
    """Organ -> value, from the ``dseg.tsv`` of a derivative or of the dataset; nothing where there is none.

    Raises:
        DataError: It lacks the columns ``index`` and ``name``, gives a name twice, or two tables differ.
    """
    tables = dict[Path, dict[str, int]]()
    remedy = 'Give it the columns "index" and "name", or declare "labels" in dataset.json'
    for path in sorted([*folder.rglob("*dseg.tsv"), *file.parent.glob("*dseg.tsv")]):
        try:
            rows = list(csv.DictReader(read_text(path, remedy=remedy).splitlines(), delimiter="\t"))
            named = [(row["name"].strip(), int(row["index"])) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError, csv.Error):
            raise DataError(path, "does not say which value is which organ", remedy) from None
        tables[path] = dict(named)
        if len(tables[path]) < len(named):
            twice = Counter(name for name, _ in named).most_common(1)[0][0]
            raise DataError(path, f"gives the name {twice!r} to two values", "Give every value a name of its own")
        if tables[path] != next(iter(tables.values())):
            raise DataError(path, f"and {next(iter(tables)).name} differ", 'Declare "labels" in dataset.json')
    return next(iter(tables.values()), {})


def _volumes(folder: Path) -> Iterable[Path]:
    """Everything below a folder that is called as an image of a subject, be it there or a link to nowhere."""
    found = (path for path in folder.rglob("sub-*") if path.name.endswith(ENDINGS))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _called(said: Entities, whose: Sequence[str] | None) -> str:
    return "_".join(f"{key}-{value}" for key, value in said.items() if whose is None or key in whose)


def _values(images: Iterable[Path]) -> dict[str, set[str]]:
    """All that the names of a case's channels say."""
    values: dict[str, set[str]] = {}
    for path in images:
        for key, value in entities(case_name(path))[0].items():
            values.setdefault(key, set()).add(_plain(key, value))
    return values


def _plain(key: str, value: str) -> str:
    return value.lstrip("0") or "0" if key in _NUMBERS else value


def _belongs(label: Entities, case: Mapping[str, set[str]]) -> bool:
    own = {key: _plain(key, value) for key, value in label.items() if key not in _OF_DERIVATIVES}
    agreed = all(value in case.get(key, ()) for key, value in own.items())
    return agreed and all(key in own for key in ("sub", "ses") if key in case)
