"""What is answered before Lightning is imported: help, and an option that does not exist."""

import subprocess
import sys

import pytest

from medseg.cli import main
from medseg.cli.config import MedsegCLI
from medseg.cli.main import build_parser
from medseg.cli.options import OWN, known
from medseg.cli.reading import COMMANDS
from medseg.cli.words import require_word, words_of
from medseg.losses import catalogue as losses
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.nets import list_nets
from medseg.patches.settings import PRESETS
from medseg.training.optimise import OPTIMIZERS, SCHEDULES

HELP = {"help", "h", "help-all", "c"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_read_from_the_sources_are_those_of_the_parser(command, monkeypatch):
    monkeypatch.setattr(
        MedsegCLI, "parse_arguments", lambda self, parser, args: setattr(self, "config", {"seed_everything": False})
    )
    parser = MedsegCLI(command, []).parser
    legal = {".".join(action.dest.split(".")[:2]) for action in parser._actions} - {"==SUPPRESS=="}
    read = {name for name in known(command) if not name.endswith(".help")}
    assert read - HELP == {name for name in legal if not name.endswith(".help")} - HELP - {"model.plan"}


def test_a_list_that_is_given_in_two_parts_is_the_whole_list():
    words = ["merge", "a", "b", "--out", "c", "--rename", "x=y", "--accept", "sides", "--rename", "v=w", "u=t"]
    options = build_parser().parse_args(words)
    assert (options.rename, options.accept) == (["x=y", "v=w", "u=t"], ["sides"])
    words = ["predict", "--ckpt", "a", "--tta", "0", "--ckpt", "b", "--tta", "2", "--input", "i", "--output", "o"]
    options = build_parser().parse_args(words)
    assert ([path.name for path in options.ckpt], options.tta) == (["a", "b"], [0, 2])
    assert build_parser().parse_args(["predict", "--ckpt", "a", "--input", "i", "--output", "o", "--tta"]).tta == []


def test_the_tolerance_of_test_is_that_of_evaluate():
    assert OWN["test"]["nsd_mm"][0] == DEFAULT_TOLERANCE_MM


def test_the_words_of_an_option_are_those_of_the_tables():
    assert words_of("model.net") == tuple(list_nets())
    assert words_of("model.loss") == tuple(sorted(row["name"] for row in losses.rows()))
    assert words_of("model.optimizer") == tuple(OPTIMIZERS)
    assert words_of("model.schedule") == tuple(SCHEDULES)
    assert words_of("data.augmentation") == tuple(PRESETS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("model.net", word) for word in ("unet", "my_nets.Plain", "monai.networks.nets.UNet")),
        *(("model.loss", f"2 * mine.own + {word}") for word in ("dice", "linear(0, 1, epochs=5) * boundary")),
        *(("model.loss", word) for word in ("cross_entropy(weight=balanced)", "dice - ", "my file", "-increase(1)")),
        *(("model.optimizer", word) for word in ("torch.optim.SGD", "null", "muon")),
        *(("data.augmentation", word) for word in ("full", "{preset: light}", {"preset": "nonsense"}, None)),
        *(("trainer.precision", word) for word in (16, "32", "auto", None)),
    ],
)
def test_what_may_be_right_is_left_to_those_who_build_it(option, value):
    require_word(option, value)


def told_without_torch(folder, words):
    """What the standard error says of a command that is refused, before torch is imported."""
    code = "import sys; from medseg.cli import main; print(main(sys.argv[1:]) > 0, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
    return done.stderr


@pytest.mark.parametrize("words", [["predict", "--input", ".", "--output", "out", "--ckpt"], ["info"]])
def test_a_misspelt_path_is_answered_without_torch(tmp_path, words):
    assert "nowhere.ckpt does not exist" in told_without_torch(tmp_path, [*words, "nowhere.ckpt"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.net", "unett"], "no network 'unett', did you mean 'unet'"),
        (["--model.loss", "dice + 0.5 * focl(gamma=2)"], "no loss 'focl', did you mean 'focal'"),
        (["--model.optimizer=muonn"], "no optimizer 'muonn', did you mean 'muon'"),
        (["--model.schedule", "cosinus"], "no schedule 'cosinus', did you mean 'cosine'"),
        (["--data.augmentation", "moderat"], "no augmentation 'moderat', did you mean 'moderate'"),
        (["--trainer.precision", "b16-mixed"], "does not compute in the precision 'b16-mixed'. Choose one of auto"),
        (["--config", "mine.yaml"], "no network 'vnett', did you mean 'vnet'"),
    ],
)
def test_a_misspelt_word_is_answered_without_torch(tmp_path, words, told):
    (tmp_path / "mine.yaml").write_text("model: {net: vnett, net_options: {net: unett}}")
    assert told in told_without_torch(tmp_path, ["fit", *words])


@pytest.mark.parametrize("words", [["fit", "--help"], ["fit", "--model.los", "dice"]])
def test_help_and_misspelt_options_are_answered_without_torch(words):
    told = "import sys; from medseg.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told, *words], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] in (["False"], []), done.stderr  # argparse ends the process itself


def test_short_help_has_each_of_our_options_once(capsys):
    assert main(["fit", "--help"]) == 0
    told = capsys.readouterr().out
    ours = [name for name in known("fit") if name.split(".")[0] in ("model", "data") and "." in name]
    for name in [*ours, "run", "ckpt_path", "checkpoint_minutes"]:
        assert told.count(f"--{name}:") == (not name.endswith(".help")), name
    assert len(told.splitlines()) < 80


def test_a_misspelt_option_of_a_config_is_answered_with_the_meant_one(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("trainer: {max_step: 3}\nmodel: {net_options: {anything: 1}}\n")
    assert main(["fit", "--config", str(config)]) == 2
    assert "'trainer.max_step', did you mean 'trainer.max_steps'" in capsys.readouterr().err


def choices():
    """Each command and option that has a list of choices."""
    commands = next(action for action in build_parser()._actions if isinstance(action.choices, dict)).choices
    for name, parser in commands.items():
        for action in parser._actions:
            if action.choices is not None:
                yield pytest.param(name, action, id=f"{name}-{action.dest}")


@pytest.mark.parametrize(("name", "action"), list(choices()))
def test_a_choice_that_is_none_is_answered_with_those_there_are(name, action, capsys):
    words = [name, *([action.option_strings[0]] if action.option_strings else []), "7seven"]
    if action.type is int:
        words[-1] = "777"
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(str(choice) in said for choice in action.choices)
