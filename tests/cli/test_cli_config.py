"""What a training was told in configs and on the command line is one thing, and what is wrong in it one sentence."""

import json
import re
from pathlib import Path

import pytest
import yaml

from medseg.cli.config import MedsegCLI
from medseg.cli.reading import FOR_ONE_COMMAND, merged
from medseg.errors import UsageError


def written(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    return str(path)


def told(*words, command="fit"):
    return MedsegCLI(command, ["--data.store", "store", *words]).config


def refusal(*words, command="fit"):
    with pytest.raises(UsageError) as raised:
        told(*words, command=command)
    return str(raised.value)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_command_line_wins_wherever_the_config_stands(tmp_path, place):
    config = written(tmp_path, "c.yaml", {"model": {"lr": 0.5, "loss": "dice"}, "trainer": {"max_steps": 7}})
    words = [["--model.lr", "0.25"], ["--trainer.max_steps=9"]]
    words.insert(place, ["--config", config])
    options = told(*(word for pair in words for word in pair))
    assert (options.model.lr, options.trainer.max_steps, options.model.loss) == (0.25, 9, "dice")


def test_configs_are_merged_all_the_way_down_and_the_later_one_wins(tmp_path):
    first = {"model": {"net_options": {"features": [8, 16], "dropout": 0.1}, "lr": 0.5}, "data": {"fold": 2}}
    second = {"model": {"net_options": {"dropout": 0.3}}}
    options = told("-c", written(tmp_path, "a.yaml", first), f"--config={written(tmp_path, 'b.yaml', second)}")
    assert options.model.net_options == {"features": [8, 16], "dropout": 0.3}
    assert (options.model.lr, options.data.fold) == (0.5, 2)


def test_the_knobs_of_what_is_named_anew_are_not_those_of_before():
    old = {"net": "unet", "net_options": {"features": [8]}, "optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}
    assert merged(old, {"net": "vnet"}) == {key: old[key] for key in ("optimizer", "optimizer_options")} | {
        "net": "vnet"
    }
    assert merged(old, {"net": "unet"}) == old
    assert merged(old, {"net": "vnet", "net_options": {"dropout": 0.1}})["net_options"] == {"dropout": 0.1}
    one, two = ({"class_path": name, "init_args": {name: 1}} for name in "ab")
    assert merged({"strategy": one}, {"strategy": two}) == {"strategy": two}
    assert merged({"callbacks": [one]}, {"callbacks": [two]}) == {"callbacks": [two]}


@pytest.mark.parametrize(
    ("before", "after", "both"),
    [
        ("light", {"rotation_deg": 10}, {"preset": "light", "rotation_deg": 10}),
        ({"rotation_deg": 10}, "light", {"preset": "light", "rotation_deg": 10}),
        ({"preset": "light", "rotation_deg": 10}, {"scale": 2}, {"preset": "light", "rotation_deg": 10, "scale": 2}),
        ({"preset": "light", "rotation_deg": 10}, {"preset": "full", "scale": 2}, {"preset": "full", "scale": 2}),
        ({"preset": "light", "rotation_deg": 10}, "light", "light"),
        (
            {"mine.speckle": {"std": 1}},
            {"mine.speckle": {"probability": 1}},
            {"mine.speckle": {"std": 1, "probability": 1}},
        ),
    ],
)
def test_settings_of_augmentation_lie_over_the_preset_that_is_named_and_no_other_has_them(before, after, both):
    assert merged({"augmentation": before}, {"augmentation": after}) == {"augmentation": both}


def test_what_the_command_line_names_is_merged_as_a_config_would_be(tmp_path, caplog):
    knobs = {"net_options": {"features": [8]}, "optimizer": "adamw", "optimizer_options": {"lr": 0.1}}
    config = written(tmp_path, "c.yaml", {"model": knobs, "data": {"augmentation": "light"}})
    words = ["--data.augmentation.rotation_deg", "10", "--model.net=vnet", "--model.optimizer", "sgd"]
    with caplog.at_level("INFO"):
        options = told("-c", config, *words, "--model.optimizer_options.momentum", "0.5")
    assert options.data.augmentation == {"preset": "light", "rotation_deg": 10}
    assert options.model.net_options is None
    assert options.model.optimizer_options == {"momentum": 0.5}
    assert "model.net_options is None: the command line replaces the config's {'features': [8]}" in caplog.text
    words = ["--data.augmentation.mine.speckle.probability", "0.5", "--model.optimizer", "adamw"]
    options = told("-c", config, "-c", written(tmp_path, "d.yaml", {"data": {"augmentation": {}}}), *words)
    assert options.data.augmentation == {"preset": "light", "mine.speckle": {"probability": 0.5}}
    assert options.model.optimizer_options == {"lr": 0.1}


def test_knobs_that_the_command_line_takes_away_are_named(tmp_path, caplog):
    config = written(tmp_path, "c.yaml", {"model": {"net_options": {"features": [8], "dropout": 0.1}}})
    with caplog.at_level("INFO"):
        assert told("-c", config, "--model.net_options.dropout", "0.2").model.net_options["features"] == [8]
        assert "replaces" not in caplog.text
        assert told("-c", config, "--model.net_options", "{dropout: 0.2}").model.net_options == {"dropout": 0.2}
        assert "the command line replaces the config's" in caplog.text


def test_dotted_keys_of_a_config_are_tables_too(tmp_path):
    assert told("-c", written(tmp_path, "c.yaml", "model.lr: 0.5\nmodel: {loss: dice}\n")).model.lr == 0.5


@pytest.mark.parametrize("text", ["1:00:00:00", "00:12:30:00", "'1:00:00:00'"])
def test_a_time_in_a_config_is_the_text_that_it_is(tmp_path, text):
    assert told("-c", written(tmp_path, "c.yaml", f"trainer:\n  max_time: {text}\n")).trainer.max_time == text.strip(
        "'"
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "null"])
def test_an_empty_config_says_nothing(tmp_path, text):
    assert told("-c", written(tmp_path, "c.yaml", text)).model == told().model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {lr: 0.5}\nmodel: {net: unet}\n", r"c.yaml is not YAML \(line 2: the key 'model' occurs twice\)"),
        ("model: {lr: 0.5, lr: 0.1}\n", "'lr' occurs twice"),
        ("model: {lr: 0.5}\nmodel.lr: 0.1\n", "c.yaml says model.lr twice"),
        ("model: 3", "model is 3, expected a table"),
        ("fit:\n  model: {lr: 0.5}\n", "c.yaml has its options below fit:"),
        ("- model\n", "c.yaml is no table of options"),
        ("model:\n\tlr: 1\n", "line 2"),
        ("model: {los: dice}", "there is no option 'model.los', did you mean 'model.loss'"),
        ("modle: {loss: dice}", "there is no option 'modle.loss', did you mean 'model.loss'"),
        ("trainer: {default_root_dir: here}", "Name it with --run"),
        ("trainer: {max_steps: 250k}", "trainer.max_steps is '250k', expected a whole number"),
    ],
)
def test_a_mistake_in_a_config_is_one_sentence(tmp_path, text, expected):
    assert re.search(expected, refusal("-c", written(tmp_path, "c.yaml", text)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "3"], "did you mean 'seed_everything' or 'data.seed'"),
        (["--lr", "1"], "did you mean 'model.lr'"),
        (["--trainer.epochs", "1"], "did you mean 'trainer.max_epochs'"),
        (["--trainer.precision", "bf16"], "trainer.precision is 'bf16', expected one of auto"),
        (["--trainer.precision", "bf16"], "Did you mean bf16-mixed"),
        (["--data.cache", "mem"], "data.cache is 'mem', expected one of auto, memory, disk. Did you mean memory"),
        (["--trainer.max_steps", "250k"], "expected a whole number"),
        (["--data.patch_size", "16"], "data.patch_size is '16', expected a list of 3 whole numbers"),
        (["--model.net_options", "a=b"], "expected a table {name: value}"),
        (["--model.net_options", "{a: 1, a: 2}"], "model.net_options is '{a: 1, a: 2}', expected a table"),
        (["--trainer.max_steps"], "--trainer.max_steps has no value"),
        (["--config"], "--config is empty"),
        (["c.yaml"], "c.yaml is no option. Give a config with --config FILE"),
        (
            ["--trainer.callbacks", "EarlyStopping"],
            "EarlyStopping lacks monitor. Give it with --trainer.callbacks.monitor",
        ),
        (["--trainer.logger", "CSVLogger"], "CSVLogger lacks save_dir"),
        (["--trainer.callbacks", "nowhere.Tell"], "No module named 'nowhere'"),
        (["--trainer.logger", "wandbb"], "trainer.logger"),
        (["--trainer.default_root_dir", "x"], "Name it with --run"),
    ],
)
def test_what_people_type_is_answered_in_one_sentence(words, expected):
    said = refusal(*words)
    assert expected in said
    assert "\n" not in said
    assert "<class" not in said


