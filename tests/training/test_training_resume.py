"""Killed and resumed: from whatever moment, the weights, the scores and the log end as if nothing had happened."""

import shutil
from pathlib import Path

import pytest
import torch
from support.runs import assert_same_runs, fit, load

from medseg.training.keep import CheckpointFiles

SETTINGS = [
    ["--trainer.max_steps", "8"],
    ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2", "--model.patience", "5"],
    ["--trainer.max_steps", "5", "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "2"],
    ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "0"],
]


@pytest.mark.sweep(3)
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


def test_what_a_training_goes_on_from_is_read_once(store, tmp_path, monkeypatch):
    read, load_file = [], torch.load

    def noted(path, **options):
        read.append(Path(path).name)
        return load_file(path, **options)

    monkeypatch.setattr(torch, "load", noted)
    run = tmp_path / "run"
    assert fit(store, run, "--trainer.max_steps", "1") == 0
    assert read == []
    assert fit(store, run, "--trainer.max_steps", "2", "--ckpt_path", "last") == 0
    assert read == ["last.ckpt"]
    assert load_file(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
