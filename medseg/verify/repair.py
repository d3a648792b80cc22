"""A copy of a dataset in which what can be repaired mechanically is; the original is never touched."""

from __future__ import annotations

import gzip
import io
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets.case import Case, Dataset, read_listing
from medseg.errors import DataError, few, listed
from medseg.machine.files import whole
from medseg.space.labels import integer_type
from medseg.space.nifti import open_nifti, with_integers
from medseg.space.reading import is_nifti, read_header, read_label_file
from medseg.space.volume import ROUNDING_VOXELS, distance_in_voxels
from medseg.verify.copying import Moves, copy_dataset
from medseg.verify.inspection import Problem, inspect_case
from medseg.verify.rewriting import with_integers as with_integers_in_text
from medseg.verify.verify import VerifyReport


@dataclass(frozen=True)
class Repaired:
    """What became of the copy.

    Attributes:
        done: File, as the copy calls it -> what was done to it; each was read again and found sound.
        left: The problems that the copy still has.
        skipped: What could not be copied, with the reason.
    """

    done: dict[Path, str]
    left: tuple[Problem, ...]
    skipped: tuple[str, ...]

    def sentences(self, out: Path) -> list[str]:
        """For people, a line for each kind of news."""
        said = [f"a copy is in {out}; {len(self.done) or 'no'} file{'s' * (len(self.done) != 1)} repaired in it"]
        for what in sorted(set(self.done.values())):
            said.append(f"  {what}: {listed(file for file, done in sorted(self.done.items()) if done == what)}")
        if self.left:
            said.append(f"{len(self.left)} problems are left in it, by file:")
            files = defaultdict(list)
            for problem in self.left:
                files[problem.file.name if problem.file else problem.case or "the dataset"].append(problem.problem)
            told = [f"{file} {'; '.join(dict.fromkeys(problems))}" for file, problems in files.items()]
            said += [f"  {line}" for line in few(told)]
        if self.skipped:
            said.append(f"not copied: {listed(self.skipped)}")
        return said


def repair(report: VerifyReport, out: Path) -> Repaired:
    """Write a copy of the dataset with affines that differed by rounding copied from the image, and whole labels.

    Only a file that has no other fault is touched. Its values, its units and all of its header that is not at fault
    stay; the copy of its case is inspected before it counts as repaired, and put back as it was if it fails.
    Everything else is copied as it is, byte for byte, links by what they lead to.

    Args:
        report: What `medseg.verify.verify.verify` found.
        out: Folder of the copy; must not exist yet, or be empty.

    Raises:
        DataError: The target is not empty or lies within the dataset, or the copy cannot be written; nothing is left
            behind then.
    """
    out = Path(out)
    root = report.root.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(out, "exists already and is not empty", "Name a new folder for the repaired copy")
    if root in (out.resolve(), *out.resolve().parents):
        raise DataError(out, "lies within the dataset that is to be repaired", "Name a folder elsewhere")
    with whole(out, remedy="Choose another folder") as copy:
        moves = copy_dataset(report.root, report.description, copy)
        done, told, failed = _mend(report, moves, copy)
    left = [problem for problem in report.problems if moves.of(problem.file) not in done]
    left = [replace(one, problem=f"{one.problem} ({failed[one.case]})") if one.repair else one for one in left]
    return Repaired(done, (*left, *told), moves.skipped)


def _mend(report: VerifyReport, moves: Moves, copy: Path) -> tuple[dict[Path, str], list[Problem], dict[str, str]]:
    """Repair the files of the copy: what was done to each, what else is odd about them, and which cases failed."""
    dataset = read_listing(copy / report.description.name).dataset
    cases = {case.id: case for case in (*dataset.cases, *dataset.test)}
    wanted: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.repairable:
        wanted[problem.case].append(problem)
    done: dict[Path, str] = {}
    told: list[Problem] = []
    failed: dict[str, str] = {}
    for name, problems in wanted.items():
        try:
            mended = _mend_case(problems, moves, copy)
            remarks = _require_sound(cases[name], dataset, copy, mended)
        except DataError as error:
            failed[name] = f"its repair failed: {error.problem}"
            for file in {moves.of(problem.file) for problem in problems} - {None}:
                moves.restore(file or Path(), copy)
        else:
            done |= mended
            told += [replace(remark, file=moves.places[file]) for file, remark in remarks]
    return done, told, failed


def _mend_case(problems: Iterable[Problem], moves: Moves, copy: Path) -> dict[Path, str]:
    """What was done to each file of a case; affines first."""
    done: dict[Path, str] = {}
    for problem in sorted(problems, key=lambda problem: problem.repair):
        file = moves.of(problem.file)
        if file is None:
            continue
        what = _copy_affine(copy / file, problem.like) if problem.repair == "affine" else _write_integers(copy / file)
        done[file] = f"{done[file]}, {what}" if file in done else what
    return done


def _require_sound(case: Case, dataset: Dataset, copy: Path, mended: Collection[Path]) -> list[tuple[Path, Problem]]:
    """Look once more at the files that were mended; what is left are remarks."""
    remarks = []
    for problem in inspect_case((case, replace(dataset, cases=(), test=()))).problems:
        file = Path(os.path.relpath(problem.file or copy, copy))
        if file in mended and (problem.repair or not problem.harmless):
            raise DataError(copy / file, problem.problem, problem.remedy)
        remarks += [(file, problem)] if file in mended else []
    return remarks


def _write_integers(target: Path) -> str:
    """Store whole numbers as integers, in a file that keeps its geometry, units and remarks."""
    before = read_label_file(target)
    labels = before.volume.array[0]
    write = with_integers if is_nifti(target) else with_integers_in_text
    write(target, labels.astype(integer_type(labels)))
    after = read_label_file(target)
    if not np.array_equal(after.volume.array, before.volume.array):
        raise DataError(target, "does not hold what was written to it", "Check the disk")
    return f"labels written as {integer_type(labels)}"


def _copy_affine(target: Path, like: Path | None) -> str:
    """Put another affine into the header of a file, in the file's own unit; the voxels keep every bit."""
    before = read_header(target)
    affine = read_header(like or target).affine
    packed = target.read_bytes()
    plain = gzip.decompress(packed) if target.suffix == ".gz" else packed
    header: Any = type(open_nifti(target).header).from_fileobj(io.BytesIO(plain), check=False)
    own = np.diag([1 / before.unit_mm] * 3 + [1.0]) @ affine
    header.set_qform(own, code=int(header["qform_code"]) or 1)
    header.set_sform(own, code=int(header["sform_code"]) or 1)
    mended = header.binaryblock + plain[len(header.binaryblock) :]
    target.write_bytes(gzip.compress(mended, 6, mtime=0) if target.suffix == ".gz" else mended)
    after = read_header(target)
    if distance_in_voxels(after.affine, before.affine, before.shape) > ROUNDING_VOXELS + 1e-3:
        raise DataError(target, "does not hold the affine that was written to it", "Check the disk")
    return "affine copied from the image"
