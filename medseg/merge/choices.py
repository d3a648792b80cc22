"""What is decided about a merge, in a short YAML that is written first and read back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from medseg.datasets.case import Dataset, dataset_json, read_dataset
from medseg.datasets.names import composed
from medseg.datasets.sides import words_of
from medseg.errors import DataError, UsageError, listed, meant, nearest
from medseg.machine.documents import read_document
from medseg.machine.files import portable, write_text
from medseg.machine.typed import fields_of

Kind = Literal["nothing-shared", "units", "sides", "two-names", "two-organs"]
"""What stops a merge until somebody accepts it."""

Decision = Literal["one_patient", "leave_out", "apart"]
"""Of two cases with the same voxels: keep both on one side of every fold, leave the second out, or call it chance."""

SAID = "as merge.yaml says"
"""How twins were found that nobody but the user knows of."""

_ALIKE = 0.85  # of two names, from which on one may be the other, misspelt
_HEAD = """\
# How datasets become one. Edit it, then: medseg merge --yaml THIS_FILE --out FOLDER. Paths begin where this file lies.
# organs: name there -> name here; one name for several unites them, a list of names puts it into each (regions), null
# leaves it out. twins: one_patient, leave_out (the second) or apart; add pairs that you know of. accept: kinds of
# findings that shall not stop it.
"""


@dataclass(frozen=True)
class SetChoice:
    """What becomes of one of the datasets.

    Attributes:
        root: Its folder.
        organs: Its organ -> the organs that this is a part of here; none leaves it out.
        modalities: What its channels are called here, in its own order; None leaves one out.
    """

    root: str
    organs: dict[str, str | tuple[str, ...] | None]
    modalities: tuple[str | None, ...]

    @classmethod
    def from_dict(cls, data: Any) -> SetChoice:
        """Rebuild from plain data."""
        return cls(**fields_of(cls, data, "a set"))

    def targets(self, organ: str) -> tuple[str, ...]:
        """The organs that one of its organs is a part of here."""
        target = self.organs[organ]
        return () if target is None else (target,) if isinstance(target, str) else target

    def parts(self, name: str) -> tuple[str, ...]:
        """Its organs of which an organ here is made."""
        return tuple(organ for organ in self.organs if name in self.targets(organ))


@dataclass(frozen=True)
class Twins:
    """Two cases of different sets with the same voxels, and what becomes of them."""

    cases: tuple[str, str]
    found: str = SAID
    decision: Decision = "one_patient"

    @classmethod
    def from_dict(cls, data: Any) -> Twins:
        """Rebuild from plain data."""
        return cls(**fields_of(cls, data, "a pair of twins"))


@dataclass(frozen=True)
class Choices:
    """All decisions.

    Attributes:
        name: Of the merged dataset.
        sets: By name, which begins the names of its cases.
        patients: Whether equal names of patients in two sets mean two people or one.
        twins: Pairs of cases that are one volume.
        accept: Kinds of findings that do not stop the merge.
    """

    name: str
    sets: dict[str, SetChoice]
    patients: Literal["apart", "shared"] = "apart"
    twins: tuple[Twins, ...] = ()
    accept: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that no organ can have: those of the background and of what is ignored, and unprintable ones."""
        for organ in self.organs:
            if not organ.strip() or not organ.isprintable() or organ.strip().casefold() in ("ignore", "background"):
                raise ValueError(f"no organ can be called {organ!r}")
        if not any(self.modalities):
            raise ValueError("no channel is left of the first set")

    @property
    def organs(self) -> tuple[str, ...]:
        """The organs of the merged dataset, in their first order."""
        every = (target for one in self.sets.values() for organ in one.organs for target in one.targets(organ))
        return tuple(dict.fromkeys(every))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The channels of the merged dataset, in the order of its first set."""
        return tuple(name for name in next(iter(self.sets.values())).modalities if name is not None)


def folded(name: str) -> str:
    """What is left of a name when capitals, spaces, underscores, hyphens and dots do not count.

    Example:
        >>> folded("Left Kidney") == folded("left_kidney") != folded("kidney_left")
        True
    """
    return re.sub(r"[\s_.\-]+", "", composed(name).casefold())


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different organs whose names may mean one: the same words in another order, or all but the same letters.

    Example:
        >>> alike(["kidney_left", "Left Kidney", "gallbladder", "gall bladdder", "lung"])
        [('kidney_left', 'Left Kidney'), ('gallbladder', 'gall bladdder')]
    """
    found = []
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            apart = set(words_of(one)) ^ set(words_of(other))
            misspelt = nearest(folded(one), [folded(other)], alike=_ALIKE) and not apart & {"left", "right"}
            if folded(one) != folded(other) and (not apart or (misspelt and not _counted_apart(one, other))):
                found.append((one, other))
    return found