def test_a_missing_store_is_named():
    with pytest.raises(UsageError, match=r"--data\.store is missing"):
        MedsegCLI("fit", [])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--trainer.logger", "wandb"], "wandb"),
        (["--trainer.logger", "[csv, tensorboard]"], ["csv", "tensorboard"]),
        (["--trainer.logger", "false"], False),
    ],
)
def test_loggers_have_names(words, expected):
    assert told(*words).trainer.logger == expected


def a_run(folder, **more):
    """A run folder with the config that its training would leave, and a store beside it."""
    config = {"data": {"store": "store", "fold": 1}, "model": {"lr": 0.5}, "trainer": {"max_steps": 3}} | more
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "store").mkdir()
    return written(folder, "run/config.yaml", config)


def test_a_runs_config_given_to_another_fit_says_nothing_of_its_own_command(tmp_path):
    config = a_run(tmp_path, run="elsewhere", ckpt_path="elsewhere/checkpoints/last.ckpt", weights_only=True)
    options = told("--config", config)
    assert (options.run, options.ckpt_path) == (told().run, None)
    assert options.trainer.max_steps == 3
    assert set(FOR_ONE_COMMAND) == {"config", "run", "ckpt_path", "weights_only"}


@pytest.mark.parametrize("command", ["test", "validate"])
def test_what_scores_a_run_takes_its_data_and_its_devices_and_nothing_else(tmp_path, command):
    callbacks = [{"class_path": "nowhere.Tell"}]
    a_run(
        tmp_path,
        run="elsewhere",
        ckpt_path="elsewhere/last.ckpt",
        model={"net": "nowhere.Net"},
        trainer={
            "accelerator": "cpu", "devices": 2, "precision": "32", "limit_test_batches": 1, "callbacks": callbacks,
            "logger": {"class_path": "nowhere.Log"}, "max_steps": 3, "strategy": {"class_path": "nowhere.Strategy"},
        },
    )  # fmt: skip
    options = MedsegCLI(command, ["--run", str(tmp_path / "run")]).config
    assert (options.run, options.ckpt_path, options.data.fold) == (str(tmp_path / "run"), None, 1)
    trainer = options.trainer
    assert (trainer.accelerator, trainer.devices, trainer.precision) == ("cpu", 2, "32")
    assert (trainer.limit_test_batches, trainer.callbacks, trainer.logger, trainer.strategy) == (
        None,
        None,
        None,
        "auto",
    )
    assert "model" not in options


