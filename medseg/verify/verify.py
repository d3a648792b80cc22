"""Every problem of every case of a dataset, in one pass, for people and for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medseg.datasets.agreement import odd_cases
from medseg.datasets.case import Case, Dataset, Listing, counted, read_listing
from medseg.datasets.files import why_absent
from medseg.datasets.hounsfield import doubts
from medseg.datasets.manifest import Manifest
from medseg.errors import DataError, listed
from medseg.machine.crew import default_workers, for_each_case
from medseg.machine.files import write_text
from medseg.space.labels import values_of
from medseg.space.nifti import Header
from medseg.space.reading import ENDINGS, is_flat, read_header
from medseg.verify.inspection import Inspection, Problem, inspect_case

MOST_OF_A_KIND = 5
"""Rows of a kind on screen; a count stands for the others."""


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with a dataset.

    Attributes:
        root: Its folder.
        description: Its ``dataset.json``.
        name: Its name.
        cases: How many cases were looked at, test cases included.
        problems: By case, those of the dataset as a whole last.
    """

    root: Path
    description: Path
    name: str
    cases: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of training; harmless findings do not."""
        return all(problem.harmless for problem in self.problems)

    @property
    def repairable(self) -> tuple[Problem, ...]:
        """What `medseg.verify.repair` can mend."""
        return tuple(problem for problem in self.problems if problem.repair)

    def table(self) -> RenderableType:
        """For people: a row per problem, a sentence below; print it with rich."""
        verdict = Text(self.verdict, style="green" if self.ok else "bold red")
        if not self.problems:
            return verdict
        table = Table(title=f"{self.name}: what was found")
        for heading in ("Case", "File", "Problem", "What to do"):
            table.add_column(heading, overflow="fold")  # a name that is cut short cannot be looked for
        for kind, problems in self._by_kind().items():
            for problem in problems[:MOST_OF_A_KIND]:
                cells = (problem.case or "all", self._relative(problem.file), problem.problem, problem.remedy)
                table.add_row(*(Text(cell) for cell in cells), style="dim" if problem.harmless else "")
            if more := problems[MOST_OF_A_KIND:]:
                cells = (f"{len(more)} more", "", f"the same kind ({kind})", "See all of them with --json FILE")
                table.add_row(*(Text(cell) for cell in cells), style="dim" if more[0].harmless else "")
        return Group(table, verdict)

    def _by_kind(self) -> dict[str, list[Problem]]:
        """The problems, each beside those of its kind, those that harm first."""
        kinds: dict[str, list[Problem]] = {}
        for problem in sorted(self.problems, key=lambda problem: problem.harmless):
            kinds.setdefault(problem.kind, []).append(problem)
        return kinds

    @property
    def verdict(self) -> str:
        """The report in a sentence."""
        grave = [problem for problem in self.problems if not problem.harmless]
        minor = len(self.problems) - len(grave)
        said = f"{counted(self.cases, 'case')}, " + (counted(len(grave), "problem") if grave else "no problem found")
        said += f", {counted(minor, 'remark')}" if minor else ""
        if self.repairable:
            said += f"; {len(self.repairable)} can be repaired into a copy with --fix OUT"
        return said

    def to_json(self) -> str:
        """For machines: an object with ``dataset``, ``cases``, ``ok`` and a list of ``problems``."""
        return json.dumps(
            {
                "dataset": self.name,
                "root": str(self.root),
                "cases": self.cases,
                "ok": self.ok,
                "problems": [self._row(problem) for problem in self.problems],
            },
            indent=1,
        )

    def write_json(self, path: Path) -> None:
        """Write `to_json`; the file appears whole or not at all.

        Raises:
            MachineError: The file cannot be written.
        """
        write_text(path, self.to_json() + "\n", remedy="Choose another file")

    def _row(self, problem: Problem) -> dict[str, Any]:
        return {
            "case": problem.case or None,
            "file": self._relative(problem.file) or None,
            "kind": problem.kind,
            "problem": problem.problem,
            "remedy": problem.remedy,
            "repairable": bool(problem.repair),
            "harmless": problem.harmless,
        }

    def _relative(self, file: Path | None) -> str:
        if file is None:
            return ""
        return str(file.relative_to(self.root) if file.is_relative_to(self.root) else file)


def verify(root: Path, *, workers: int | None = None) -> VerifyReport:
    """Look for every problem of every case: files, headers, voxels, labels, duplicates.

    Args:
        root: The folder of a dataset, or its ``dataset.json``.
        workers: Processes; None takes a core each, as far as the free memory reaches; 1 works in this process.

    Returns:
        The report; a worker that died is a problem of the case it died of.

    Raises:
        DataError: The ``dataset.json`` itself cannot be made sense of.
    """
    listing = read_listing(root)
    dataset, file = listing.dataset, listing.manifest.file
    cases = (*dataset.cases, *dataset.test)
    headers = _headers(cases)
    problems: list[Problem] = list(_odd(cases, headers))
    inspections: list[Inspection] = []
    bare = replace(dataset, cases=(), test=())  # what a worker is sent must not grow with the dataset
    tasks = {case.id: (case, bare) for case in cases}
    count = workers or default_workers(max((_peak_bytes(header, dataset) for header in headers.values()), default=0))
    for done in for_each_case(inspect_case, tasks, workers=count, title="Verifying"):
        if done.result is not None:
            inspections.append(done.result)
            problems += done.result.problems
        else:
            problems.append(_failed(done.name, done.failure))
    problems = list(_with_remedies(listing, problems))
    problems += _duplicates(inspections, cases, {case.id for case in dataset.test})
    problems += _units(file, sorted(inspections, key=lambda inspection: inspection.case))
    problems.sort(key=lambda problem: (not problem.case, problem.case))
    problems += _unused_labels(file, dataset, inspections)
    problems += _others(file, dataset, inspections)
    problems += _unscaled(file, cases)
    problems += _bookkeeping(listing.manifest, dataset)
    return VerifyReport(file.parent, file, dataset.name, len(cases), tuple(problems))


def _headers(cases: Iterable[Case]) -> dict[str, Header]:
    """Of the first image of each case; what cannot be read is told by the worker."""
    found = {}
    for case in cases:
        with suppress(DataError):
            found[case.id] = read_header(case.images[0])
    return found


def _odd(cases: Iterable[Case], headers: dict[str, Header]) -> Iterator[Problem]:
    odd = odd_cases(headers)
    for case in cases:
        if case.id in odd:
            found = odd[case.id]
            kind = "impossible-spacing" if found.impossible else "far-spacing"
            yield Problem(case.id, case.images[0], kind, found.problem, found.remedy, harmless=not found.impossible)


def _peak_bytes(header: Header, dataset: Dataset) -> int:
    """Memory that inspecting one case takes at most."""
    return prod(header.shape) * (12 * len(dataset.modalities) + 24)


def _failed(case: str, failure: Any) -> Problem:
    return Problem(case, None, "died", getattr(failure, "problem", str(failure)), getattr(failure, "remedy", ""))


def _with_remedies(listing: Listing, problems: list[Problem]) -> Iterator[Problem]:
    """Files that are missing are to be added, or their names mended, in the way of the dataset's own layout."""
    listed = (*listing.training, *listing.test)
    remedies = {path: files.remedy for files in listed for path in files.every}
    for problem in problems:
        known = problem.file is not None and problem.kind == "missing" and remedies.get(problem.file)
        yield replace(problem, problem=why_absent(problem.file), remedy=known) if known and problem.file else problem


