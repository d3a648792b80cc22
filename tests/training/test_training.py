"""What a config value of the task does to a training: one small store, a few steps each."""

import csv
import math

import pytest
import pytorch_lightning as pl
import torch
from support.nets import TINY as NARROW
from support.toys import write_toy_dataset
from torch import nn

from medseg.cli import main
from medseg.errors import CheckpointError, MedsegError, UsageError
from medseg.nets import list_nets
from medseg.patches.datamodule import VolumesDataModule
from medseg.plan.plan import Plan
from medseg.store.prepare import prepare
from medseg.training.fit import Trainer
from medseg.training.loss import judge, nearest_labels
from medseg.training.steps import NonFiniteError, SkipBadSteps
from medseg.training.task import SegmentationTask

PATCHES = {"mednext": (32, 16, 16), "swin_unetr": (64, 32, 32), "vnet": (32, 16, 16)}  # others leave one voxel
TINY = {"attention_unet": {"features": [4, 8, 8]}, "unet": {"features": [4, 8, 8]}, "vnet": {}, **NARROW}
SMALL = {"net_options": {"features": [4, 8, 8]}, "optimizer": "adamw", "lr": 1e-3}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    return folder / "store"


def data_of(store, **options):
    return VolumesDataModule(store, folds=2, batch_size=2, steps_per_epoch=2, workers=0, **options)


def trainer_of(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=False, **{"max_epochs": 1, **quiet, **options})


def train(store, trainer=None, **options):
    torch.manual_seed(0)
    data = data_of(store)
    task = SegmentationTask(data.plan.to_dict(), **{**SMALL, **options})
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    trainer = trainer or trainer_of()
    trainer.fit(task, data)
    return task, before, trainer


def changed(task, before):
    return {name for name, tensor in task.state_dict().items() if not torch.equal(tensor, before[name])}


def test_frozen_weights_stay_and_the_others_move(store):
    task, before, _ = train(store, freeze=["net.*input_block*"])
    moved = changed(task, before)
    assert moved
    assert not [name for name in moved if "input_block" in name]


def test_a_pattern_that_freezes_nothing_is_refused(store):
    with pytest.raises(UsageError, match="no weight is called 'encoder"):
        train(store, freeze=["encoder*"])


def test_training_stops_early_without_progress(store):
    _, _, trainer = train(store, trainer_of(max_epochs=20), lr=0.0, patience=2)
    assert trainer.current_epoch < 5


def test_fine_tuning_takes_what_fits_and_resuming_refuses_other_labels(store, tmp_path):
    task, _, trainer = train(store)
    trainer.save_checkpoint(tmp_path / "two_organs.ckpt")
    plan = Plan.from_dict(task.plan.to_dict() | {"labels": {"liver": 1}})
    other = SegmentationTask(plan.to_dict(), **SMALL, init_from=str(tmp_path / "two_organs.ckpt"))
    other.setup("fit")
    theirs, ours = task.state_dict(), other.state_dict()
    heads = [name for name in ours if name in theirs and ours[name].shape != theirs[name].shape]
    assert heads
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name in theirs and name not in heads)
    with pytest.raises(CheckpointError, match="init_from"):
        other.on_load_checkpoint(torch.load(tmp_path / "two_organs.ckpt", weights_only=True))
    stranger = SegmentationTask(task.plan.to_dict(), net="vnet", init_from=str(tmp_path / "two_organs.ckpt"))
    with pytest.raises(CheckpointError, match="another network"):
        trainer_of().fit(stranger, data_of(store))


class Poisoned(nn.Module):
    """A network whose gradient is not finite from its second step on."""

    def __init__(self, in_channels, out_channels, good_steps=1):
        super().__init__()
        self.layer = nn.Conv3d(in_channels, out_channels, 1)
        self.steps, self.good_steps = 0, good_steps

    def forward(self, image):
        self.steps += self.training
        logits = self.layer(image)
        if self.training and self.steps > self.good_steps:
            logits.register_hook(lambda gradient: gradient * math.inf)
        return logits


