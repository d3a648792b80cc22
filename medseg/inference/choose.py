"""Decide the cleaning of each organ on held-out predictions, and write it into the checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.reading import read_checkpoint
from medseg.datasets.drawn import Meaning, agreed, read_drawn
from medseg.datasets.grids import require_same_grid
from medseg.datasets.matching import Pair, References, match, read_references
from medseg.errors import CheckpointError, DataError, listed
from medseg.inference.trial import Choice, Example, choose_rules
from medseg.machine.files import digest_of, whole
from medseg.plan.cleaning import rules_to_plain
from medseg.plan.plan import Plan
from medseg.space.volume import Volume
from medseg.store.identity import trace

log = logging.getLogger(__name__)


def choose_cleaning(
    checkpoints: Sequence[Path], predictions: Path, references: Path, *, tell: Callable[[str], object] = log.info
) -> dict[str, Choice]:
    """Try every rule on predictions of cases that the checkpoints did not train on; keep what raises Dice.

    The rules are written into the ``medseg`` entry of every checkpoint, replacing earlier ones, and `medseg predict`
    follows them from then on. With the folds of one plan, gather the uncleaned predictions of every fold's held-out
    cases in one folder: a choice on more cases is a better one.

    Args:
        checkpoints: Of one plan.
        predictions: Folder of uncleaned predictions, such as ``test/predictions`` of a run.
        references: Folder of references, or a dataset, with one for each of them.
        tell: Takes a line about cases that are left out.

    Returns:
        Organ name -> its rule and the mean Dice without and with it.

    Raises:
        CheckpointError: One is not ours, or they are of different plans.
        DataError: A folder is empty, a reference is missing, the two lie on different grids, or all of the checkpoints
            say that they were trained on a case.
    """
    kept = [read_checkpoint(path) for path in checkpoints]
    plan = kept[0].plan
    for one in kept:
        if one.plan != plan:
            raise CheckpointError(one.path, f"was trained on another plan than {kept[0].path}", "Choose for one plan")
    pool = read_references(references)
    pairs = _held_out(kept, _pairs(predictions, pool), tell)
    choices = choose_rules(_Examples(pairs, pool, plan), plan)
    rules = rules_to_plain({organ: choice.rule for organ, choice in choices.items()}, plan)
    for one in kept:
        with whole(one.path, remedy="Free space or check its rights") as partial, partial.open("wb") as file:
            torch.save(one.with_cleaning(rules), file)
    return choices


def _held_out(kept: Sequence[Checkpoint], pairs: tuple[Pair, ...], tell: Callable[[str], object]) -> tuple[Pair, ...]:
    """The cases that not all of the checkpoints were trained on, for one that was not may have predicted them."""
    seen = set.intersection(*(one.trained_on for one in kept))
    known = {one.case: one for one in pairs if seen and trace(one.case, digest_of(one.reference, "sha256")) in seen}
    cases, trained = listed(known), listed(one.path for one in kept)
    if len(known) == len(pairs):
        problem, remedy = f"holds cases that {trained} was trained on: {cases}", "which medseg test writes"
        raise DataError(pairs[0].reference.parent, problem, f"Give predictions of held-out cases, {remedy}")
    if known:
        tell(f"{len(known)} of {len(pairs)} cases are left out, for {trained} was trained on them: {cases}")
    return tuple(pair for pair in pairs if pair.case not in known)


def _pairs(predictions: Path, references: References) -> tuple[Pair, ...]:
    matched = match(predictions, replace(references, all_expected=False))
    if matched.failures:
        first = matched.failures[0]
        raise DataError(
            predictions, f"holds {listed(one.case for one in matched.failures)} without partner", first.reason
        )
    return matched.pairs


@dataclass(frozen=True)
class _Examples:
    """The cases of some files, read anew whenever they are looked at: all of them may not fit into memory."""

    pairs: tuple[Pair, ...]
    references: References
    plan: Plan

    def __iter__(self) -> Iterator[Example]:
        covered = self.references.covered(self.plan.labels)
        for pair in self.pairs:
            ours = self.references.meaning
            own = pair.meaning or Meaning(self.plan.labels, self.plan.ignore, self.plan.others_value)
            prediction = read_drawn(pair.prediction, pair.image, ours).require_labels()
            drawn = (
                read_drawn(path, pair.image, pair.meaning or ours).require_labels()
                for path in (pair.reference, *pair.raters)
            )
            maps = [Volume(own.numbering.settled(one.array), one.affine) for one in drawn]
            reference = agreed(maps, self.references.ignore)
            require_same_grid(pair.prediction, prediction, pair.reference, reference)
            voxel_mm3 = abs(float(np.linalg.det(reference.affine[:3, :3])))
            yield Example(pair.case, prediction.array[0], reference.array[0], voxel_mm3, covered.get(pair.case))