def _duplicates(inspections: list[Inspection], cases: Iterable[Case], test: set[str]) -> Iterator[Problem]:
    """Name every volume that was seen before, once for each pair of cases."""
    patients = {case.id: case.patient for case in cases}
    seen: dict[str, tuple[str, Path]] = {}
    told: set[tuple[str, str]] = set()
    for inspection in sorted(inspections, key=lambda inspection: inspection.case):
        for digest, file in inspection.digests:
            if digest not in seen:
                seen[digest] = (inspection.case, file)
                continue
            twin, twin_file = seen[digest]
            if (twin, inspection.case) not in told:
                told.add((twin, inspection.case))
                yield _duplicate((inspection.case, file), (twin, twin_file), patients, test)


def _duplicate(this: tuple[str, Path], twin: tuple[str, Path], patients: dict[str, str], test: set[str]) -> Problem:
    case, file = this
    other, other_file = twin
    if case == other:
        problem, remedy = f"holds a channel that repeats one of {other_file.name}", "Export every modality once"
        return Problem(case, file, "duplicate", problem, remedy)
    problem = f"holds the same voxels as {other_file.name} of case {other}"
    if (case in test) != (other in test):
        remedy = "Take it out of one of the two, or the test is not one"
        return Problem(case, file, "leakage", f"{problem}: training and test share it", remedy)
    if patients[case] == patients[other]:
        return Problem(case, file, "duplicate", f"{problem}, the same patient's", "Remove one", harmless=True)
    remedy = 'Remove one, or name one patient for both under "patients" in dataset.json'
    return Problem(case, file, "duplicate", f"{problem}: folds would share it", remedy)


