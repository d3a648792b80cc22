"""Trainings of seconds through the command line, and what two of them must share."""

import csv
import json

import torch

from medseg.cli import main

WORDS = [
    *("--data.folds", "2", "--data.batch_size", "2", "--data.steps_per_epoch", "3", "--data.workers", "0"),
    *("--model.net_options", json.dumps({"features": [4, 8], "dropout": 0.2}), "--model.ema", "0.5"),
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32", "--trainer.enable_progress_bar", "false"),
    *("--trainer.log_every_n_steps", "1", "--trainer.num_sanity_val_steps", "0"),
]


UNTIMED = ("time/", "memory/")


def fit(store, run, *more):
    return main(["fit", "--data.store", str(store), "--run", str(run), *WORDS, *more])


def load(path):
    return torch.load(path, weights_only=True)


def rows(run):
    """What was logged, without what the clock says; rows that say nothing else are left out."""
    with (run / "metrics.csv").open(newline="") as file:
        found = [{k: v for k, v in row.items() if v and not k.startswith(UNTIMED)} for row in csv.DictReader(file)]
    return [row for row in found if set(row) - {"step", "epoch"}]


def keeper(checkpoint):
    """What the callback that keeps checkpoints has noted in one."""
    return next(state for name, state in checkpoint["callbacks"].items() if name.startswith("KeepCheckpoints"))


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
