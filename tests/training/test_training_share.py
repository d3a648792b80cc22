"""How often a training is validated: a share of the time, counted and not measured."""

import csv
import shlex

import pytest
import pytorch_lightning as pl
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Timer
from support.runs import fit

from medseg.cli import main
from medseg.patches.stitch import tile_starts
from medseg.training import share
from medseg.training.share import count_windows, epochs_between


@given(st.floats(65, 1e5), st.floats(1, 1e4), st.floats(0.01, 0.9))
def test_validation_takes_no_more_than_its_share_and_no_less_often_than_it_may(windows, passes, part):
    every = epochs_between(windows, passes, part)
    assert windows / (windows + every * passes) <= part + 1e-9 or windows / every <= share.FEW_WINDOWS
    if every > 1:
        sooner = every - 1
        assert windows / (windows + sooner * passes) > part - 1e-9


def test_windows_are_those_of_a_prediction():
    shape, patch = (300, 70, 20), (128, 64, 32)
    tiles = [len(tile_starts(max(n, m), m)) for n, m in zip(shape, patch, strict=True)]
    assert count_windows([shape, shape], patch, 0.5) == 2 * tiles[0] * tiles[1] * tiles[2] == 2 * 4 * 2 * 1


def validated(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) // 3 + 1 for row in csv.DictReader(file) if row["val/dice"]]


@pytest.mark.slow
def test_validations_are_seldom_where_they_cost_much_and_the_end_is_always_validated(store, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "FEW_WINDOWS", 1)
    said = []
    monkeypatch.setattr(share, "rank_zero_info", said.append)
    few = ["--data.patch_size", "[16, 16, 8]", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "11"]
    few += ["--model.validation_share", "0.01"]
    assert fit(store, tmp_path / "run", *few) == 0
    assert validated(tmp_path / "run") == [2, 4, 6, 8, 10, 11]  # at least five
    assert "it comes after every 2 epochs" in said[0]
    assert fit(store, tmp_path / "all", *few[:-1], "1", "--trainer.max_epochs", "3") == 0
    assert validated(tmp_path / "all") == [1, 2, 3]
    assert len(said) == 1


@pytest.mark.parametrize("value", ["0", "1.5"])
def test_a_share_is_a_share(store, tmp_path, capsys, value):
    assert fit(store, tmp_path / "run", "--model.validation_share", value) == 2
    assert "above 0 and at most 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_of_many_passes_over_patches_that_lie_still_is_told_so(store, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "MANY_STEPS", 14)
    monkeypatch.setattr(share, "MANY_PASSES", 15)
    monkeypatch.setattr(share, "ENOUGH_PASSES", 10)
    said = []
    monkeypatch.setattr(share, "rank_zero_info", said.append)
    small = ["--data.patch_size", "[16, 16, 8]", "--model.validation_share", "1", "--trainer.max_steps"]
    assert fit(store, tmp_path / "many", *small, "15", "--data.augmentation", "moderate") == 0
    (line,) = said
    assert "about 15 steps, 15 passes over 2 cases, and 64% of its patches are neither turned, scaled, bent nor" in line
    assert "--trainer.max_steps 10 ends it after 10" in line
    assert fit(store, tmp_path / "full", *small, "15", "--data.augmentation", "full") == 0  # with its mirrors
    assert fit(store, tmp_path / "few", *small, "13", "--data.augmentation", "moderate") == 0
    assert len(said) == 1


@pytest.mark.slow
def test_a_time_that_holds_too_few_steps_is_told_with_the_line_that_plans_for_it(store, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(share, "rank_zero_info", said.append)
    monkeypatch.setattr(share, "FEWEST_STEPS", 10**9)
    small = ["--data.patch_size", "[16, 16, 8]", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "100000"]
    assert fit(store, tmp_path / "run", *small, "--trainer.max_time", "00:00:00:06") == 0
    (line,) = said
    assert line.startswith("at this pace trainer.max_time holds about ")
    words = shlex.split(line.partition("learns little: ")[2].partition(" chooses one")[0])
    assert words == ["medseg", "plan", str(store.parent / "toy"), "--minutes", "0.1", "--out", "quick.yaml"]
    monkeypatch.chdir(tmp_path)
    assert main(words[1:]) == 0


def test_a_time_that_is_over_before_anything_can_be_judged_is_told_too(monkeypatch):
    said = []
    monkeypatch.setattr(share, "rank_zero_info", said.append)
    trainer = pl.Trainer(max_time="00:00:00:01", logger=False, accelerator="cpu", enable_checkpointing=False)
    tell = share.TellBudget()
    tell.on_fit_start(trainer, None)
    timer = next(one for one in trainer.callbacks if isinstance(one, Timer))
    monkeypatch.setattr(timer, "time_elapsed", lambda *_: 30.0)
    tell.on_train_batch_end(trainer, None, None, None, 0)
    tell.on_train_end(trainer, None)
    assert "trainer.max_time held 0 steps" in said[0]
    assert "medseg plan DATASET --minutes 0.0167" in said[0]
