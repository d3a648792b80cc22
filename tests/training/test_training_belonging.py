"""What is put together in a trainer of one's own belongs together: a task, data, a checkpoint; or it is said."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional

from medseg.checkpoints.reading import read_checkpoint
from medseg.errors import CheckpointError, DataError, UsageError
from medseg.patches.datamodule import VolumesDataModule
from medseg.training.task import SegmentationTask

SMALL = {"net_options": {"features": [4, 8, 8]}, "optimizer": "adamw", "lr": 1e-2}
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "num_sanity_val_steps": 0, "enable_checkpointing": False, "max_steps": 3,
}  # fmt: skip


def data_of(store, **options):
    return VolumesDataModule(store, **{"folds": 2, "batch_size": 2, "steps_per_epoch": 3, "workers": 0, **options})


def task_of(store, **options):
    torch.manual_seed(0)
    return SegmentationTask(data_of(store).plan.to_dict(), **{**SMALL, **options})


@pytest.fixture(scope="module")
def averaged(store, tmp_path_factory):
    """A trainer that trained with averaged weights, its task, and their checkpoint."""
    task, trainer = task_of(store, ema=0.9), pl.Trainer(**QUIET)
    trainer.fit(task, data_of(store))
    path = tmp_path_factory.mktemp("averaged") / "a.ckpt"
    raw = {name: weight + 0.05 for name, weight in task.state_dict().items() if name.startswith("net.")}
    task.load_state_dict(raw, strict=False)  # a fit ends with the averages: now they are told apart
    trainer.save_checkpoint(path)
    return trainer, task, path


def score(task, data, trainer=None, stage="validate", **options):
    trainer = trainer or pl.Trainer(**QUIET)
    return getattr(trainer, stage)(task, data, verbose=False, **options)[0][
        {"validate": "val"}.get(stage, stage) + "/dice"
    ]


@pytest.mark.parametrize(
    ("entry", "change", "told"),
    [
        ("labels", lambda labels: dict(zip(labels, reversed([*labels.values()]), strict=True)), "holds the labels"),
        ("labels", lambda labels: dict(reversed([*labels.items()])), "holds the labels"),
        ("modalities", lambda names: ["MR"], "of CT, the network was trained on"),
        ("spacing_mm", lambda sizes: [2 * size for size in sizes], "was prepared with spacing_mm"),
        ("normalisation", lambda rules: [{"scheme": "zscore"}], "was prepared with normalisation"),
    ],
    ids=["numbers", "order", "modality", "spacing", "normalisation"],
)
def test_data_that_a_network_does_not_know_are_refused(store, entry, change, told):
    plan = data_of(store).plan.to_dict()
    task = SegmentationTask({**plan, entry: change(plan[entry])}, **SMALL)
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(DataError, match=told):
            getattr(pl.Trainer(**QUIET), stage)(task, data_of(store))


def test_cases_that_were_trained_on_are_told_after_a_fit_and_from_a_checkpoint(store, tmp_path):
    task, trainer = task_of(store), pl.Trainer(**QUIET)
    trainer.fit(task, data_of(store, fold=0))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert len(read_checkpoint(tmp_path / "a.ckpt").trained_on) == 4  # images and labels of two cases
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    for one in (task, loaded):
        for stage in ("validate", "test"):
            with pytest.warns(UserWarning, match="2 of these 2 cases were trained on"):
                getattr(trainer, stage)(one, data_of(store, fold=1), verbose=False)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*were trained on")
                getattr(trainer, stage)(one, data_of(store, fold=0), verbose=False)
    another = task_of(store)
    pl.Trainer(**QUIET).fit(another, data_of(store, fold=1), ckpt_path=tmp_path / "a.ckpt")
    assert another.trained_on > loaded.trained_on


def test_averages_are_what_a_trainer_scores_after_its_fit_and_no_other_task_gets_them(store, averaged):
    trainer, _, path = averaged
    expected = score(SegmentationTask.load_from_checkpoint(path), data_of(store))
    assert score(task_of(store, ema=0.9), data_of(store), trainer, ckpt_path=path) == expected
    assert score(task_of(store, ema=0.9), data_of(store), trainer, "test", ckpt_path=path) == expected
    fresh = task_of(store)
    assert score(fresh, data_of(store), trainer) == score(fresh, data_of(store)) != expected


def test_a_validation_that_broke_off_leaves_nothing_in_the_next(store, averaged, monkeypatch):
    _, _, path = averaged
    expected = score(SegmentationTask.load_from_checkpoint(path), data_of(store))
    task, segment, seen = task_of(store), SegmentationTask.segment, []

    def breaks(self, image):
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("stopped")
        return segment(self, image)

    monkeypatch.setattr(SegmentationTask, "segment", breaks)
    with pytest.raises(RuntimeError, match="stopped"):
        score(task, data_of(store))
    task.load_state_dict(read_checkpoint(path).state)
    assert score(task, data_of(store)) == expected


def test_weights_to_start_from_are_there_before_any_training(store, averaged, tmp_path):
    _, _, path = averaged
    expected = score(SegmentationTask.load_from_checkpoint(path), data_of(store))
    assert score(task_of(store, init_from=str(path)), data_of(store)) == expected
    assert score(task_of(store, init_from=str(path)), data_of(store), stage="test") == expected
    with pytest.warns(UserWarning, match="2 of these 2 cases were trained on"):
        score(task_of(store, init_from=str(path)), data_of(store, fold=1))
    for stage in ("validate", "test", "predict"):
        with pytest.raises(CheckpointError, match=r"none\.ckpt"):
            getattr(pl.Trainer(**QUIET), stage)(task_of(store, init_from=str(tmp_path / "none.ckpt")), data_of(store))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # Lightning's, of callbacks of a training
def test_only_a_training_asks_for_the_optimizer_of_a_checkpoint(store, averaged):
    _, _, path = averaged
    other = task_of(store, optimizer="sgd")
    assert score(other, data_of(store), stage="test", ckpt_path=path) > 0
    with pytest.raises(CheckpointError, match="the optimizer adamw, the config asks for sgd"):
        pl.Trainer(**QUIET).fit(task_of(store, optimizer="sgd"), data_of(store), ckpt_path=path)


def of_whole_numbers(logits, labels):
    return functional.cross_entropy(logits, labels.long(), ignore_index=-1)


class WithItsOwnLoss(SegmentationTask):
    """As a user writes it: an argument of the parent with another default, which is an object."""

    def __init__(self, plan, loss=of_whole_numbers, **options):
        super().__init__(plan, loss=loss, **options)


def test_a_subclass_hands_an_object_on(store):
    task = WithItsOwnLoss(data_of(store).plan.to_dict(), **SMALL)
    assert (task.hparams["net"], task.hparams["loss"]) == ("unet", f"{__name__}.of_whole_numbers")
    pl.Trainer(**QUIET).fit(task, data_of(store))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"strict": False}, UsageError, "has no strict. Leave it out"),
        ({"loss": "dicee"}, CheckpointError, "does not fit the loss that is given .*dicee.* Correct what is given"),
        ({"net_options": {"features": [2, 2, 2]}}, CheckpointError, "does not fit the net_options that is given"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_given_beside_a_checkpoint_is_what_is_at_fault(averaged, options, error, told):
    with pytest.raises(error, match=told):
        SegmentationTask.load_from_checkpoint(averaged[2], **options)
