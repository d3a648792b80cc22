"""A run folder, a config or a checkpoint to go on from that somebody else has written: a sentence, and nothing done."""

import shutil
import sys

import pytest
import torch
from support.runs import WORDS, fit

from medseg.checkpoints.run import Run
from medseg.cli import main
from medseg.cli.config import MedsegCLI
from medseg.errors import DataError
from medseg.training.task import SegmentationTask

pytestmark = pytest.mark.usefixtures("without_shape_checks")

BESIDE = """
from pathlib import Path
from torch import nn

Path("was_imported").touch()


class Net(nn.Conv3d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)
"""


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """Two steps that nobody may change."""
    run = Run(tmp_path_factory.mktemp("hostile") / "run")
    assert fit(store, run.path, "--trainer.max_steps", "2") == 0
    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "beside.py").write_text(BESIDE)
    yield tmp_path
    sys.modules.pop("beside", None)


def entry(where, value):
    def spoil(content):
        for key in where.split("/")[:-1]:
            content = content[key]
        content[where.split("/")[-1]] = value

    return spoil


def deep(levels=100):
    value = []
    for _ in range(levels):
        value = [value]
    return value


LOOP = "loops/fit_loop"
BROKEN = {
    "callbacks of texts": entry("callbacks", {"StepClock": "beside.Net", "SeedSteps": "beside.Net"}),
    "a clock of text": entry("callbacks/StepClock/elapsed_s", "beside.Net"),
    "a list of bad steps": entry("callbacks/SkipBadSteps/in_a_row", [1]),
    "no optimizer": entry("optimizer_states", []),
    "an optimizer by name": entry("optimizer_states", ["beside.Net"]),
    "an optimizer of other parts": entry("optimizer_states", [{"state": {}, "param_groups": [{"params": [0]}]}]),
    "a schedule by name": entry("lr_schedulers", ["beside.Net"]),
    "no loop": entry("loops", {}),
    "loops by name": entry(LOOP, "beside.Net"),
    "a loop that holds itself": entry("loops/fit_loop/state_dict", deep()),
    "data by name": entry("VolumesDataModule", {"epoch": "beside.Net", "batch": 0}),
    "class weights by name": entry("hyper_parameters/class_weights", {"balanced": "beside.Net"}),
    "options that nest": entry("hyper_parameters/optimizer_options", {"lr": deep()}),
    "averages by name": entry("averaging_state", "beside.Net"),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", BROKEN)
def test_a_training_does_not_go_on_from_what_is_broken(store, trained, place, capsys, name):
    run = Run(shutil.copytree(trained.path, place / "run"))
    content = torch.load(run.last, weights_only=True)
    BROKEN[name](content)
    torch.save(content, run.last)
    before = run.last.read_bytes()
    assert fit(store, run.path, "--trainer.max_steps", "3", "--ckpt_path", "last") == 1
    said = capsys.readouterr().err
    (sentence,) = [line for line in said.splitlines() if line.startswith("medseg: ")]
    assert "last.ckpt" in sentence or "--ckpt_path" in sentence
    assert "Traceback" not in said
    assert run.last.read_bytes() == before
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    "entries", [{"net": "beside.Net", "net_options": None}, {"loss": "beside.f"}, {"optimizer": "beside.Net"}]
)
def test_only_weights_are_taken_from_what_a_training_starts_with(store, trained, place, entries):
    content = torch.load(trained.best, weights_only=True)
    content["hyper_parameters"] |= entries
    torch.save(content, place / "theirs.ckpt")
    words = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--model.init_from", "theirs.ckpt"]
    assert fit(store, place / "run", *words) == 0
    assert "beside" not in sys.modules


def test_a_loss_that_nests_too_deeply_is_a_sentence(store, trained, place, capsys):
    nested = "0.5 * " * 3000 + "dice"
    assert fit(store, place / "run", "--model.loss", nested) == 2
    assert "nested more than 100 levels deep" in capsys.readouterr().err
    assert not (place / "run").exists()
    content = torch.load(trained.best, weights_only=True)
    content["hyper_parameters"]["loss"] = nested
    torch.save(content, place / "theirs.ckpt")
    with pytest.raises(DataError, match=r"theirs\.ckpt cannot be read: a loss is nested more than 100 levels deep"):
        SegmentationTask.load_from_checkpoint(place / "theirs.ckpt")


CONFIGS = {
    "a tag": "data: !!python/object/apply:os.system [touch was_called]\n",
    "a tag of a name": "data: {store: !!python/name:beside.Net}\n",
    "a strategy": "data: {store: STORE}\ntrainer: {strategy: {class_path: beside.Net}}\n",
    "a strategy by name": "data: {store: STORE}\ntrainer: {strategy: beside.Net}\n",
    "devices": "data: {store: STORE}\ntrainer: {devices: {class_path: beside.Net}}\n",
    "callbacks": "data: {store: STORE}\ntrainer: {callbacks: [{class_path: beside.Net}]}\n",
    "loggers": "data: {store: STORE}\ntrainer: {logger: {class_path: beside.Net}}\n",
    "augmentations": "data: {store: STORE, augmentation: {beside.Net: {probability: 1.0}}}\n",
    "a split": "data: {store: STORE, split: {class_path: beside.Net}}\n",
    "a loss": "data: {store: STORE}\nmodel: {loss: beside.Net, optimizer: beside.Net}\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_a_run_that_is_tested_imports_nothing_but_its_network(store, place, name):
    run = Run(place / "run")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text(CONFIGS[name].replace("STORE", str(store)))
    main(["test", "--run", "run"])
    main(["validate", "--run", "run"])
    assert "beside" not in sys.modules
    assert not list(place.glob("was_*"))


def test_a_run_vouches_for_its_network_and_a_checkpoint_alone_does_not(store, place, capsys):
    """Who names a run names its config, as with ``fit --config``; a checkpoint may come from anywhere."""
    words = [word for word in WORDS if "features" not in word and word != "--model.net_options"]
    words += ["--run", "run", "--trainer.max_steps", "1", "--model.net", "beside.Net"]
    assert main(["fit", "--data.store", str(store), *words]) == 0
    assert main(["test", "--run", "run"]) == 0
    assert main(["validate", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 1
    assert "--trust beside.Net" in capsys.readouterr().err
    assert main(["validate", "--ckpt_path", "run/checkpoints/best.ckpt", "--trust", "beside.Net"]) == 0
    (place / "run" / "config.yaml").write_text(f"data: {{store: {store}, folds: 2}}\nmodel: {{net: unet}}\n")
    assert main(["test", "--run", "run"]) == 1  # the checkpoint names what its config does not
    assert "--trust beside.Net" in capsys.readouterr().err


def test_a_plan_with_tags_is_not_built(store, place, capsys):
    theirs = shutil.copytree(store, place / "theirs")
    plan = (theirs / "plan.yaml").read_text()
    (theirs / "plan.yaml").write_text(plan + "x: !!python/object/apply:os.system [touch was_called]\n")
    assert fit(theirs, place / "run") == 1
    assert "plan.yaml" in capsys.readouterr().err
    assert not list(place.glob("was_*"))
    assert not (place / "run").exists()


def test_what_seeds_everything(store, recwarn):
    assert MedsegCLI("fit", ["--data.store", str(store), "--seed_everything", "true"]).config.seed_everything == 0
    assert not [warning for warning in recwarn if "seed" in str(warning.message).lower()]
