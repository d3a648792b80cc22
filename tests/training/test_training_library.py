"""The task in a Lightning trainer of one's own: what every tutorial does works, and means what it says."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, GradientAccumulationScheduler, LearningRateFinder
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from medseg.checkpoints.run import Run
from medseg.cli import main
from medseg.errors import CheckpointError, UsageError
from medseg.patches.datamodule import VolumesDataModule
from medseg.training.fit import build_trainer, loggers, train
from medseg.training.fit import fit as training_fit
from medseg.training.task import SegmentationTask

SMALL = {"net_options": {"features": [4, 8, 8]}, "optimizer": "adamw", "lr": 1e-3}
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "num_sanity_val_steps": 0, "enable_checkpointing": False,
}  # fmt: skip


def data_of(store, **options):
    return VolumesDataModule(store, **{"folds": 2, "batch_size": 2, "steps_per_epoch": 2, "workers": 0, **options})


def plan_of(store):
    return data_of(store).plan.to_dict()


def fit(task, store, *, steps_per_epoch=2, **options):
    trainer = pl.Trainer(**{"max_epochs": 1, **QUIET, **options})
    trainer.fit(task, data_of(store, steps_per_epoch=steps_per_epoch))
    return trainer


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A task after one epoch, its last validation and its checkpoint."""
    task = SegmentationTask(plan_of(store), **SMALL)
    trainer = fit(task, store)
    path = tmp_path_factory.mktemp("trained") / "a.ckpt"
    trainer.save_checkpoint(path)
    return task, {name: float(value) for name, value in trainer.callback_metrics.items()}, path


def same_weights(one, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_load_predict_and_test_as_in_every_tutorial(store, trained):
    task, scores, path = trained
    again = SegmentationTask.load_from_checkpoint(path)
    assert same_weights(task, again)
    trainer = pl.Trainer(**QUIET)
    (found,) = trainer.test(again, data_of(store), verbose=False)
    assert found == {name.replace("val", "test"): scores[name] for name in scores if name.startswith("val/dice")}
    predicted = trainer.predict(again, data_of(store))
    assert [(volume.shape[0], volume.ndim, int(volume.max()) <= 2) for volume in predicted] == [(1, 4, True)] * 2


def test_loaders_without_their_datamodule_are_refused(store):
    data = data_of(store)
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(UsageError, match=r"trainer\.fit\(task, datamodule=data\)"):
        pl.Trainer(max_epochs=1, **QUIET).fit(SegmentationTask(plan_of(store), **SMALL), *loaders)


class Passing(SegmentationTask):
    def __init__(self, plan, alpha: float = 0.5, **others):
        super().__init__(plan, **others)
        self.alpha = alpha


def test_a_subclass_that_passes_arguments_on_is_loaded_with_all_of_them(store, tmp_path):
    task = Passing(plan_of(store), alpha=0.7, **SMALL)
    fit(task, store).save_checkpoint(tmp_path / "mine.ckpt")
    again = Passing.load_from_checkpoint(tmp_path / "mine.ckpt")
    assert again.alpha == 0.7
    assert same_weights(task, again)


def test_validation_may_be_asked_for_by_time(store):
    trainer = fit(SegmentationTask(plan_of(store), **SMALL), store, val_check_interval="00:00:00:01")
    assert trainer.global_step == 2
    assert "val/dice" in trainer.callback_metrics  # the end is validated whatever the interval


class Net(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer, self.norm = nn.Conv3d(in_channels, out_channels, 3, padding=1), nn.BatchNorm3d(out_channels)

    def forward(self, image):
        return self.norm(self.layer(image))


def own_loss(logits, target):
    return nn.functional.cross_entropy(logits, target.long(), ignore_index=-1)


def test_a_network_and_a_loss_are_taken_as_they_are(store, tmp_path):
    task = SegmentationTask(plan_of(store), net=Net(1, 3), loss=own_loss)
    fit(task, store).save_checkpoint(tmp_path / "own.ckpt")
    kept = torch.load(tmp_path / "own.ckpt", weights_only=True)["hyper_parameters"]
    assert (kept["net"], kept["loss"]) == (f"{__name__}.Net", f"{__name__}.own_loss")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt", net=Net(1, 3), loss=own_loss)
    assert same_weights(task, again)
    with pytest.raises(CheckpointError, match=r"names .*Net, which is no part of medseg"):
        SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt", loss=own_loss)
    with pytest.raises(UsageError, match=r"the loss returned shape \(3, 24"):
        fit(SegmentationTask(plan_of(store), net=Net(1, 3), loss=lambda logits, _: logits[0]), store)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start")
def test_weights_of_a_frozen_part_stay_with_their_running_statistics(store):
    task = SegmentationTask(plan_of(store), net=Net(1, 3), freeze=["net.norm*"])
    before = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    fit(task, store, max_epochs=2, num_sanity_val_steps=1)
    moved = {name for name, tensor in task.net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"layer.weight", "layer.bias"}


def scheduled(make, **how):
    class Scheduled(SegmentationTask):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()["optimizer"]
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **how}}

    return Scheduled


