"""A copy of a dataset in which what can be repaired mechanically is; the original is never touched."""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.nifti import read_header, read_volume, write_labels
from medseg.verify.inspection import Problem
from medseg.verify.verify import VerifyReport


def repair(report: VerifyReport, out: Path) -> tuple[Problem, ...]:
    """Write a copy of the dataset with affines that differed by rounding copied from the image, and whole labels.

    Everything else is copied as it is, byte for byte, with what cannot be repaired.

    Args:
        report: What `medseg.verify.verify.verify` found.
        out: Folder of the copy; must not exist yet, or be empty.

    Returns:
        The problems that the copy still has.

    Raises:
        DataError: The target is not empty or lies within the dataset, a file to repair lies outside it, or the copy
            cannot be written; nothing is left behind then.
    """
    out = Path(out)
    root = report.root.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(out, "exists already and is not empty", "Name a new folder for the repaired copy")
    if root in (out.resolve(), *out.resolve().parents):
        raise DataError(out, "lies within the dataset that is to be repaired", "Name a folder elsewhere")
    for problem in report.repairable:
        if problem.file is not None and not problem.file.resolve().is_relative_to(root):
            raise DataError(problem.file, f"lies outside {root}, so it cannot be copied with it", "Move it inside")
    with whole(out, remedy="Choose another folder") as copy:
        _write_copy(report, root, copy)
    return tuple(problem for problem in report.problems if not problem.repair)


def _write_copy(report: VerifyReport, root: Path, copy: Path) -> None:
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("._*"))
    faults = [(problem.repair, problem.file, problem.like) for problem in report.repairable]
    known = ((kind, file, like) for kind, file, like in faults if file and like)
    for kind, file, like in sorted(known):  # affines first, integers after
        target = copy / file.resolve().relative_to(root)
        if kind == "affine":
            _copy_affine(target, like)
        else:
            labels = np.rint(read_volume(target).array[0]).astype(np.int64)
            write_labels(target, labels, like=like)


def _copy_affine(target: Path, like: Path) -> None:
    """Put another affine into the header of a file; the voxels keep every bit."""
    packed = target.read_bytes()
    plain = gzip.decompress(packed) if target.suffix == ".gz" else packed
    header: Any = type(nib.load(target).header).from_fileobj(io.BytesIO(plain), check=False)
    affine = read_header(like).affine
    header.set_qform(affine, code=int(header["qform_code"]) or 1)
    header.set_sform(affine, code=int(header["sform_code"]) or 1)
    mended = header.binaryblock + plain[len(header.binaryblock) :]
    target.write_bytes(gzip.compress(mended, 6, mtime=0) if target.suffix == ".gz" else mended)
