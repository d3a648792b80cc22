"""The data that a job stands for: which cases train it and which are held out, each by its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.checkpoints.facts import read_facts
from medseg.errors import CheckpointError, DataError, UsageError, listed
from medseg.machine.files import digest_of
from medseg.machine.typed import to_plain
from medseg.plan.plan import Plan
from medseg.store.identity import among, identity
from medseg.store.store import Store


@dataclass(frozen=True)
class JobData:
    """The cases of one training and its test.

    Attributes:
        train: Case -> letters that change with its files and how it was prepared, as `medseg.store.identity` tells.
        held_out: The same of the cases that are tested.
        plan: The plan as plain data.
        start: Digest of the file of ``model.init_from``; None where there is none, or nobody knows.
    """

    train: Mapping[str, str]
    held_out: Mapping[str, str]
    plan: Mapping[str, Any]
    start: str | None = None

    def differs(self, now: JobData) -> str:
        """What is no longer as it was, for a sentence, with the names of the cases; empty if all is.

        Example:
            >>> before = JobData({"a": "1", "b": "2"}, {"c": "3"}, {})
            >>> before.differs(JobData({"a": "9"}, {"c": "3", "d": "4"}, {}))
            'd is new, b is gone, a was changed'
        """
        there, here = ({**data.train, **data.held_out} for data in (self, now))
        both = [case for case in there if case in here]
        changed = [case for case in both if there[case] != here[case]]
        moved = [case for case in both if case not in changed and (case in self.train) != (case in now.train)]
        fields = [name for name, value in now.plan.items() if self.plan.get(name) != value]
        begun = (
            ["the file of model.init_from"] if None not in (self.start, now.start) and self.start != now.start else []
        )
        kinds = (
            ([case for case in here if case not in there], "is new", "are new"),
            ([case for case in there if case not in here], "is gone", "are gone"),
            ([*changed, *begun], "was changed", "were changed"),
            (moved, "is in another part of the split", "are in another part of the split"),
            (fields, "of the plan was changed", "of the plan were changed"),
        )
        return ", ".join(f"{listed(cases)} {many if len(cases) > 1 else one}" for cases, one, many in kinds if cases)


def data_of(
    letters: Mapping[str, str], plan: Plan, train: Sequence[str], held_out: Sequence[str], start: str | None = None
) -> JobData:
    """The data of a training on some cases of a store, of whose letters `medseg.store.identity.identity` tells."""
    ours, theirs = ({case: letters[case] for case in cases} for cases in (train, held_out))
    return JobData(ours, theirs, to_plain(plan), start)


def start_of(init_from: str | None) -> str | None:
    """What a `JobData` notes of the file that a training begins with; of one that is gone, nothing."""
    return digest_of(Path(init_from)) if init_from and Path(init_from).is_file() else None


def require_unseen(store: Store, init_from: str | None, held_out: Sequence[str]) -> None:
    """Refuse trainings from weights that know the cases to test: each test would refuse them, when all is trained.

    Raises:
        UsageError: They were trained on some, by what their checkpoint says.
    """
    if not init_from:
        return
    try:
        known = read_facts(Path(init_from)).trained_on
    except CheckpointError:  # a file of others, or none: a training says which
        return
    if cases := among(known, store, held_out):
        problem = f"{init_from}, to begin with, was trained on {len(cases)} of the cases to test ({listed(cases)})"
        raise UsageError(problem, "Begin with weights of other cases, or leave --model.init_from out")


def require_unchanged(store: Path, letters: Mapping[str, str], init_from: str | None, start: str | None) -> None:
    """Refuse results of trainings while which their data became others.

    Args:
        store: Of all cases.
        letters: That its cases had before.
        init_from: The file that the trainings began with.
        start: What `start_of` told of it before.

    Raises:
        DataError: The store was prepared anew, or the file written anew.
    """
    change = JobData(letters, {}, {}, start).differs(JobData(identity(Store(store)), {}, {}, start_of(init_from)))
    if change:
        raise DataError(store, f"is not as it was before: {change}", "Remove what is in --output, and run it again")