@pytest.mark.sweep(2)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize(
    "kind",
    [
        scheduled(lambda o: ReduceLROnPlateau(o, mode="max", patience=0), monitor="val/dice"),
        scheduled(lambda o: OneCycleLR(o, max_lr=1e-2, total_steps=10), interval="step"),
        scheduled(lambda o: StepLR(o, 1, gamma=0.1)),
    ],
    ids=["plateau", "one_cycle", "step"],
)
def test_schedulers_of_a_subclass_are_its_own(store, kind):
    trainer = fit(kind(plan_of(store), **SMALL), store, max_epochs=2)
    assert trainer.global_step == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning, about its own finder
def test_the_rate_that_was_found_is_the_one_that_is_trained_with(store, tmp_path):
    task = SegmentationTask(plan_of(store), **SMALL)
    finder = LearningRateFinder(num_training_steps=30, early_stop_threshold=None)
    trainer = fit(task, store, callbacks=[finder], default_root_dir=tmp_path, steps_per_epoch=30)
    assert task.hparams["lr"] == finder.optimal_lr.suggestion() != 1e-3
    assert {group["initial_lr"] for group in trainer.optimizers[0].param_groups} == {task.hparams["lr"]}
    task = SegmentationTask(plan_of(store), **SMALL)
    trainer = pl.Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    assert Tuner(trainer).lr_find(task, data_of(store), num_training=4).results["lr"]


def test_init_from_is_where_training_begins_and_nowhere_else(store, tmp_path, trained):
    _, _, path = trained
    origin = tmp_path / "origin.ckpt"
    origin.write_bytes(path.read_bytes())
    task = SegmentationTask(plan_of(store), **SMALL, init_from=str(origin))
    trainer = fit(task, store)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    tuned = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    for again in (task, SegmentationTask.load_from_checkpoint(tmp_path / "tuned.ckpt")):
        again.setup("fit")
        assert all(torch.equal(tensor, tuned[name]) for name, tensor in again.state_dict().items())
    origin.unlink()
    onward = pl.Trainer(**QUIET, max_epochs=2)
    fresh = SegmentationTask(plan_of(store), **SMALL, init_from=str(origin))
    onward.fit(fresh, data_of(store), ckpt_path=str(tmp_path / "tuned.ckpt"), weights_only=True)
    assert onward.global_step == 4


def test_the_last_layer_follows_the_organs_by_name(store, trained):
    task, _, path = trained
    plan = plan_of(store)
    turned = SegmentationTask(plan | {"labels": dict(reversed(plan["labels"].items()))}, **SMALL, init_from=str(path))
    turned.setup("fit")
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(turned.eval()(image), task.eval()(image)[:, [0, 2, 1]])
    others = SegmentationTask(plan | {"labels": {"heart": 1, "lung": 2}}, **SMALL, init_from=str(path))
    before = {name: tensor.clone() for name, tensor in others.state_dict().items()}
    others.setup("fit")
    heads = [name for name, tensor in others.state_dict().items() if torch.equal(tensor, before[name])]
    assert any(before[name].shape[:1] == (3,) for name in heads)
    assert "start afresh, for other organs (liver, spleen)" in others._begin()


class Notes(pl.Callback):
    """The rate of every step, and the steps after which it was validated."""

    def __init__(self):
        self.rates, self.validated = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, module):
        self.validated.append(trainer.global_step)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("accumulation", [{0: 1, 2: 6}, {0: 6, 2: 1}, {0: 4}], ids=str)
