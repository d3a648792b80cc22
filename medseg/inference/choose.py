"""Decide the cleaning of each organ on held-out predictions, and write it into the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.reading import read_checkpoint
from medseg.datasets.case import require_same_grid
from medseg.errors import CheckpointError, DataError, listed
from medseg.inference.clean import Choice, choose_rules, rules_to_plain
from medseg.machine.files import digest_of, whole
from medseg.plan.plan import Plan
from medseg.space.reading import case_name, images_in, read_labels
from medseg.store.identity import trace


def choose_cleaning(checkpoints: Sequence[Path], predictions: Path, references: Path) -> dict[str, Choice]:
    """Try every rule on predictions of cases that the checkpoints did not train on; keep what raises Dice.

    The rules are written into the ``medseg`` entry of every checkpoint, replacing earlier ones, and `medseg predict`
    follows them from then on. With the folds of one plan, gather the uncleaned predictions of every fold's held-out
    cases in one folder: a choice on more cases is a better one.

    Args:
        checkpoints: Of one plan.
        predictions: Folder of uncleaned predictions, such as ``test/predictions`` of a run.
        references: Folder with a reference of the same name for each of them.

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
    values = plan.painted
    pairs = _pairs(predictions, references)
    _require_held_out(kept, [reference for _, reference in pairs])
    choices = choose_rules(_read(pairs, plan), tuple(values.values()), ignore=plan.ignore)
    rules = {value: choice.rule for value, choice in choices.items()}
    for one in kept:
        with whole(one.path, remedy="Free space or check its rights") as partial, partial.open("wb") as file:
            torch.save(one.with_cleaning(rules_to_plain(rules)), file)
    return {organ: choices[value] for organ, value in values.items()}


def _require_held_out(kept: Sequence[Checkpoint], references: Sequence[Path]) -> None:
    """A case that only some of the checkpoints were trained on may have been predicted by the others."""
    seen = set.intersection(*(one.trained_on for one in kept))
    known = [path for path in references if seen and trace(case_name(path), digest_of(path, "sha256")) in seen]
    if known:
        cases = listed(map(case_name, known))
        problem = f"holds cases that {listed(one.path for one in kept)} was trained on: {cases}"
        raise DataError(known[0].parent, problem, "Give predictions of held-out cases, which medseg test writes")


def _pairs(predictions: Path, references: Path) -> list[tuple[Path, Path]]:
    found = images_in(predictions)
    if not found:
        raise DataError(predictions, "holds no prediction", "Give the folder that medseg test or predict wrote")
    by_case = {case_name(path): path for path in images_in(references)}
    for path in found:
        if case_name(path) not in by_case:
            raise DataError(references, f"holds no reference for {path.name}", "Give the folder of its label files")
    return [(path, by_case[case_name(path)]) for path in found]


def _read(
    pairs: list[tuple[Path, Path]], plan: Plan
) -> Iterator[tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]]]:
    for prediction_file, reference_file in pairs:
        prediction, reference = read_labels(prediction_file), read_labels(reference_file)
        require_same_grid(prediction_file, prediction, reference_file, reference)
        labels = reference.array[0]
        if plan.exclusive:  # an organ of several values is predicted as the first of them
            for several in plan.values:
                labels = np.where(np.isin(labels, several[1:]), several[0], labels) if several[1:] else labels
        yield prediction.array[0], labels, prediction.spacing_mm
