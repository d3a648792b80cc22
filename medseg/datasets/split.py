"""Folds for cross-validation: no patient on both sides, the same for the same seed, or read from a file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from medseg.datasets.names import composed
from medseg.errors import DataError, UsageError, meant
from medseg.machine.documents import read_document


@runtime_checkable
class Examined(Protocol):
    """Anything with a case id and the patient it belongs to, such as a `Case`."""

    @property
    def id(self) -> str:
        """The case."""

    @property
    def patient(self) -> str:
        """Who was scanned."""


@dataclass(frozen=True)
class Fold:
    """One way to part the cases; ids in ascending order."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def folds(cases: Iterable[Examined], n: int = 5, *, seed: int = 0) -> tuple[Fold, ...]:
    """Part the cases into ``n`` folds; every case is in exactly one ``val``, every patient on one side of each fold.

    Patients with many cases are dealt first, each to the fold with the fewest cases so far, so that fold sizes differ
    by no more than the cases of one patient. Ties follow a hash of seed and patient, so neither the order of the cases
    nor the Python version matters. Of a merged dataset each part is dealt by itself, so that every fold has its share
    of each hospital.

    Args:
        cases: The labelled cases, in any order.
        n: How many folds; at least 2, at most the number of patients.
        seed: Another seed, another partition.

    Raises:
        UsageError: If ``n`` does not fit the number of patients.

    Example:
        >>> from medseg.datasets.case import Case
        >>> cases = [Case(f"{p}{visit}", (), None, patient=p) for p in "abcd" for visit in (1, 2)]
        >>> [len(fold.val) for fold in folds(cases, 2)]
        [4, 4]
    """
    cases = list(cases)
    groups, origin = _by_patient(cases), {case.id: getattr(case, "dataset", "") for case in cases}
    if not 2 <= n <= len(groups):
        raise UsageError(
            f"the number of folds must be between 2 and the number of patients ({len(groups)}), got {n}",
            "Choose another number of folds, or give an explicit split file",
        )
    dealt: list[list[str]] = [[] for _ in range(n)]
    ours: Counter[tuple[str, int]] = Counter()
    for patient in sorted(groups, key=lambda patient: (-len(groups[patient]), _rank(seed, patient))):
        of = min(origin[case] for case in groups[patient])
        fold = min(range(n), key=lambda fold: (ours[of, fold], len(dealt[fold])))
        ours[of, fold] += len(groups[patient])
        dealt[fold].extend(groups[patient])
    everything = {case for ids in groups.values() for case in ids}
    return tuple(Fold(tuple(sorted(everything - set(val))), tuple(sorted(val))) for val in dealt)


def read_split(path: Path, cases: Iterable[Examined]) -> tuple[Fold, ...]:
    """Read folds from a JSON or YAML file: a list of ``{train: [...], val: [...]}``, as nnU-Net's splits_final.json.

    Args:
        path: The file.
        cases: What the ids must belong to; cases that a fold leaves out are allowed.

    Raises:
        DataError: The file is missing or malformed, names an unknown case, or lets a case or a patient be in both
            ``train`` and ``val`` of one fold.
    """
    groups = _by_patient(cases)
    patient_of = {case: patient for patient, ids in groups.items() for case in ids}
    entries = read_document(path, remedy="Correct the split file")
    if not isinstance(entries, list) or not entries:
        raise DataError(path, "holds no list of folds", "Write [{train: [...], val: [...]}, ...]")
    return tuple(_fold(path, number, entry, patient_of) for number, entry in enumerate(entries))


def _by_patient(cases: Iterable[Examined]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(case.patient, []).append(case.id)
    return groups


def _rank(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()


def _fold(path: Path, number: int, entry: Any, patient_of: Mapping[str, str]) -> Fold:
    sides = {side: _ids(path, number, side, entry, patient_of) for side in ("train", "val")}
    shared = set(sides["train"]) & set(sides["val"])
    if shared:
        raise DataError(path, f"has case {min(shared)!r} in both train and val of fold {number}", "Keep it in one")
    patients = {side: {patient_of[case] for case in ids} for side, ids in sides.items()}
    leaked = patients["train"] & patients["val"]
    if leaked:
        raise DataError(
            path,
            f"has cases of patient {min(leaked)!r} in both train and val of fold {number}",
            "Move all cases of this patient to one side",
        )
    return Fold(tuple(sorted(sides["train"])), tuple(sorted(sides["val"])))


def _ids(path: Path, number: int, side: str, entry: Any, patient_of: Mapping[str, str]) -> list[str]:
    ids = entry.get(side) if isinstance(entry, dict) else None
    if not isinstance(ids, list) or not ids:
        raise DataError(path, f'has no "{side}" cases in fold {number}', "List at least one case id")
    known = {composed(case): case for case in patient_of}
    seen: set[str] = set()
    ids = [known.get(composed(case), case) if isinstance(case, str) else case for case in ids]
    for case in ids:
        if not isinstance(case, str):
            raise DataError(path, f"has {case!r} in fold {number}, which is not text", "Put quotes around case ids")
        if case not in patient_of:
            problem = f"names an unknown case {case!r} in {side} of fold {number}{meant(case, patient_of)}"
            raise DataError(path, problem, "Correct or remove it, or add the case to the dataset")
        if case in seen:
            raise DataError(path, f"names case {case!r} twice in {side} of fold {number}", "Keep it once")
        seen.add(case)
    return ids
