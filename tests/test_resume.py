"""Killed and resumed: from whatever moment, the weights, the scores and the log end as if nothing had happened."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_toy_dataset

from medseg.checkpoints.writing import CheckpointFiles
from medseg.cli import main
from medseg.store.prepare import prepare

WORDS = [
    *("--data.folds", "2", "--data.batch_size", "2", "--data.steps_per_epoch", "3", "--data.workers", "0"),
    *("--model.net_options", json.dumps({"features": [4, 8], "dropout": 0.2}), "--model.ema", "0.5"),
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32", "--trainer.enable_progress_bar", "false"),
    *("--trainer.log_every_n_steps", "1", "--trainer.num_sanity_val_steps", "0"),
]
UNTIMED = ("time/", "memory/")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    return folder / "store"


def fit(store, run, *more):
    return main(["fit", "--data.store", str(store), "--run", str(run), *WORDS, *more])


def load(path):
    return torch.load(path, weights_only=True)


def rows(run):
    """What was logged, without what the clock says; rows that say nothing else are left out."""
    with (run / "metrics.csv").open(newline="") as file:
        found = [{k: v for k, v in row.items() if v and not k.startswith(UNTIMED)} for row in csv.DictReader(file)]
    return [row for row in found if set(row) - {"step", "epoch"}]


def assert_same(ours, theirs, where="checkpoint"):
    """Two nested structures are equal, tensors bit by bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def assert_same_runs(run, whole):
    """Weights, averages, optimizer, schedule, scores and progress of both checkpoints, and the log."""
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = load(run / "checkpoints" / name), load(whole / "checkpoints" / name)
        for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
            assert_same(ours.get(part), theirs.get(part), f"{name}/{part}")
        assert ours["medseg"]["scores"] == theirs["medseg"]["scores"]
        assert (ours["global_step"], ours["epoch"]) == (theirs["global_step"], theirs["epoch"])
        score = [c["best_model_score"] for c in (keeper(ours), keeper(theirs))]
        assert torch.equal(*score)
    ours, theirs = rows(run), rows(whole)
    assert ours == [row for row in theirs if row in ours], "a row twice, or another"
    assert len(ours) >= len(theirs) - 1, "a step is logged after it is kept: the killed run's last may lack its row"


def keeper(checkpoint):
    return next(state for name, state in checkpoint["callbacks"].items() if name.startswith("KeepCheckpoints"))


SETTINGS = [
    ["--trainer.max_steps", "8"],
    ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2", "--model.patience", "5"],
    ["--trainer.max_steps", "5", "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "2"],
    ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "0"],
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda words: words[2] if len(words) > 2 else words[0])
def test_a_run_goes_on_from_every_checkpoint_that_was_ever_its_last(store, tmp_path, monkeypatch, setting):
    """Written after every step, each is what a kill before the next would have left; the log ran on until then."""
    whole, kills = tmp_path / "whole", tmp_path / "kills"
    write = CheckpointFiles.save_checkpoint

    def write_and_copy(self, checkpoint, path, storage_options=None):
        write(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            shutil.copytree(whole, kills / f"{len(list(kills.glob('*'))):02}-{checkpoint['global_step']}")

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", write_and_copy)
    words = [*setting, "--checkpoint_minutes", "0"]
    assert fit(store, whole, *words) == 0
    monkeypatch.undo()
    steps = load(whole / "checkpoints" / "last.ckpt")["global_step"]
    assert len(list(kills.iterdir())) >= steps - 1
    for killed in sorted(kills.iterdir()):
        run = killed.rename(tmp_path / "run")
        assert fit(store, run, *words, "--ckpt_path", "last") == 0, killed
        if not (whole / "checkpoints" / "best.ckpt").exists():
            assert not (run / "checkpoints" / "best.ckpt").exists()
        else:
            assert_same_runs(run, whole)
        shutil.rmtree(run)
