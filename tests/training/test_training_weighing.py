"""Class weights by a word: the numbers come from the training cases of the fold, and stay with the checkpoint."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from medseg.errors import UsageError
from medseg.patches.datamodule import VolumesDataModule
from medseg.store.store import Store
from medseg.training.task import SegmentationTask

LOSS = "dice + cross_entropy(weight=balanced)"


def trainer():
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=False, max_epochs=1, limit_val_batches=0, **quiet)


def parts_of(store, **options):
    data = VolumesDataModule(store, batch_size=2, steps_per_epoch=1, workers=0, **{"folds": 2, **options})
    return data, SegmentationTask(data.plan.to_dict(), net_options={"features": [4, 8]}, loss=LOSS)


def balanced_by_hand(store, cases):
    """sklearn's formula on the voxels as the store has them."""
    labels = np.concatenate([np.asarray(Store(store).labels(case)[:]).ravel() for case in cases])
    counts = np.bincount(labels[labels >= 0])
    return counts.sum() / (len(counts) * counts)


def test_weights_are_those_of_the_training_cases_and_stay(store, tmp_path, caplog):
    data, task = parts_of(store)
    fitting = trainer()
    fitting.fit(task, data)
    expected = balanced_by_hand(store, data.cases.train)
    np.testing.assert_allclose(task.hparams["class_weights"]["balanced"], expected)
    assert "class weights balanced, from 2 training cases" in caplog.text
    logits, target = torch.randn(1, 3, 4, 4, 4), torch.randint(3, (1, 4, 4, 4))
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.loss(logits, target) == task.loss(logits, target)
    fresh = SegmentationTask(task.plan.to_dict(), net_options={"features": [4, 8]}, loss=LOSS)
    assert fresh.loss(logits, target) != task.loss(logits, target)

    others, resumed = parts_of(store, folds=4, fold=1)  # other training cases than the run began with
    trainer().fit(resumed, others, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert not np.allclose(expected, balanced_by_hand(store, others.cases.train))
    assert resumed.hparams["class_weights"] == task.hparams["class_weights"]


def test_numbers_that_were_counted_are_counted_anew_and_those_that_were_given_stay(store, tmp_path, caplog):
    (data, task), (others, _) = parts_of(store), parts_of(store, folds=4, fold=1)
    theirs = balanced_by_hand(store, others.cases.train)
    fitting = trainer()
    fitting.fit(task, data)
    fitting.save_checkpoint(tmp_path / "counted.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "counted.ckpt")
    trainer().fit(loaded, others)
    np.testing.assert_allclose(loaded.hparams["class_weights"]["balanced"], theirs)

    given = {"balanced": np.array([1.0, 2.0, 3.0])}
    logits, target = torch.randn(1, 3, 4, 4, 4), torch.randint(3, (1, 4, 4, 4))
    other = SegmentationTask(task.plan.to_dict(), net_options={"features": [4, 8]}, loss=LOSS, class_weights=given)
    expected = other.loss(logits, target)
    caplog.clear()
    resuming = trainer()
    resuming.fit(other, data, ckpt_path=tmp_path / "counted.ckpt", weights_only=True)  # as it is told that they changed
    assert other.loss(logits, target) == expected
    resuming.save_checkpoint(tmp_path / "given.ckpt")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "given.ckpt")
    trainer().fit(again, others)
    assert again.hparams["class_weights"] == {"balanced": [1.0, 2.0, 3.0]}
    assert "class weights balanced" not in caplog.text


def test_a_training_that_nobody_can_count_asks_for_the_numbers(store):
    data, task = parts_of(store)
    with pytest.raises(UsageError, match=r"weighs classes by balanced.*class_weights"):
        trainer().fit(task, data.train_dataloader(), data.val_dataloader())
