"""A run folder and the commands on it: what one was told for itself is read by no other, and nobody shares a folder."""

import json
import shutil

import pytest
import torch
import yaml
from support.runs import fit, load
from support.toys import write_toy_dataset

from medseg.cli import main
from medseg.cli.reading import FOR_ONE_COMMAND
from medseg.store.prepare import prepare
from medseg.training.task import SegmentationTask

SHORT = ("--trainer.max_steps", "2", "--model.ema", "0")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store, and a run that was resumed: its best and its last checkpoint differ."""
    home = tmp_path_factory.mktemp("home")
    prepare(write_toy_dataset(home), home / "store", workers=1)
    assert fit(home / "store", home / "run", *SHORT) == 0
    assert fit(home / "store", home / "run", *SHORT, "--trainer.max_steps", "5", "--ckpt_path", "last") == 0
    return home


def scored(capsys):
    """The line that says which checkpoint is scored."""
    return next(line for line in capsys.readouterr().out.splitlines() if "is scored" in line)


def test_the_config_of_a_resumed_run_holds_nothing_of_its_command(home):
    config = yaml.safe_load((home / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert not set(config) & set(FOR_ONE_COMMAND)
    assert config["trainer"]["max_steps"] == 5


@pytest.mark.parametrize("command", ["test", "validate"])
def test_best_is_scored_after_a_resume_a_rename_and_a_move_and_it_is_said(home, tmp_path, monkeypatch, capsys, command):
    shutil.copytree(home / "run", tmp_path / "kept")
    step = load(home / "run" / "checkpoints" / "best.ckpt")["global_step"]
    (tmp_path / "away").mkdir()
    for here, run in ((home, "run"), (tmp_path, "kept"), (tmp_path / "away", "../kept")):
        monkeypatch.chdir(here)
        assert main([command, "--run", run]) == 0
        assert f"{run}/checkpoints/best.ckpt is scored, of step {step} with val/dice" in scored(capsys)
    assert main([command, "--run", "../kept", "--ckpt_path", "last"]) == 0
    assert "kept/checkpoints/last.ckpt is scored, of step 5" in scored(capsys)


def test_a_config_of_0_1_0_that_names_a_checkpoint_moves_nobody(home, tmp_path, capsys):
    """It held the checkpoint that its training went on from, resolved, and the folder."""
    shutil.copytree(home / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    old = yaml.safe_load(path.read_text(encoding="utf-8"))
    old |= {
        "ckpt_path": str(home / "run" / "checkpoints" / "last.ckpt"),
        "run": str(home / "run"),
        "weights_only": None,
    }
    path.write_text(yaml.safe_dump(old), encoding="utf-8")
    assert main(["test", "--run", str(tmp_path / "run")]) == 0
    assert str(tmp_path / "run" / "checkpoints" / "best.ckpt") in scored(capsys)
    assert main(["fit", "--config", str(path), "--run", str(tmp_path / "new"), "--trainer.max_steps", "1"]) == 0
    assert load(tmp_path / "new" / "checkpoints" / "last.ckpt")["global_step"] == 1


def test_cases_that_were_trained_on_are_refused_or_told_in_the_report(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    (run / "report.html").unlink(missing_ok=True)
    for command in ("test", "validate"):
        assert main([command, "--run", str(run), "--data.fold", "1"]) == 2
        assert "2 of these 2 cases were trained on (toy_" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    assert main(["test", "--run", str(run), "--data.fold", "1", "--on_training_cases", "true"]) == 0
    assert "cases were trained on" in scored(capsys)
    assert "cases were trained on" in (run / "report.html").read_text(encoding="utf-8")


def test_cases_that_the_source_was_trained_on_count_as_trained_on(home, tmp_path, capsys):
    def traces(run):
        return set(load(run / "checkpoints" / "last.ckpt")["medseg"]["trained_on"])

    source, tuned, again = home / "run" / "checkpoints" / "best.ckpt", tmp_path / "tuned", tmp_path / "again"
    words = [*SHORT, "--trainer.max_steps", "1", "--data.fold"]
    with pytest.warns(UserWarning, match=r"2 of these 2 cases were trained on \(toy_"):
        assert fit(home / "store", tuned, *words, "1", "--model.init_from", str(source)) == 0
    assert traces(tuned) > traces(home / "run")
    assert main(["test", "--run", str(tuned)]) == 2
    assert "2 of these 2 cases were trained on (toy_" in capsys.readouterr().err
    third = str(tuned / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match="2 of these 2 cases"):
        assert fit(home / "store", again, *words, "0", "--model.init_from", third) == 0
    assert traces(again) == traces(tuned)
    assert SegmentationTask.load_from_checkpoint(third).trained_on == traces(tuned)  # which a fit of its own would add


def test_cleaning_is_not_chosen_on_cases_that_were_trained_on(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run, ignore=shutil.ignore_patterns("test"))
    words = ["choose-cleaning", "--ckpt", str(run), "--references", str(home / "toy" / "labelsTr"), "--predictions"]
    assert main(["test", "--run", str(run), "--nsd_mm", "-1"]) == 2
    assert not (run / "test").exists()
    assert main(["test", "--run", str(run), "--nsd_mm", "4", "--surfaces", "areas"]) == 0
    told = json.loads((run / "test" / "summary.json").read_text(encoding="utf-8"))
    assert (told["tolerance_mm"], told["surface_element"]) == (4.0, "areas")
    assert main([*words, str(run / "test" / "predictions")]) == 0
    shutil.rmtree(run / "test")
    assert main(["test", "--run", str(run), "--data.fold", "1", "--on_training_cases", "true"]) == 0
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    capsys.readouterr()
    assert main([*words, str(run / "test" / "predictions")]) == 1
    assert "was trained on: toy_" in capsys.readouterr().err
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before


def test_another_split_of_the_same_cases_is_seen_whatever_it_is_called(home, tmp_path, capsys):
    held_back = json.loads(json.dumps(load(home / "run" / "checkpoints" / "best.ckpt")["origin"]["config"]["values"]))
    assert held_back["data.split"] is None
    names = ["toy_0", "toy_1", "toy_2", "toy_3"]
    told = []
    for case in names:
        split = tmp_path / "split.json"
        split.write_text(json.dumps([{"train": [name for name in names if name != case], "val": [case]}]))
        words = ["--run", str(home / "run"), "--data.split", str(split), "--data.fold", "0"]
        told.append((main(["validate", *words]), "were trained on" in capsys.readouterr().err))
    assert sorted(told) == [(0, False), (0, False), (2, True), (2, True)]


def test_a_checkpoint_without_the_list_is_judged_by_its_split(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    old = load(run / "checkpoints" / "best.ckpt")
    del old["medseg"]["trained_on"]
    torch.save(old, run / "checkpoints" / "best.ckpt")
    assert main(["validate", "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["validate", "--run", str(run), "--data.seed", "5"]) == 2
    assert "data.seed was 0 and is 5" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_folder(home, tmp_path, capsys):
    from medseg.checkpoints.run import Run
    from medseg.training.start import Start, taken

    with taken(Run(tmp_path / "run"), Start()):
        assert fit(home / "store", tmp_path / "run", *SHORT) == 1
        assert "another process" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".training.lock"]
    assert fit(home / "store", tmp_path / "run", *SHORT) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--data.folds", "5"),
        ("--data.fold", "7"),
        ("--model.loss", "dcie"),
        ("--trainer.enable_checkpointing", "false"),
        ("--trainer.logger", "wandbb"),
        ("--trainer.callbacks", "EarlyStopping"),
        ("--ckpt_path", "nowhere.ckpt"),
        ("--trainer.max_steps", "1.5"),
    ],
    ids=lambda words: words[0],
)
def test_a_refused_training_leaves_no_folder(home, tmp_path, capsys, words):
    assert fit(home / "store", tmp_path / "run", *SHORT, *words) in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("medseg: ")
    assert not (tmp_path / "run").exists()


def test_what_is_no_store_says_what_to_give(home, tmp_path, capsys):
    for store, expected in ((home / "toy", "but a dataset"), (tmp_path / "nowhere", "--data.store")):
        assert fit(store, tmp_path / "run", *SHORT) == 1
        said = capsys.readouterr().err
        assert expected in said
        assert f"--out {store}" not in said


def test_a_network_of_ones_own_is_tested_by_the_word_of_the_runs_config_and_of_no_checkpoint(
    home, tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\n\n\nclass Plain(nn.Conv3d):\n"
        "    def __init__(self, in_channels, out_channels):\n        super().__init__(in_channels, out_channels, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--model.net", "my_network.Plain", "--model.net_options", "null"]
    assert fit(home / "store", tmp_path / "run", *SHORT, *words) == 0
    assert main(["test", "--run", "run"]) == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("my_network.Plain", "unet"), encoding="utf-8")
    capsys.readouterr()
    assert main(["test", "--run", "run"]) == 1
    assert "--trust my_network.Plain" in capsys.readouterr().err
    assert main(["test", "--run", "run", "--trust", "my_network.Plain"]) == 0


def test_a_module_in_the_working_directory_is_found(home, tmp_path, monkeypatch):
    """As the console script runs, which has no working directory on its path."""
    (tmp_path / "my_callback.py").write_text(
        "from pytorch_lightning.callbacks import Callback\n\n\n"
        "class Tell(Callback):\n    def on_train_end(self, trainer, pl_module):\n        open('told', 'w').close()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [place for place in __import__("sys").path if place not in ("", ".")])
    assert fit(home / "store", tmp_path / "run", *SHORT, "--trainer.callbacks", "my_callback.Tell") == 0
    assert (tmp_path / "told").exists()