def test_a_budget_of_epochs_is_spent_in_epochs_whatever_a_step_consists_of(store, accumulation):
    notes = Notes()
    task = SegmentationTask(plan_of(store), **SMALL, schedule="linear")
    fit(
        task, store, steps_per_epoch=6, max_epochs=4, limit_val_batches=0,
        callbacks=[notes, GradientAccumulationScheduler(accumulation)],
    )  # fmt: skip
    assert [notes.rates[6 * epoch] for epoch in range(4)] == pytest.approx([1e-3 * (1 - n / 4) for n in range(4)])
    assert notes.rates == sorted(notes.rates, reverse=True)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, [4, 8, 10]),
        ({"max_epochs": -1, "max_steps": 7, "check_val_every_n_epoch": 10}, [7]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 10}, [6]),
    ],
    ids=str,
)
def test_the_end_is_validated_whatever_the_interval(store, options, expected):
    notes = Notes()
    trainer = fit(SegmentationTask(plan_of(store), **SMALL), store, callbacks=[notes], **options)
    assert notes.validated == expected
    assert trainer.check_val_every_n_epoch == options["check_val_every_n_epoch"]


def test_the_gradient_of_a_short_window_is_the_mean_over_its_batches(store):
    """Of two batches to an epoch, a window of eight has two: their mean decides, as with a window of two."""
    ends = []
    for accumulated in (2, 8):
        torch.manual_seed(0)
        task = SegmentationTask(plan_of(store), net_options={"features": [4, 8, 8]})
        fit(task, store, accumulate_grad_batches=accumulated, limit_val_batches=0)
        ends.append(task.net.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name])


def test_averages_of_a_short_training_are_of_its_weights_and_not_of_its_beginning(store):
    task = SegmentationTask(plan_of(store), **SMALL, ema=0.999)
    before = torch.cat([p.flatten() for p in task.net.parameters()]).detach().clone()
    trained = []

    class Watch(pl.Callback):
        def on_validation_start(self, trainer, module):  # before the averages are put in
            trained.append(torch.cat([p.flatten() for p in module.net.parameters()]).detach().clone())

    fit(task, store, max_epochs=4, callbacks=[Watch()])
    averaged = torch.cat([p.flatten() for p in task.net.parameters()]).detach()
    assert (averaged - trained[-1]).norm() < 0.5 * (averaged - before).norm()


def test_fit_in_python_is_the_command(store, tmp_path):
    small = {"data": {"folds": 2, "batch_size": 2, "steps_per_epoch": 2, "workers": 0}, "model": SMALL}
    bare = {"accelerator": "cpu", "precision": "32", "num_sanity_val_steps": 0, "enable_progress_bar": False}
    given = {name: value for part in (*small.values(), bare) for name, value in part.items()}
    run = training_fit(store, tmp_path / "python", **given, max_steps=2)
    words = [
        f"--{part}.{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for part, options in {**small, "trainer": {**bare, "max_steps": 2}}.items()
        for name, value in options.items()
    ]
    assert main(["fit", "--data.store", str(store), "--run", str(tmp_path / "typed"), *words]) == 0
    ours, theirs = (torch.load(each.last, weights_only=True) for each in (run, Run(tmp_path / "typed")))
    assert all(torch.equal(weight, theirs["state_dict"][name]) for name, weight in ours["state_dict"].items())
    with pytest.raises(UsageError, match="already holds a training"):
        training_fit(store, run.path, **given)
    training_fit(store, run.path, **given, max_steps=3, resume="last")
    assert torch.load(run.last, weights_only=True)["global_step"] == 3
    assert main(["test", "--run", str(run.path)]) == 0


def test_the_record_of_a_run_is_there_whatever_other_loggers_are(store, tmp_path):
    run = Run(tmp_path / "run")
    options = {name: value for name, value in QUIET.items() if name not in ("logger", "enable_checkpointing")}
    trainer = build_trainer(run, {}, logger=False, max_epochs=1, log_every_n_steps=1, **options)
    train(trainer, SegmentationTask(plan_of(store), **SMALL), data_of(store))
    assert run.metrics.read_text().count("\n") > 3
    assert run.best.is_file()
    assert run.last.is_file()
    assert not list(run.path.glob("events*"))
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert kinds == [
        *(
            "SignOrigin",
            "WatchPeers",
            "RateLog",
            "ShareTime",
            "SeedSteps",
            "ValidateTheEnd",
            "SkipBadSteps",
            "StepClock",
            "TellBudget",
        ),
        *("WeighClasses", "KeepCheckpoints", "StopOnRequest"),
    ]


def test_a_monitor_that_nobody_logs_is_refused_before_training(store, tmp_path):
    options = {name: value for name, value in QUIET.items() if name not in ("logger", "enable_checkpointing")}
    task = SegmentationTask(plan_of(store), **SMALL)
    watched = EarlyStopping("val/dice/live", mode="max")
    trainer = build_trainer(Run(tmp_path / "run"), {}, logger=False, max_epochs=1, callbacks=[watched], **options)
    with pytest.raises(UsageError, match=r"EarlyStopping.*'val/dice/live', did you mean 'val/dice/liver'"):
        train(trainer, task, data_of(store))
    assert trainer.global_step == 0


