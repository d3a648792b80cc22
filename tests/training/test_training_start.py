"""Where a training begins and goes on: nothing of a run changes before it does, and no other run is touched."""

import csv
import shutil
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint

import medseg
from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.origin import differences, origin
from medseg.checkpoints.run import Run
from medseg.cli import main
from medseg.errors import CheckpointError, UsageError
from medseg.training.ending import StopEarly
from medseg.training.fit import fit, require_logged
from medseg.training.start import find_start
from medseg.training.steps import SeedSteps
from medseg.training.task import SegmentationTask

OPTIONS = {
    **{"folds": 2, "batch_size": 2, "steps_per_epoch": 3, "workers": 0, "net_options": {"features": [4, 8]}},
    **{"optimizer": "adamw", "lr": 0.0, "accelerator": "cpu", "precision": "32", "logger": False, "max_steps": 5},
    **{"enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def kept(store, tmp_path_factory):
    """Five steps at rate 0: the first of two validations, after step 3, stays the best."""
    return fit(store, tmp_path_factory.mktemp("kept") / "run", **OPTIONS)


@pytest.fixture
def run(kept, tmp_path):
    return Run(shutil.copytree(kept, tmp_path / "run"))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


def steps_in(run):
    with run.metrics.open(newline="") as file:
        return sorted({int(row["step"]) for row in csv.DictReader(file)})


class KilledError(Exception):
    """A kill, as far as files are concerned."""


class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        raise KilledError


@pytest.mark.filterwarnings("ignore:this run goes on under other circumstances")
@pytest.mark.parametrize(
    "other",
    [{"optimizer": "sgd"}, {"net_options": {"features": [4, 4]}}, {"freeze": ["net.*weight"]}],
    ids=lambda other: next(iter(other)),
)
def test_a_refused_attempt_to_go_on_leaves_every_file_as_it_was(store, run, other):
    before = content(run.path)
    with pytest.raises(CheckpointError):
        fit(store, run, resume="best", **{**OPTIONS, "max_steps": 9, **other})
    assert content(run.path) == before


def test_a_refused_training_leaves_no_folder_of_those_it_made(store, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="no weight is called"):
        fit(store, Run(tmp_path / "mine" / "new" / "run"), **{**OPTIONS, "freeze": ["nothing*"]})
    assert [*tmp_path.iterdir()] == [tmp_path / "mine"]
    assert not [*(tmp_path / "mine").iterdir()]


def test_a_kill_before_the_first_write_leaves_log_and_last_checkpoint_of_one_moment(store, run):
    assert (step_of(run.best), step_of(run.last), steps_in(run)) == (3, 5, [0, 1, 2, 3, 4])
    with pytest.raises(KilledError):
        fit(store, run, resume="best", **OPTIONS, callbacks=[Kill()])
    assert (step_of(run.last), steps_in(run)) == (3, [0, 1, 2])
    assert yaml.safe_load(run.config.read_text())["trainer"]["callbacks"]


def test_a_folder_with_another_training_is_not_taken_for_a_checkpoint_from_elsewhere(kept, run, monkeypatch):
    with pytest.raises(UsageError, match="run already holds a training"):
        find_start(run, str(kept.last))
    new = Run(run.path.with_name("new"))
    assert find_start(new, str(kept.last)).checkpoint == kept.last
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_start(new, str(kept.last)).checkpoint == kept.last
    assert find_start(run, str(kept.last)).checkpoint == run.last
    assert find_start(run, "best").checkpoint == run.last


def test_without_its_file_there_is_no_best_to_beat(store, run):
    run.best.unlink()
    with pytest.raises(CheckpointError, match="no validation has finished in this folder"):
        run.checkpoint()
    fit(store, run, resume="last", **{**OPTIONS, "max_steps": 6})
    assert step_of(run.best) == 6


def test_early_stopping_counts_on_with_the_patience_of_now():
    before, now = StopEarly(1), StopEarly(6)
    before.wait_count = 1
    now.load_state_dict(before.state_dict())
    assert (now.wait_count, now.patience) == (1, 6)


def test_the_seed_stays_that_of_the_run_and_it_is_said(caplog):
    steps = SeedSteps()
    with caplog.at_level("INFO"):
        steps.load_state_dict({"seed": torch.initial_seed() + 1})
    assert steps.seed == torch.initial_seed() + 1
    assert f"the run began with, {steps.seed}, not by {torch.initial_seed()}" in caplog.text
    one, other = (origin({}, config={"seed_everything": seed}, cases={}) for seed in (0, 1))
    assert differences(one, other, {}) == []


@pytest.mark.filterwarnings("ignore")  # of Lightning, about its own finder
def test_a_rate_that_was_found_is_gone_on_with_and_not_searched_again(store, tmp_path, caplog):
    found = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            found.append((trainer.global_step, module.hparams["lr"], trainer.optimizers[0].param_groups[0]["lr"]))

    def train(**options):
        finder = LearningRateFinder(num_training_steps=15, early_stop_threshold=None)
        given = {"lr": 1e-3, "schedule": "constant", "callbacks": [finder, Rates()], "limit_val_batches": 0}
        return fit(store, tmp_path / "run", **{**OPTIONS, **given, **options})

    kept = train(max_steps=2, steps_per_epoch=15)
    rate = Checkpoint(kept.last, torch.load(kept.last, weights_only=True)).options["lr"]
    assert rate != 1e-3
    with caplog.at_level("INFO"):
        train(max_steps=4, steps_per_epoch=15, resume="last")
    assert [step for step, _, _ in found] == [0, 1, 2, 3]
    assert {numbers[1:] for numbers in found} == {(rate, rate)}
    assert steps_in(kept) == [0, 1, 2, 3]
    assert "LearningRateFinder is left out" in caplog.text
    assert f"model.lr is {rate:g}, which was found when the run began, not the 0.001 of the config" in caplog.text
    train(max_steps=5, steps_per_epoch=15, resume="last", lr=5e-4)
    assert found[-1] == (4, 5e-4, 5e-4)


def test_the_config_of_a_run_in_python_says_values_and_no_more_than_a_config_can(store, tmp_path, capsys):
    watch = ModelCheckpoint(tmp_path, monitor="val/dice")
    given = {"fold": np.int64(1), "max_time": timedelta(hours=25, seconds=1.5), "callbacks": [watch], "max_steps": 1}
    run = fit(store, tmp_path / "run", **{**OPTIONS, **given})
    config = yaml.safe_load(run.config.read_text())
    assert (config["data"]["fold"], config["trainer"]["max_time"]) == (1, "01:01:00:02")
    assert main(["validate", "--run", str(run.path)]) == 0
    assert main(["fit", "--config", str(run.config), "--run", str(tmp_path / "again")]) == 2
    assert "given_in_python" in capsys.readouterr().err
    config["trainer"]["callbacks"], config["model"]["loss"] = None, {"given_in_python": "own.loss"}
    run.config.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(run.config), "--run", str(tmp_path / "again")]) == 2
    assert "model.loss is" in capsys.readouterr().err


def test_the_dice_of_a_dataset_may_be_watched(store):
    task = SegmentationTask(medseg.Store(store).plan.to_dict(), net_options={"features": [4, 8]})
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    data = SimpleNamespace(datasets={"a": "X", "b": "Y"})
    trainer.callbacks = [EarlyStopping("val/dice_by_dataset/X/liver")]
    require_logged(trainer, task, data)
    trainer.callbacks = [EarlyStopping("val/dice_by_dataset/Z/liver")]
    with pytest.raises(UsageError, match="nothing logs"):
        require_logged(trainer, task, data)


def test_what_fit_returns_is_loaded(kept, tmp_path):
    assert medseg.load(kept, device="cpu").plan.organs
    with pytest.raises(CheckpointError, match="neither"):
        medseg.load(tmp_path)