def _counted_apart(one: str, other: str) -> bool:
    """Whether names differ in their numbers, as those of vertebrae do."""
    return re.findall(r"\d+", one) != re.findall(r"\d+", other)


def read_sets(words: Sequence[str]) -> dict[str, tuple[Path, Dataset]]:
    """The datasets by name, which is that of the folder unless ``NAME=FOLDER`` says otherwise.

    Raises:
        UsageError: There are fewer than two, or two of one name.
        DataError: One cannot be read.
    """
    found: dict[str, tuple[Path, Dataset]] = {}
    for word in words:
        name, split, place = word.partition("=")
        root = dataset_json(Path(place if split and not Path(word).exists() else word)).parent
        name = re.sub(r"[^\w-]", "_", name if split and not Path(word).exists() else root.resolve().name)
        if name in found:
            remedy = "Give one another name: NAME=FOLDER" if not root.samefile(found[name][0]) else "Give it once"
            raise UsageError(f"two datasets are called {name}: {found[name][0]} and {root}", remedy)
        found[name] = (root, read_dataset(root))
    if len(found) < 2:
        raise UsageError(f"a merge needs two datasets or more, got {len(found)}", "Name their folders")
    for name, (root, _) in found.items():
        if twice := [other for other, (place, _) in found.items() if other != name and place.samefile(root)]:
            raise UsageError(f"{name} and {twice[0]} are one dataset, {root}", "Give it once")
    return found


def first_choices(name: str, sets: Mapping[str, tuple[Path, Dataset]], renames: Sequence[str], out: Path) -> Choices:
    """What is decided where nobody has decided: organs, and channels, whose names differ in spelling alone are one.

    Args:
        name: Of the merged dataset.
        sets: As `read_sets` gives them.
        renames: ``OLD=NEW`` for all sets, ``SET:OLD=NEW`` for one.
        out: Where the choices will lie.

    Raises:
        UsageError: A rename is malformed, or from or to an organ that is not there.
        DataError: Two organs of one set would become one without a word.
    """
    told = _renames(renames, sets)
    spelling: dict[str, str] = {folded(new): new for new in told.values()}
    channels: dict[str, str] = {}
    choices: dict[str, SetChoice] = {}
    for one, (root, dataset) in sets.items():
        organs: dict[str, str | tuple[str, ...] | None] = {}
        for organ in dataset.organs:
            renamed = told.get((one, organ))
            organs[organ] = renamed or spelling.setdefault(folded(organ), organ)
            twice = [other for other in organs if other != organ and organs[other] == organs[organ]]
            if twice and not (renamed and (one, twice[0]) in told):
                problem = f"has {twice[0]!r} and {organ!r}, which would be one organ {organs[organ]!r}"
                raise DataError(dataset_json(root), problem, f"Say what each is: --rename '{one}:{organ}=NAME'")
        modalities = tuple(
            told.get((one, channel)) or channels.setdefault(folded(channel), channel) for channel in dataset.modalities
        )
        choices[one] = SetChoice(portable(root, out), organs, modalities)
    try:
        return Choices(name, choices)
    except ValueError as error:
        raise UsageError(str(error), "Give it another name: --rename OLD=NEW") from None


