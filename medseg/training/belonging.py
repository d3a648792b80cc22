"""What may be put together: a task and data of its organs and its grid, a checkpoint and what it names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from typing import Any

import pytorch_lightning as pl

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.errors import CheckpointError, DataError, listed
from medseg.losses.expression import paths_in
from medseg.machine.dotted import Trust
from medseg.machine.hardware import precision_named
from medseg.patches.datamodule import VolumesDataModule
from medseg.plan.plan import Plan
from medseg.store.identity import among, traces
from medseg.store.store import GRID_FIELDS, Store, grid_of
from medseg.training.lightning import trainer_of

_ONLY_OF_LABELS = ("modalities", "labels", "ignore", "others")


def data_of(task: pl.LightningModule) -> VolumesDataModule | None:
    """The datamodule that a task is run on, in whatever trainer; None where it is given plain loaders."""
    data = getattr(trainer_of(task), "datamodule", None)
    return data if isinstance(data, VolumesDataModule) else None


def trainable_data(task: Any, *, prepared: bool = True) -> VolumesDataModule | None:
    """What `data_of` gives, held against the task, whose trainer computes in what images and losses stay in.

    Args:
        task: A `medseg.training.task.SegmentationTask`.
        prepared: As `require_same_data` takes it.

    Raises:
        UsageError: The trainer converts weights, as ``64-true`` and ``bf16-true`` do.
        DataError: As `require_same_data`.
    """
    trainer, data = trainer_of(task), data_of(task)
    if trainer is not None:
        precision_named(str(trainer.precision))
    if data is not None:
        require_same_data(task.plan, data, prepared=prepared)
    return data


def require_same_data(trained: Plan, data: VolumesDataModule, *, prepared: bool = True) -> None:
    """Refuse data of other organs than those of a network, and prepared volumes that look otherwise than it knows.

    Args:
        trained: The plan of the network.
        data: What it is about to be trained or judged on.
        prepared: Whether the prepared volumes are read; `medseg test` predicts the files that they came from.

    Raises:
        DataError: Labels or modalities are others or in another order, or a field of the plan differs: naming both.
    """
    given = data.plan
    if [*trained.labels.items()] != [*given.labels.items()] or trained.modalities != given.modalities:
        raise DataError(
            data.store,
            f"holds the labels {_worded(given)} of {', '.join(given.modalities)}, "
            f"the network was trained on {_worded(trained)} of {', '.join(trained.modalities)}",
            "Give the store that it was trained on",
        )
    ours, theirs = grid_of(trained), grid_of(given)
    for name in GRID_FIELDS:
        if prepared and name not in _ONLY_OF_LABELS and ours.get(name) != theirs.get(name):
            raise DataError(
                data.store,
                f"was prepared with {name} {theirs.get(name)}, the network was trained on {ours.get(name)}",
                "Prepare the data with --plan CHECKPOINT --adopt, or have medseg test predict their files",
            )


def known_by(data: VolumesDataModule, cases: Iterable[str]) -> set[str]:
    """What a checkpoint keeps of cases that are trained on, as `medseg.store.identity.traces` tells."""
    store = Store(data.store)
    return {trace for case in cases for trace in traces(store.info(case))}


def already_seen(trained_on: Set[str], data: VolumesDataModule) -> str:
    """Which of the cases that are held back a network was trained on, in words; empty for none.

    Args:
        trained_on: As `medseg.checkpoints.checkpoint.Checkpoint.trained_on`.
        data: On which it is judged.
    """
    judged = data.cases.val
    seen = among(trained_on, Store(data.store), judged) if trained_on else []
    return f"{len(seen)} of these {len(judged)} cases were trained on ({listed(seen)})" if seen else ""


def require_trusted(checkpoint: Checkpoint, trust: Trust | None, replaced: Collection[str] = ()) -> None:
    """Refuse a checkpoint whose options name something that nobody trusts, but for those that are replaced.

    Raises:
        CheckpointError: It does.
    """
    told = {name: value for name, value in checkpoint.options.items() if name not in replaced}
    names = [str(told.get(name)) for name in ("net", "optimizer")]
    losses = [str(told.get("loss")), *(told.get("study") or ())]
    try:
        paths = [path for loss in losses for path in paths_in(loss)]
    except ValueError as error:
        raise CheckpointError(checkpoint.path, f"cannot be read: {error}", "Use another checkpoint") from None
    for path in [*(name for name in names if "." in name), *paths]:
        (trust or Trust()).require(path, checkpoint.path)


def _worded(plan: Plan) -> str:
    return listed(f"{organ} ({value})" for organ, value in plan.labels.items())
