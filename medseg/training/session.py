"""A whole training in its run folder, from the command line or from Python: begun or gone on with, and carried out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import seed_everything

from medseg.checkpoints.run import Run
from medseg.errors import InterruptionError
from medseg.patches.datamodule import VolumesDataModule
from medseg.training.fit import build_trainer, train
from medseg.training.lightning import rehearses
from medseg.training.own import name_of
from medseg.training.signing import UnequalDataError
from medseg.training.start import find_start, taken
from medseg.training.task import SegmentationTask


def fit(
    store: str | Path,
    run: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    ckpt_path: str | None = None,
    checkpoint_minutes: float = 5.0,
    seed: int = 0,
    **model: Any,
) -> Run:
    """Train as ``medseg fit`` does, with everything that it writes into a run folder.

    Args:
        store: A prepared dataset, see `medseg.store.prepare.prepare`.
        run: The folder to write to.
        data: Options of `medseg.patches.datamodule.VolumesDataModule`, such as ``{"fold": 1}``.
        trainer: Options of `medseg.training.fit.build_trainer`, such as ``{"max_steps": 1000}``; loggers and callbacks
            may be objects.
        ckpt_path: ``last`` to go on, ``best``, or a file; None begins anew.
        checkpoint_minutes: Between two writes of ``last.ckpt``, those after a validation aside.
        seed: Of all that is drawn.
        model: Options of `medseg.training.task.SegmentationTask`; ``net`` and ``loss`` may be objects.

    Returns:
        The run: ``run.best`` is its checkpoint.

    Raises:
        MedsegError: The data, an option or a checkpoint is at fault, or the training was asked to stop.
    """
    seed_everything(seed, workers=True, verbose=False)
    options = {"store": str(store), **(data or {})}
    volumes = VolumesDataModule(**options)
    task = SegmentationTask(volumes.plan.to_dict(), **model)
    config = {
        "seed_everything": seed,
        "checkpoint_minutes": checkpoint_minutes,
        **{"data": _plain(options), "model": _plain(model), "trainer": _plain(trainer or {})},
    }
    folder = Run(Path(run))
    carry_out(folder, config, volumes, task, ckpt_path=ckpt_path, minutes=checkpoint_minutes, **(trainer or {}))
    return folder


def carry_out(
    run: Run,
    config: Mapping[str, Any],
    data: VolumesDataModule,
    task: SegmentationTask,
    *,
    ckpt_path: str | None,
    minutes: float,
    **trainer: Any,
) -> int:
    """Find where the training begins, take the folder, train.

    Args:
        run: The folder.
        config: The whole config as plain data, which is kept there and signs every checkpoint.
        data: What the task learns from.
        task: What learns.
        ckpt_path: As in `medseg.training.start.find_start`.
        minutes: Between two writes of ``last.ckpt``.
        trainer: As in `medseg.training.fit.build_trainer`.

    Returns:
        The exit status of this process.

    Raises:
        MedsegError: As in `fit`.
    """
    _ = data.cases  # the fold exists and the cases are there, before anything is written
    start = find_start(run, ckpt_path)
    made = build_trainer(run, config, first_step=start.step, minutes=minutes, **trainer)
    written = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    with taken(run, start, written) if made.is_global_zero and not rehearses(made) else nullcontext():
        try:
            train(made, task, data, checkpoint=start.checkpoint, first_step=start.step)
        except (InterruptionError, UnequalDataError) as error:  # of what every process knows, one tells
            if made.is_global_zero:
                raise
            return 0 if isinstance(error, InterruptionError) else error.exit_status
    return 0


def _plain(value: Any) -> Any:
    """Options as a file can hold them: of an object, the dotted path of what it is."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else name_of(value)