def test_loggers_are_named_and_a_missing_package_is_a_sentence(tmp_path):
    run = Run(tmp_path / "run")
    assert [type(logger).__name__ for logger in loggers(None, run)] == ["TensorBoardLogger"]
    assert loggers(["csv"], run) == loggers(False, run) == []
    with pytest.raises(UsageError, match="no logger 'wand', did you mean 'wandb'"):
        loggers("wand", run)
    if "wandb" not in sys.modules:
        with pytest.raises(UsageError, match="needs the package wandb"):
            loggers("wandb", run)


TWO_CLOCKS = """
import os, sys, time, torch, pytorch_lightning as pl
from medseg.patches.datamodule import VolumesDataModule
from medseg.training.task import SegmentationTask
if __name__ == "__main__":
    store, out = sys.argv[1:]
    late = os.environ.get("LOCAL_RANK") == "1"
    pl.seed_everything(0)
    data = VolumesDataModule(store, folds=2, batch_size=2, steps_per_epoch=20, workers=0)
    task = SegmentationTask(data.plan.to_dict(), net_options={"features": [4, 8, 8]})
    class Late(pl.Callback):
        def on_train_start(self, trainer, module):
            timer = next(c for c in trainer.callbacks if type(c).__name__ == "Timer")
            timer._offset = 1.5 * late  # this process began earlier
    trainer = pl.Trainer(
        max_time="00:00:00:04", max_epochs=-1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[Late()], enable_model_summary=False,
    )
    trainer.fit(task, data)
    torch.save({"step": trainer.global_step, "weights": task.state_dict()}, f"{out}/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.ddp
def test_processes_under_a_budget_of_time_follow_one_clock_to_the_last_bit(store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_CLOCKS, encoding="utf-8")
    words = [sys.executable, str(script), str(store), str(tmp_path)]
    done = subprocess.run(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one["step"] == other["step"] > 1
    assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in one["weights"].items())


def voxels_counted(logits, labels):
    """As published losses count: in a product that autocast would round to 8 bits."""
    shares = logits.softmax(1)
    counted = torch.einsum("bcijk,bcijk->bc", shares, torch.ones_like(shares))
    assert (shares.dtype, counted.dtype) == (torch.float32, torch.float32)
    return counted.std() / labels[0].numel()


def test_a_loss_of_ones_own_is_asked_in_float32_whatever_the_network_computes_in(store):
    trainer = fit(SegmentationTask(plan_of(store), **SMALL, loss=voxels_counted), store, precision="bf16-mixed")
    assert trainer.global_step == 2


def test_a_task_is_copied_and_pickled_and_data_copied_also_after_a_training(store):
    task, data = SegmentationTask(plan_of(store), **SMALL), data_of(store)
    pl.Trainer(max_epochs=1, **QUIET).fit(task, data)
    for again in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert same_weights(task, again)
    assert next(iter(copy.deepcopy(data).train_dataloader())).id == next(iter(data_of(store).train_dataloader())).id


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_trainer_that_converts_the_weights_is_refused(store, precision):
    with pytest.raises(UsageError, match=f"does not compute in the precision '{precision}'. Choose one of auto"):
        fit(SegmentationTask(plan_of(store), **SMALL), store, precision=precision)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "torch.optim.SparseAdam"}, "the optimizer cannot train this network .*dense gradients"),
        ({"loss": "uncertainty(dice, cross_entropy)"}, "Correct the options"),
        ({"patch_size": [16, 16, 15]}, "Correct the options"),
    ],
)
def test_what_cannot_be_trained_with_is_a_sentence_in_python_too(store, tmp_path, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        training_fit(store, tmp_path / "run", **{**SMALL, "folds": 2, "max_steps": 2, "accelerator": "cpu", **options})


def test_a_run_stands_for_its_folder_wherever_a_path_is_taken(store, tmp_path):
    run = Run(tmp_path / "nowhere")
    options = {**SMALL, "folds": 2, "max_steps": 2, "accelerator": "cpu"}
    for wrong in ({"resume": run}, {"init_from": run}):
        with pytest.raises(CheckpointError, match="nowhere does not exist"):
            training_fit(store, tmp_path / "run", **options, **wrong)
