"""`medseg fit` with options that mean nothing: one sentence that names the option, exit status 2, nothing written."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from support.runs import WORDS
from torch import nn

from medseg.cli import main
from medseg.errors import UsageError
from medseg.store.store import Store
from medseg.training.failures import explained, unusable_device
from medseg.training.ranges import RANGES, require_in_range
from medseg.training.steps import NonFiniteError, SkipBadSteps

GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class Shrinks(nn.Conv3d):
    """Convolves without padding."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, kernel_size=3)


def features(*widths):
    return json.dumps({"features": widths})


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("seed_everything", "-1", "seed_everything must be at least 0 and at most 4294967295, got -1"),
        ("checkpoint_minutes", "-1", "checkpoint_minutes must be at least 0"),
        ("model.lr", "nan", "model.lr"),
        ("model.lr", "-0.1", "model.lr must be at least 0, got -0.1"),
        ("model.lr", "", "model.lr"),
        ("model.weight_decay", "-1", "model.weight_decay must be"),
        ("model.warmup", "1", "model.warmup must be at least 0 and below 1, got 1.0"),
        ("model.ema", "1.5", "model.ema must be at least 0 and below 1, got 1.5"),
        ("model.overlap", "-0.1", "model.overlap must be"),
        ("model.patience", "-1", "model.patience must be"),
        ("model.bad_steps", "-1", "model.bad_steps must be"),
        ("model.study_every", "0", "model.study_every must be"),
        ("data.steps_per_epoch", "0", "data.steps_per_epoch must be at least 1, got 0"),
        ("data.workers", "-1", "data.workers must be"),
        ("data.oversample_foreground", "2", "data.oversample_foreground must be at least 0 and at most 1, got 2"),
        ("data.batch_size", "0", "data.batch_size must be"),
        ("data.patch_size", "[0, 16, 8]", "patch_size"),
        ("data.fold", "9", "there is no fold 9"),
        ("trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches must be"),
        ("trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val must be"),
        ("trainer.check_val_every_n_epoch", "0", "trainer.check_val_every_n_epoch must be"),
        ("trainer.val_check_interval", "0", "trainer.val_check_interval must be above 0, got 0"),
        ("trainer.val_check_interval", "100", "less than or equal to the number of the training batches (3)"),
        ("trainer.max_steps", "-5", "max_steps"),
        ("trainer.max_time", "soon", "DD:HH:MM:SS"),
        ("trainer.devices", "-1", "trainer.devices -1 on cpu"),
        ("trainer.devices", "many", "trainer.devices many on cpu"),
        ("trainer.strategy", "horovod", "horovod"),
        ("trainer.strategy", "ddp_spawn", "trainer.strategy ddp_spawn is not supported. Take ddp"),
        pytest.param("trainer.accelerator", "gpu", "Take --trainer.accelerator cpu or auto", marks=GPU),
        pytest.param("trainer.accelerator", "cuda", "Take --trainer.accelerator cpu or auto", marks=GPU),
        ("model.freeze", '["net.*"]', "model.freeze leaves no weight to train"),
        ("model.init_from", "", "model.init_from is empty"),
        ("run", " ", "run is empty"),
        ("ckpt_path", "", "ckpt_path is empty"),
        ("model.net", "", "there is no network ''"),
        ("model.net", f"{__name__}.Shrinks", "maps 16 x 16 x 8 voxels to 14 x 14 x 6"),
        ("model.net_options", features(), "the knob features of unet needs numbers from 1 up, got []"),
        ("model.net_options", features(0, 8), "the knob features of unet needs numbers from 1 up"),
        (
            "model.net_options",
            '{"features": "wide"}',
            "the knob features of unet: expected a list (each a whole number) or None",
        ),
        ("model.net_options", '{"dropout": 2.0}', "dropout probability has to be between 0 and 1"),
        ("model.loss", "", "the loss '' cannot be read"),
        ("model.loss", "diec", "Did you mean 'dice'? One of your own takes its dotted path, my_file.diec. Correct"),
        ("model.optimizer", "", "there is no optimizer ''"),
        ("model.schedule", "", "there is no schedule ''"),
    ],
)
def test_an_option_that_means_nothing_is_one_sentence(store, tmp_path, capsys, option, value, expected):
    given = dict(zip(WORDS[::2], WORDS[1::2], strict=True)) | {
        "--data.store": str(store), "--data.patch_size": "[16, 16, 8]", "--run": str(tmp_path / "run"),
        "--trainer.max_steps": "2", "--trainer.num_sanity_val_steps": "1",
    }  # fmt: skip
    if option == "model.net":
        given.pop("--model.net_options")
    given[f"--{option}"] = value
    assert main(["fit", *(word for pair in given.items() for word in pair)]) == 2
    message = capsys.readouterr().err
    last = message.strip().splitlines()[-1]
    assert last.startswith("medseg: ")
    assert expected in last
    assert "Traceback" not in message
    assert not list(Path(tmp_path).glob("run/checkpoints/*"))


