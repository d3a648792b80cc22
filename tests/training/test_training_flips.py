"""A checkpoint says along which axes its training flipped patches."""

import numpy as np
import pytest
from support.runs import fit

from medseg.checkpoints.facts import read_facts
from medseg.checkpoints.run import Run
from medseg.patches.datamodule import VolumesDataModule


@pytest.mark.parametrize(
    ("strength", "flips"),
    [("moderate", False), ("full", True), ({"preset": "light", "mirror_probability": 0.1}, True)],
)
def test_what_a_training_draws_is_what_it_says(store, strength, flips):
    """Over many draws, an axis is flipped if and only if it is named."""
    data = VolumesDataModule(store, folds=2, workers=0, steps_per_epoch=20, batch_size=4, augmentation=strength)
    drawn = np.concatenate([crops.draw.flips for crops in data.train_dataloader()])
    assert tuple(np.flatnonzero(drawn.any(axis=0))) == data.flips == (data.plan.mirror_axes if flips else ())


@pytest.mark.parametrize(("strength", "expected"), [("moderate", ()), ("full", (0, 1, 2))])
def test_a_checkpoint_keeps_what_its_training_flips(store, tmp_path, strength, expected):
    assert fit(store, tmp_path, "--trainer.max_steps", "1", "--data.augmentation", strength) == 0
    assert read_facts(Run(tmp_path).best).flips == expected