def test_bad_steps_are_skipped_then_named(store):
    poisoned = {"net": f"{__name__}.Poisoned", "net_options": {"good_steps": 100}}
    task, _, _ = train(store, trainer_of(max_steps=3, max_epochs=-1), **poisoned)
    good = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    task.net.net.good_steps = 0
    with pytest.warns(UserWarning, match="was skipped"), pytest.raises(NonFiniteError, match=r"last at step .*toy_"):
        trainer_of(max_steps=50, max_epochs=-1, callbacks=[SkipBadSteps(3)]).fit(task, data_of(store))
    assert not changed(task, good)
    assert issubclass(NonFiniteError, MedsegError)


def test_deep_supervision_halves_the_weight_of_every_level(store):
    data = data_of(store)
    task = SegmentationTask(data.plan.to_dict(), **SMALL, loss="cross_entropy")
    data.trainer = None
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    fine = torch.randn(2, 3, *batch.labels.shape[1:])
    coarse = torch.randn(2, 3, *(size // 2 for size in batch.labels.shape[1:]))
    both = judge(task.loss, (fine, coarse), batch, None)
    one, two = (judge(task.loss, level, batch, None) for level in (fine, coarse))
    torch.testing.assert_close(both, (2 * one + two) / 3)


def test_coarse_labels_are_the_middle_of_what_they_cover():
    labels = torch.arange(9).reshape(1, 9, 1, 1)
    assert nearest_labels(labels, torch.Size((3, 1, 1))).flatten().tolist() == [1, 4, 7]
    assert nearest_labels(labels, torch.Size((9, 1, 1))) is labels


def command(store, run, *more):
    """`medseg fit` as it is typed; later options win."""
    options = {
        "--data.folds": "2", "--data.steps_per_epoch": "2", "--data.batch_size": "2", "--data.workers": "0",
        "--model.net_options": '{"features": [4, 8, 8]}', "--trainer.accelerator": "cpu", "--trainer.precision": "32",
        "--trainer.enable_progress_bar": "false", "--trainer.num_sanity_val_steps": "0",
        "--trainer.log_every_n_steps": "1",
    } | dict(zip(more[::2], more[1::2], strict=True))  # fmt: skip
    return main(["fit", "--data.store", str(store), "--run", str(run), *(w for pair in options.items() for w in pair)])


def rates(run):
    """The learning rate of every step that was logged."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [(int(row["step"]), float(row["lr-SGD/pg1"])) for row in csv.DictReader(file) if row.get("lr-SGD/pg1")]


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore:this run goes on under other circumstances")
def test_training_longer_is_more_steps_on_the_last_checkpoint_at_the_rates_of_the_longer_budget(store, tmp_path):
    assert command(store, tmp_path, "--trainer.max_steps", "4") == 0
    assert command(store, tmp_path, "--trainer.max_steps", "8", "--ckpt_path", "last") == 0
    assert last(tmp_path)["global_step"] == 8
    first = [0.01 * (1 - step / 4) ** 0.9 for step in range(4)]
    rest = [0.01 * (1 - step / 8) ** 0.9 for step in range(4, 8)]
    assert [step for step, _ in rates(tmp_path)] == list(range(8))
    assert [rate for _, rate in rates(tmp_path)] == pytest.approx([*first, *rest])


def test_a_resumed_run_follows_the_optimizer_options_of_its_config(store, tmp_path):
    constant = ("--model.schedule", "constant")
    assert command(store, tmp_path, "--trainer.max_steps", "2", *constant) == 0
    changed = ("--model.lr", "0.002", "--model.weight_decay", "0.5", "--model.optimizer_options", '{"momentum": 0.5}')
    with pytest.warns(UserWarning, match=r"model.lr was 0.01 and is 0.002"):
        assert command(store, tmp_path, "--trainer.max_steps", "4", *constant, *changed, "--ckpt_path", "last") == 0
    assert rates(tmp_path) == [(0, 0.01), (1, 0.01), (2, 0.002), (3, 0.002)]
    groups = last(tmp_path)["optimizer_states"][0]["param_groups"]
    assert [(group["weight_decay"], group["momentum"]) for group in groups] == [(0.5, 0.5), (0.0, 0.5)]


@pytest.mark.sweep(2)
@pytest.mark.filterwarnings("ignore:this run goes on under other circumstances")
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (("--model.optimizer", "adamw"), "holds the state of the optimizer sgd, the config asks for adamw"),
        (("--model.freeze", '["net.*downsamples*"]'), "was trained with other weights frozen"),
        (("--model.deep_supervision", "true"), "holds another network"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_a_sentence(store, tmp_path, capsys, changed, expected):
    assert command(store, tmp_path, "--trainer.max_steps", "2") == 0
    assert command(store, tmp_path, "--trainer.max_steps", "4", "--ckpt_path", "last", *changed) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "--model.init_from" in message
    assert "Traceback" not in message


@pytest.mark.filterwarnings("ignore:this run goes on under other circumstances")  # where files are edited meanwhile
def test_early_stopping_is_told_and_a_run_goes_on_after_it(store, tmp_path, caplog, capsys):
    stopping = ("--model.patience", "1", "--model.lr", "0", "--trainer.max_epochs", "9")
    assert command(store, tmp_path, *stopping) == 0
    assert "training stops early: val/dice was not above" in caplog.text
    assert last(tmp_path)["global_step"] == 4
    assert command(store, tmp_path, *stopping, "--ckpt_path", "last") == 0
    assert last(tmp_path)["global_step"] == 6
    assert command(store, tmp_path / "never", *stopping, "--trainer.limit_val_batches", "0") == 2
    assert "model.patience waits for a better val/dice" in capsys.readouterr().err


def test_a_plain_network_can_be_fine_tuned_with_deep_supervision_and_the_other_way_round(store, tmp_path):
    frozen = ("--trainer.max_steps", "2", "--model.freeze", '["net.*input_block*"]')
    deep = ("--model.deep_supervision", "true")
    for before, now in (((), deep), (deep, ())):
        run, tuned = tmp_path / f"run_{len(now)}", tmp_path / f"tuned_{len(now)}"
        assert command(store, run, "--trainer.max_steps", "2", *before) == 0
        assert command(store, tuned, *frozen, *now, "--model.init_from", str(run / "checkpoints" / "last.ckpt")) == 0
        ours, theirs = (
            [weight for name, weight in last(each)["state_dict"].items() if "input_block" in name]
            for each in (tuned, run)
        )
        assert ours
        assert all(torch.equal(mine, weight) for mine, weight in zip(ours, theirs, strict=True))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list_nets())
def test_every_network_ends_with_the_same_bits_when_it_is_trained_twice_in_deterministic_mode(store, tmp_path, name):
    """By the trainer of the command line: augmentation, loss, clipping, averages and validation are within."""
    ends = []
    try:
        for _ in range(2):
            pl.seed_everything(0, verbose=False)
            data = VolumesDataModule(
                store, folds=2, batch_size=2, steps_per_epoch=2, workers=0, patch_size=PATCHES.get(name, (16, 16, 16))
            )
            trainer = Trainer(
                deterministic=True, accelerator="cpu", precision=32, max_steps=2, gradient_clip_val=1.0, logger=False,
                enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                num_sanity_val_steps=0, limit_val_batches=1, default_root_dir=str(tmp_path),
            )  # fmt: skip
            task = SegmentationTask(data.plan.to_dict(), net=name, net_options=TINY[name], ema=0.5, overlap=0.0)
            trainer.fit(task, data)
            assert trainer.global_step == 2
            ends.append(task.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(tensor, ends[1][weight]) for weight, tensor in ends[0].items())
