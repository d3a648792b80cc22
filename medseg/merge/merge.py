"""Several datasets as one: a ``dataset.json`` that names their files where they are, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medseg.datasets.case import Case, Dataset, counted, dataset_json
from medseg.datasets.manifest import MergedSource
from medseg.errors import DataError, UsageError, few, listed, meant
from medseg.machine.files import digest_of, portable, read_json, require_writable, write_json
from medseg.merge.choices import (
    SAID,
    Choices,
    Kind,
    SetChoice,
    first_choices,
    read_choices,
    read_sets,
    with_twins,
    write_choices,
)
from medseg.merge.facts import Member, measure, members_of
from medseg.merge.findings import Evidence, Finding, find_all, find_twins
from medseg.space.labels import LabelValue, values_of

CHOICES = "merge.yaml"
"""The file of the decisions, beside the description that follows from them."""

Sets = Mapping[str, tuple[Path, Dataset]]


@dataclass(frozen=True, eq=False)
class Merged:
    """A merge that is decided, for people to look at.

    Attributes:
        out: The folder of the merged dataset.
        evidence: Decisions, cases and what was measured of them.
        findings: What is odd, those that stop it first.
        description: What ``dataset.json`` is to hold.
    """

    out: Path
    evidence: Evidence
    findings: tuple[Finding, ...]
    description: dict[str, Any]

    @property
    def stopping(self) -> list[Finding]:
        """The findings that nobody has accepted."""
        accepted = self.evidence.choices.accept
        return [finding for finding in self.findings if finding.stops and finding.kind not in accepted]

    def table(self) -> RenderableType:
        """What became of each organ in each set, then the findings; print it with rich."""
        choices = self.evidence.choices
        table = Table(title=f"{choices.name}: {counted(len(self.description['training']), 'labelled case')}")
        for heading in ("Organ", "Value", *choices.sets):
            table.add_column(heading, overflow="fold")
        for organ in choices.organs:
            value = ", ".join(map(str, values_of(self.description["labels"][organ])))
            cells = (self._cell(name, organ) for name in choices.sets)
            table.add_row(*(Text(cell) for cell in (organ, value, *cells)))
        left_out = [f"{name}: {listed(o)}" for name, one in choices.sets.items()
            if (o := [organ for organ in one.organs if not one.targets(organ)])]  # fmt: skip
        lines = [Text(f"left out: {listed(left_out)}")] if left_out else []
        for kind in dict.fromkeys(finding.kind for finding in self.findings):
            alike = [finding for finding in self.findings if finding.kind == kind]
            style = "bold red" if alike[0] in self.stopping else "dim"
            told = few([f"{kind}: {finding.problem}. {finding.remedy}." for finding in alike])
            lines += [Text(line, style=style) for line in told]
        return Group(table, *lines)

    def _cell(self, name: str, organ: str) -> str:
        """Its names in a set, in how many of the cases that have it drawn it is there, and how large it is."""
        parts = self.evidence.choices.sets[name].parts(organ)
        if not parts:
            return "not drawn"
        found = self.evidence.organ(name, organ)
        choice = self.evidence.choices.sets[name]
        labelled = (m.case for m in self.evidence.members.values() if m.set == name and m.case.label is not None)
        cases = sum(organ in _drawn(choice, case, (organ,)) for case in labelled)
        size = f", {np.median([ml for ml, _ in found]):.3g} ml" if found else ""
        return f"{' + '.join(parts)} ({len(found)} of {cases}{size})"


def plan_merge(
    sources: Sequence[str],
    out: Path,
    *,
    yaml: Path | None = None,
    renames: Sequence[str] = (),
    accept: Sequence[str] = (),
    workers: int | None = None,
) -> Merged:
    """Decide, write the decisions down, measure, and look for what would poison the merge.

    Args:
        sources: Folders of datasets, or ``NAME=FOLDER``; none where a YAML names them.
        out: Folder of the merged dataset.
        yaml: Decisions to follow.
        renames: ``OLD=NEW`` or ``SET:OLD=NEW``.
        accept: Kinds of findings that shall not stop it.
        workers: Processes that read.

    Raises:
        UsageError: The sources or a rename are at fault.
        DataError: A dataset or the YAML is, or the folder holds something else.
    """
    if bool(sources) == bool(yaml):
        raise UsageError("a merge begins with datasets or with a YAML", "Give the folders, or --yaml, and not both")
    if yaml and renames:
        raise UsageError("--rename is for a new merge", f"Write the names into {yaml}")
    choices, sets = read_choices(yaml) if yaml else (None, read_sets(sources))
    _require_free(out, sets)
    choices = choices or _as_decided(first_choices(out.resolve().name, sets, renames, out), out / CHOICES)
    if strange := [kind for kind in accept if kind not in get_args(Kind)]:
        problem = f"--accept {strange[0]}: there is no such kind of finding{meant(strange[0], get_args(Kind))}"
        raise UsageError(problem, f"Choose from {', '.join(get_args(Kind))}")
    accepted = dict.fromkeys((*choices.accept, *cast(Sequence[Kind], accept)))
    choices = replace(choices, accept=tuple(accepted))
    write_choices(out / CHOICES, choices)
    _require_one_language(choices, sets)
    datasets = {name: dataset for name, (_, dataset) in sets.items()}
    members = {member.id: member for name, dataset in datasets.items() for member in members_of(name, dataset)}
    if len(members) < sum(len(dataset.cases) + len(dataset.test) for dataset in datasets.values()):
        raise UsageError("two sets give a case the same name", "Call one otherwise: NAME=FOLDER")
    if unknown := [
        case for twins in choices.twins if twins.found == SAID for case in twins.cases if case not in members
    ]:
        problem = f"names {unknown[0]!r} under twins, which is no case{meant(unknown[0], list(members))}"
        raise DataError(out / CHOICES, problem, "Cases are called SET_CASE")
    facts = measure(members, datasets, workers)
    evidence = Evidence(choices, members, facts)
    evidence = replace(evidence, choices=with_twins(choices, find_twins(evidence)))
    findings = tuple(find_all(evidence, datasets))
    return Merged(out, evidence, findings, _describe(evidence.choices, sets, members, out))


def write_merge(merged: Merged, *, dry_run: bool = False) -> bool:
    """Write the decisions and, where nothing stops it and it is no dry run, the description; whether it did that.

    Raises:
        MachineError: The folder cannot be written to.
    """
    write_choices(merged.out / CHOICES, merged.evidence.choices)
    if dry_run or merged.stopping:
        return False
    write_json(merged.out / "dataset.json", merged.description)
    return True


def _as_decided(choices: Choices, file: Path) -> Choices:
    """First choices, with what an earlier run of the same command has found and accepted.

    Raises:
        UsageError: The file holds other decisions, which are not written over.
    """
    if not file.exists():
        return choices
    decided, _ = read_choices(file)
    if replace(decided, twins=(), accept=()) != choices:
        remedy = f"Follow it with --yaml {file}, remove it, or choose another --out"
        raise UsageError(f"{file} holds other decisions", remedy)
    return decided


def _require_free(out: Path, sets: Sets) -> None:
    """The folder holds no other dataset."""
    for name, (root, _) in sets.items():
        if out.exists() and out.samefile(root):
            raise UsageError(f"--out {out} is the dataset {name}", "Name a folder of its own")
    description = out / "dataset.json"
    if description.exists():
        try:
            ours = "sources" in read_json(description)
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise DataError(out, "holds another dataset", "Choose another --out")
    require_writable(out, remedy="Choose another --out")


def _require_one_language(choices: Choices, sets: Sets) -> None:
    """Every set has every channel, in an order that its files can be put into, and raters agree in one way."""
    _agreement(sets)
    if not choices.organs:
        raise UsageError("no organ is left in the merge", "Give some a name in the YAML")
    for name, one in choices.sets.items():
        own = [channel for channel in one.modalities if channel is not None]
        file = dataset_json(sets[name][0])
        if sorted(own) != sorted(choices.modalities):
            problem = f"has the channels {listed(own)}, {next(iter(choices.sets))} has {listed(choices.modalities)}"
            raise DataError(file, problem, "Say under modalities in the YAML what each is here, or null")
        packed = any(len(case.images) != len(one.modalities) for case in (*sets[name][1].cases, *sets[name][1].test))
        if packed and one.modalities != choices.modalities:
            problem = "keeps its channels in one file each case, in another order or with others than the first set"
            raise DataError(file, problem, "Give the set that orders them so first, or split the files")


def _describe(choices: Choices, sets: Sets, members: Mapping[str, Member], out: Path) -> dict[str, Any]:
    """The content of ``dataset.json``."""
    gone = {twins.cases[1] for twins in choices.twins if twins.decision == "leave_out"}
    kept = {name: member for name, member in members.items() if name not in gone}
    values = _values(choices, sets)
    labels: dict[str, Any] = {"background": 0, **_labels(choices.organs, values)}
    ignore = 1 + len(values) if any(dataset.ignore is not None for _, dataset in sets.values()) else None
    sources: dict[str, MergedSource] = {}
    for name, (root, dataset) in sets.items():
        becomes = _becomes(choices.sets[name], dataset, values, ignore)
        file = dataset_json(root)
        digest = digest_of(file, "md5")
        for case in (*dataset.cases, *dataset.test):
            sources[_origin(name, case)] = MergedSource(dataset.meaning_of(case).merged(becomes), file, digest)
    drawn = {id_: _drawn(choices.sets[m.set], m.case, choices.organs) for id_, m in kept.items()}
    description: dict[str, Any] = {
        "name": choices.name,
        "modality": {str(index): name for index, name in enumerate(choices.modalities)},
        "labels": labels | ({} if ignore is None else {"ignore": ignore}),
        "sources": {name: source.to_dict(out) for name, source in sources.items()},
        "patients": {id_: who for id_, who in _patients(choices, kept).items() if who != id_},
        **({"raters": raters} if (raters := _agreement(sets)) else {}),
        "annotated": {id_: list(organs) for id_, organs in drawn.items() if organs != choices.organs},
    }
    for key, test in (("training", False), ("test", True)):
        description[key] = [_entry(m, choices, out) for m in kept.values() if m.test == test]
    return description


def _agreement(sets: Sets) -> str | None:
    """How several raters of a case agree, where a set has such.

    Raises:
        UsageError: Two sets say otherwise.
    """
    told = {dataset.raters: name for name, (_, dataset) in sets.items() if dataset.raters}
    if len(told) > 1:
        ways = " and ".join(f"{way!r} in {name}" for way, name in told.items())
        raise UsageError(f"raters agree by {ways}", 'Write one "raters" in their dataset.json')
    return next(iter(told), None)


def _origin(name: str, case: Case) -> str:
    """The set of a case; of a set that is itself merged, the one within it."""
    return f"{name}.{case.dataset}" if case.dataset else name


def _values(choices: Choices, sets: Sets) -> dict[frozenset[str], int]:
    """What each set of organs that some value stands for is numbered as; single organs first, in their order."""
    found = {
        organs for name, (_, dataset) in sets.items() for organs in _meanings(choices.sets[name], dataset).values()
    }
    order = {organ: index for index, organ in enumerate(choices.organs)}
    ranked = sorted(found - {frozenset()}, key=lambda organs: (len(organs), sorted(order[organ] for organ in organs)))
    return {organs: value for value, organs in enumerate(ranked, start=1)}


def _meanings(choice: SetChoice, dataset: Dataset) -> dict[int, frozenset[str]]:
    """Value of a set -> the organs here that its voxels belong to."""
    found: dict[int, set[str]] = {}
    for organ, value in dataset.labels.items():
        for one in values_of(value):
            found.setdefault(one, set()).update(choice.targets(organ))
    return {value: frozenset(organs) for value, organs in found.items()}


def _labels(organs: Sequence[str], values: Mapping[frozenset[str], int]) -> dict[str, LabelValue | list[int]]:
    """Organ -> its value, or a list of them where organs overlap."""
    lists = {organ: [value for several, value in values.items() if organ in several] for organ in organs}
    for one, other in combinations(organs, 2):
        if lists[one] == lists[other]:
            raise UsageError(f"{one!r} and {other!r} would be the same voxels in every set", "Give one of the names up")
    if all(len(several) == 1 for several in values):
        return {organ: own[0] for organ, own in lists.items()}
    return dict(lists)


def _becomes(
    choice: SetChoice, dataset: Dataset, values: Mapping[frozenset[str], int], ignore: int | None
) -> dict[int, int]:
    """Value of a set -> its value here; what is left out is background."""
    table = {value: values.get(organs, 0) for value, organs in _meanings(choice, dataset).items()}
    return table if dataset.ignore is None or ignore is None else table | {dataset.ignore: ignore}


def _drawn(choice: SetChoice, case: Case, organs: Sequence[str]) -> tuple[str, ...]:
    """The organs here of which every part was drawn in a case."""
    there = choice.organs if case.annotated is None else case.annotated
    parts = {organ: choice.parts(organ) for organ in organs}
    return tuple(organ for organ, own in parts.items() if own and all(part in there for part in own))


def _patients(choices: Choices, members: Mapping[str, Member]) -> dict[str, str]:
    """Case -> its patient; twins that both stay are one."""
    patients = {
        id_: m.case.patient if choices.patients == "shared" else f"{m.set}_{m.case.patient}"
        for id_, m in members.items()
    }
    for twins in choices.twins:
        if twins.decision == "one_patient" and set(twins.cases) <= set(patients):
            one, other = (patients[case] for case in twins.cases)
            patients = {id_: one if who == other else who for id_, who in patients.items()}
    return patients


def _entry(member: Member, choices: Choices, out: Path) -> dict[str, Any]:
    own, case = choices.sets[member.set].modalities, member.case
    images = case.images
    if len(images) == len(own) > 1:
        images = tuple(images[own.index(name)] for name in choices.modalities)
    entry: dict[str, Any] = {"case": member.id, "dataset": _origin(member.set, case)}
    for key, paths in (("image", images), ("label", case.drawn), ("weight", (case.weight,) if case.weight else ())):
        told = [portable(Path(os.path.abspath(path)), out) for path in paths]
        entry |= {key: told[0] if len(told) == 1 else told} if told else {}
    return entry