def test_no_epochs_are_none_and_not_a_thousand(store, tmp_path, caplog):
    words = ["fit", "--data.store", str(store), "--run", str(tmp_path), *WORDS, "--trainer.max_epochs", "0"]
    assert main(words) == 0
    assert "no step was taken, the budget is spent after step 0" in caplog.text
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize("key", sorted(RANGES))
def test_every_range_is_of_an_option_and_holds_neither_nan_nor_less(key):
    assert RANGES[key][2].startswith(("at least", "above"))
    for value in (-1, float("nan"), float("inf")):
        config = {key: value} if "." not in key else {key.split(".")[0]: {key.split(".")[1]: value}}
        with pytest.raises(UsageError, match=f"{key} must be {RANGES[key][2]}, got"):
            require_in_range(config)


def test_only_sentences_that_were_written_for_users_become_ours(store):
    with pytest.raises(ValueError, match="invalid literal") as raised:
        int("x")
    assert explained(raised.value, Store(store).plan) is None
    with pytest.raises(RuntimeError, match="invalid for input") as raised:
        torch.zeros(2).reshape(3)
    assert explained(raised.value, Store(store).plan) is None


def test_devices_that_are_not_there_are_told_with_what_was_asked():
    options = {"accelerator": "cpu", "devices": "4"}
    told = str(unusable_device(ValueError("You requested gpu: [0, 1]\n But your machine only has: [0]"), options))
    assert "trainer.devices 4 on cpu: You requested gpu: [0, 1] But your machine only has: [0]" in told


def test_weights_that_are_no_numbers_end_the_training_with_a_sentence(store, tmp_path, capsys):
    """A learning rate that is far too high: the weights are huge after one step, and no logit is a number."""
    options = ["--model.lr", "1e30", "--model.bad_steps", "2", "--trainer.max_steps", "100"]
    with pytest.warns(UserWarning, match="was skipped"):
        assert main(["fit", "--data.store", str(store), "--run", str(tmp_path), *WORDS, *options]) == 1
    message = capsys.readouterr().err
    assert "the gradient was not finite in 3 steps in a row" in message
    assert "dice = nan" in message
    assert "Lower model.lr" in message
    assert "Traceback" not in message


class Precision:
    """Lightning's, with a gradient scaler."""

    def __init__(self, scale):
        self.scaler = self
        self.get_scale = lambda: scale


class FakeTrainer(pl.Trainer):
    precision_plugin, global_step, checkpoint_callbacks = None, 7, ()

    def __init__(self, scale):
        self.precision_plugin = Precision(scale)


class Weight(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.loss = SimpleNamespace(terms={})

    def log(self, *words):
        """Nothing."""


@pytest.mark.parametrize(("scale", "counted"), [(65536.0, 0), (2.0, 0), (1.0, 1), (0.5, 1)])
def test_in_fp16_only_what_is_left_when_the_scale_is_down_at_one_is_counted(scale, counted):
    module, watch = Weight(), SkipBadSteps(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module.weight.grad = torch.full((1,), torch.inf)
    with pytest.warns(UserWarning, match="step 7 was skipped") if counted else contextlib.nullcontext():
        watch.on_before_optimizer_step(FakeTrainer(scale), module, optimizer)
    assert watch.in_a_row == counted
    if counted:
        module.weight.grad = torch.full((1,), torch.inf)
        with pytest.raises(NonFiniteError, match="no checkpoint was written before these steps"):
            watch.on_before_optimizer_step(FakeTrainer(scale), module, optimizer)