def _renames(words: Sequence[str], sets: Mapping[str, tuple[Path, Dataset]]) -> dict[tuple[str, str], str]:
    """Set and organ, or channel, -> its new name."""
    tables: tuple[dict[tuple[str, str], str], ...] = ({}, {})  # what is said of all sets, and of one
    said: dict[str, str] = {}
    names = {one: (*dataset.organs, *dataset.modalities) for one, (_, dataset) in sets.items()}
    known = {name for several in names.values() for name in several}
    for word in words:
        old, split, new = (part.strip() for part in word.partition("="))
        where, colon, organ = old.partition(":")
        of_one = bool(colon) and where in sets and old not in known
        which, organ = ([where], organ) if of_one else (list(sets), old)
        if not split or not organ or not new:
            raise UsageError(f"--rename {word!r} does not say what becomes of what", "Write OLD=NEW, or SET:OLD=NEW")
        owners = [one for one in which if organ in names[one]]
        if not owners:
            legal = [name for one in which for name in names[one]]
            problem = f"--rename {word}: there is no {organ!r} in {listed(which)}{meant(organ, legal)}"
            raise UsageError(problem, f"Choose from {listed(dict.fromkeys(legal), 12)}")
        if (twice := said.setdefault(old, new)) != new:
            raise UsageError(f"--rename gives {old!r} two names, {twice!r} and {new!r}", "Say which of them it has")
        tables[of_one].update(dict.fromkeys(((one, organ) for one in owners), new))
    found = tables[0] | tables[1]
    renamed = Counter(found.values())
    for (_, organ), new in found.items():
        if new not in known and renamed[new] < 2 and folded(new) != folded(organ):
            problem = f"--rename {organ}={new}: no set has an organ {new!r}{meant(new, known)}"
            raise UsageError(problem, "Correct it; a name that is new altogether is given in the YAML")
    return found


def write_choices(path: Path, choices: Choices) -> None:
    """Write them for people to edit."""
    plain = asdict(choices)
    plain["sets"] = {
        name: {**one, "organs": {organ: _plain(target) for organ, target in one["organs"].items()},
               "modalities": list(one["modalities"])}
        for name, one in plain["sets"].items()
    }  # fmt: skip
    plain["twins"] = [{**twins, "cases": list(twins["cases"])} for twins in plain["twins"]]
    plain["accept"] = list(choices.accept)
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    write_text(path, _HEAD + body)


def _plain(target: str | tuple[str, ...] | None) -> str | list[str] | None:
    return list(target) if isinstance(target, tuple) else target


def read_choices(path: Path) -> tuple[Choices, dict[str, tuple[Path, Dataset]]]:
    """Read them back, with the datasets that they are about.

    Raises:
        DataError: The file or a dataset cannot be read, or what it says of a set does not fit it.
    """
    data = read_document(path, remedy="Correct it, or write a new one with --dry-run")
    try:
        told = fields_of(Choices, data, "the file")
        lacking = [key for key in ("name", "sets") if key not in told]
        if lacking:
            raise ValueError(f"the key {lacking[0]} is missing")
        choices = Choices(**told)
    except (ValueError, TypeError) as error:
        raise DataError(path, f"cannot be followed: {error}", "Correct it, or write a new one with --dry-run") from None
    words = [f"{name}={path.parent / one.root}" for name, one in choices.sets.items()]
    sets = read_sets(words)
    strange = [name for name in choices.sets if name not in sets]
    if strange:
        raise DataError(path, f"calls a set {strange[0]!r}", "Use letters, digits, _ and - in its name")
    for name, (_, dataset) in sets.items():
        _require_fitting(path, name, choices.sets[name], dataset)
    return choices, sets


def _require_fitting(path: Path, name: str, choice: SetChoice, dataset: Dataset) -> None:
    for what, told, there in (
        ("organ", list(choice.organs), list(dataset.organs)),
        ("channel", list(choice.modalities), list(dataset.modalities)),
    ):
        if what == "channel" and len(told) != len(there):
            problem = f"names {len(told)} channels of {name}, which has {len(there)}: {listed(there)}"
            raise DataError(path, problem, "Give each a name, or null")
        if what == "organ" and (strays := [organ for organ in told if organ not in there]):
            problem = f"names an organ {strays[0]!r} of {name}, which has none{meant(strays[0], there)}"
            raise DataError(path, problem, f"Choose from {listed(there, 12)}")
        if what == "organ" and (silent := [organ for organ in there if organ not in told]):
            problem = f"does not say what becomes of {silent[0]!r} of {name}"
            raise DataError(path, problem, "Give it a name, or null to leave it out")


def with_twins(choices: Choices, found: Sequence[Twins]) -> Choices:
    """The decisions with the twins that were found, of which those that were decided stay so, and with those told."""
    decided = {frozenset(twins.cases): twins for twins in choices.twins}
    kept = [decided.get(frozenset(twins.cases), twins) for twins in found]
    kept += [twins for twins in choices.twins if twins.found == SAID and twins not in kept]
    return replace(choices, twins=tuple(kept))