def test_the_store_of_a_run_is_found_from_another_folder(tmp_path, monkeypatch):
    a_run(tmp_path / "home")
    (tmp_path / "away").mkdir()
    for here, run in (("home", "run"), ("away", "../home/run"), ("away", str(tmp_path / "home" / "run"))):
        monkeypatch.chdir(tmp_path / here)
        options = MedsegCLI("test", ["--run", run]).config
        assert Path(options.data.store).resolve() == tmp_path / "home" / "store"
    monkeypatch.chdir(tmp_path / "home")
    options = MedsegCLI("test", ["--run", "run", "--data.store", "other"]).config
    assert str(options.data.store) == "other"


def test_the_network_of_a_test_is_its_checkpoints(tmp_path):
    a_run(tmp_path)
    with pytest.raises(UsageError, match=r"model\.lr is no option of medseg test"):
        MedsegCLI("test", ["--run", str(tmp_path / "run"), "--model.lr", "1"])


def test_a_printed_config_read_again_says_the_same(tmp_path, capsys):
    words = [
        "--model.net_options",
        json.dumps({"features": [8]}),
        "--trainer.max_time",
        "1:00:00:00",
        "--model.lr",
        "1e-3",
    ]
    with pytest.raises(SystemExit):
        told(*words, "--print_config")
    printed = written(tmp_path, "p.yaml", capsys.readouterr().out)
    again, once = told("-c", printed), told(*words)
    assert {name: again[name] for name in ("model", "data", "trainer")} == {
        name: once[name] for name in ("model", "data", "trainer")
    }