def _units(file: Path, inspections: list[Inspection]) -> Iterator[Problem]:
    """CT that cannot be in Hounsfield units: the cases in which it is so, or the dataset where most are so."""
    for modality in dict.fromkeys(modality for one in inspections for modality, _, _ in one.ct):
        ct = {one.case: (spread, path) for one in inspections for name, spread, path in one.ct if name == modality}
        found = doubts(modality, {case: spread for case, (spread, _) in ct.items()})
        for case, (problem, remedy) in found.items():
            yield Problem(case, ct[case][1] if case else file, "units", problem, remedy, harmless=True)


def _unused_labels(file: Path, dataset: Dataset, inspections: list[Inspection]) -> Iterator[Problem]:
    """Labels that no readable file of the dataset holds; silent where there is no readable label at all."""
    read = [inspection.values for inspection in inspections if inspection.values is not None]
    if not read:
        return
    seen = frozenset[int]().union(*read)
    absent = {organ: [v for v in values_of(value) if v not in seen] for organ, value in dataset.labels.items()}
    unused = {organ: values for organ, values in absent.items() if values}
    if unused:
        (organ, values), *more = unused.items()
        told = f"{len(unused)} labels that no case has: {listed(unused)}"
        if not more:
            told = f"{organ!r}, but no case holds the value {listed(values)}"
        remedy = f'Remove them from "labels" in {file.name}, or check what the label files hold'
        yield Problem("", file, "unused", f"declares {told}", remedy)


def _others(file: Path, dataset: Dataset, inspections: list[Inspection]) -> Iterator[Problem]:
    """What the values hold that are left out on purpose, once for all cases."""
    strays = [(inspection.values or frozenset()) - set(dataset.values) for inspection in inspections]
    if dataset.others is not None and any(strays):
        values, cases = sorted(frozenset[int]().union(*strays)), sum(map(bool, strays))
        fate = "counts as background" if dataset.others == "background" else "counts neither for nor against"
        told = f"{counted(len(values), 'value')} ({listed(values)}) of {counted(cases, 'case')}"
        problem = f"leaves out {told}: each {fate}"
        yield Problem("", file, "others", problem, 'Name under "labels" what is to be learnt', harmless=True)


def _unscaled(file: Path, cases: Iterable[Case]) -> Iterator[Problem]:
    """Pictures, whose lengths mean something else than those of volumes."""
    flat = [path.name for case in cases for path in case.images if is_flat(path)]
    if flat:
        problem = f"lists {counted(len(flat), 'picture')} ({listed(flat, 1)}), which do not say how large a pixel is"
        remedy = "Read every mm as a pixel, or convert them to .nii.gz with their spacing"
        yield Problem("", file, "unscaled", problem, remedy, harmless=True)


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve`, of a link that leads to itself too."""
    return Path(os.path.realpath(path))


def _bookkeeping(manifest: Manifest, dataset: Dataset) -> Iterator[Problem]:
    """What the description says of itself that is not so; nothing relies on it."""
    file, stated = manifest.file, manifest.content.get("numTraining")
    if not dataset.cases:
        problem, remedy = "lists no labelled case to train on", 'List images with labels under "training"'
        yield Problem("", file, "unlabelled", problem, remedy)
    if isinstance(stated, int) and stated != len(dataset.cases):
        problem = f'says "numTraining": {stated}, but has {len(dataset.cases)} training cases'
        yield Problem("", file, "count", problem, "Correct the number, or look for what is missing", harmless=True)
    known = {_real(path) for case in (*dataset.cases, *dataset.test) for path in case.images}
    labels = {_real(path) for case in dataset.cases for path in (*case.drawn, case.weight) if path is not None}
    for folder in sorted({path.parent for path in known if path.parent.is_dir()}):
        unlisted = [
            path.name
            for path in sorted(folder.iterdir())
            if path.name.endswith(ENDINGS) and not path.name.startswith(".") and path not in known
        ]
        unlisted = [name for name in unlisted if folder / name not in labels]
        if unlisted:
            problem = f"does not list {len(unlisted)} files of {folder.name}, the first is {unlisted[0]}"
            yield Problem("", file, "unlisted", problem, 'List them under "training" or "test"', harmless=True)
