"""What a training keeps can be read again; what cannot is refused before it is trained for."""

import numpy as np
import pytest
import pytorch_lightning as pl

from medseg.checkpoints.facts import read_facts
from medseg.checkpoints.run import Run
from medseg.errors import UsageError
from medseg.patches.datamodule import VolumesDataModule
from medseg.training.fit import build_trainer, fit, train
from medseg.training.task import SegmentationTask

SMALL = {"net_options": {"features": (4, np.int64(8), 8)}, "optimizer": "adamw", "lr": np.float64(1e-3)}
BRIEF = {"folds": 2, "batch_size": np.int64(2), "steps_per_epoch": 1, "workers": 0}
QUIET = {"accelerator": "cpu", "num_sanity_val_steps": 0, "enable_progress_bar": False}


class Notebook(pl.Callback):
    """A callback of one's own, with something to keep that is no plain data."""

    def state_dict(self):
        return {"seen": [np.zeros(2)]}


class Archive(VolumesDataModule):
    def __init__(self, store, **options):
        super().__init__(store, **options)
        self.save_hyperparameters()


def parts_of(store, data=VolumesDataModule):
    made = data(store, **BRIEF)
    return SegmentationTask(made.plan.to_dict(), **SMALL), made


def test_paths_tuples_and_numbers_of_numpy_are_arguments_like_others(store, tmp_path):
    source, trainer = (
        tmp_path / "source.ckpt",
        pl.Trainer(**QUIET, logger=False, enable_checkpointing=False, max_steps=0),
    )
    trainer.fit(*parts_of(store))
    trainer.save_checkpoint(source)
    tuned = fit(store, tmp_path / "tuned", init_from=source, **SMALL, **BRIEF, **QUIET, max_steps=np.int64(1)).best
    assert SegmentationTask.load_from_checkpoint(tuned).hparams["init_from"] == str(source)
    assert read_facts(tuned).options["net_options"] == {"features": [4, 8, 8]}


def test_what_no_reader_takes_is_refused_at_the_first_write_and_named(store, tmp_path):
    trainer = pl.Trainer(**QUIET, logger=False, enable_checkpointing=False, max_steps=0, callbacks=[Notebook()])
    trainer.fit(*parts_of(store))
    with pytest.raises(UsageError, match=r"Notebook\.seen\.0 in the callbacks' state, which is a numpy\.ndarray"):
        trainer.save_checkpoint(tmp_path / "never.ckpt")
    assert not (tmp_path / "never.ckpt").exists()


def test_hyperparameters_that_no_reader_takes_are_refused_before_the_first_step(store, tmp_path):
    trainer = build_trainer(Run(tmp_path / "run"), {}, logger=False, max_epochs=1, **QUIET)
    with pytest.raises(UsageError, match=r"store in the data module's hyperparameters, which is a pathlib\.\w+Path"):
        train(trainer, *parts_of(store, Archive))
    assert trainer.global_step == 0
