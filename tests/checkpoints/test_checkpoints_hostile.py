"""Nothing that a checkpoint says is imported, called or written; what is wrong in one is one sentence."""

import contextlib
import copy
import sys

import pytest
import torch
from support.prediction import smooth, write_checkpoint
from support.toys import oblique_affine, write_nifti

from medseg.checkpoints.checkpoint import checked
from medseg.checkpoints.facts import Weights
from medseg.checkpoints.run import Run
from medseg.cli import info, main
from medseg.errors import CheckpointError
from medseg.plan.cleaning import rules_from_plain
from medseg.training.beginning import beginning_in
from medseg.training.task import SegmentationTask

pytestmark = pytest.mark.usefixtures("without_shape_checks")

EVIL = """
from pathlib import Path
from torch import nn

Path("was_imported").touch()


class Evil(nn.Module):
    def __init__(self, **options):
        Path("was_built").touch()
        super().__init__()


def evil(*options, **more):
    Path("was_called").touch()
"""


class Code:
    def __reduce__(self):
        return (exec, ("open('was_called', 'w')",))


def named(net, **knobs):
    def spoil(content):
        content["hyper_parameters"] |= {"net": net, "net_options": knobs}

    return spoil


def entry(where, value):
    def spoil(content):
        for key in where.split(".")[:-1]:
            content = content.setdefault(key, {})
        content[where.split(".")[-1]] = value

    return spoil


def all_weights(change):
    def spoil(content):
        content["state_dict"] = {name: change(weight) for name, weight in content["state_dict"].items()}

    return spoil


HOSTILE = {
    "torch hub": (named("torch.hub.load", repo_or_dir=".", model="evil", source="local"), "--trust torch.hub.load"),
    "a file emptied": (named("logging.basicConfig", filename="victim", filemode="w"), "--trust logging.basicConfig"),
    "a shell": (named("os.system", command="touch was_called"), "--trust os.system"),
    "exec": (named("builtins.exec"), "--trust builtins.exec"),
    "a class beside": (named("beside.Evil"), "--trust beside.Evil"),
    "torch's own class": (named("torch.nn.Sequential"), "--trust torch.nn.Sequential"),
    "knobs with paths": (named("unet", norm="beside.Evil"), "no knob 'norm'"),
    "knobs with classes": (named("unet", features={"class_path": "beside.Evil"}), "each a whole number"),
    "a plan by path": (entry("hyper_parameters.plan", "beside.Evil"), "hyper_parameters.plan"),
    "a plan of tensors": (entry("hyper_parameters.plan.spacing_mm", torch.ones(3)), "hyper_parameters.plan"),
    "whole numbers": (all_weights(lambda weight: weight.long()), "torch.int64"),
    "complex numbers": (all_weights(lambda weight: weight.to(torch.complex64)), "torch.complex64"),
    "sparse numbers": (all_weights(lambda weight: weight.to_sparse()), "something else than the numbers"),
    "other shapes": (all_weights(lambda weight: weight[None]), "size mismatch"),
    "code": (entry("medseg.scores", Code()), "holds code that could run"),
    "rules": (entry("medseg.cleaning", [{"value": "beside.Evil"}]), "medseg.cleaning"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "beside.py").write_text(EVIL)
    (tmp_path / "hubconf.py").write_text(EVIL)
    (tmp_path / "victim").write_text("precious")
    write_nifti(tmp_path / "in" / "a.nii.gz", smooth((9, 8, 5), 1)[0], oblique_affine(1))
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text("data: {store: nowhere}\n")
    write_checkpoint(run.best)
    yield tmp_path
    sys.modules.pop("beside", None)


def spoilt(place, spoil):
    path = Run(place / "run").best
    content = torch.load(path, weights_only=True)
    spoil(content)
    torch.save(content, path)
    return path


def commands(path):
    ckpt = ["--ckpt", str(path)]
    return {
        "predict": ["predict", *ckpt, "--input", "in", "--output", "out"],
        "export": ["export", *ckpt, "--format", "monai-bundle", "--output", "out"],
        "test": ["test", "--run", "run"],
        "validate": ["validate", "--run", "run"],
    }


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", HOSTILE)
def test_every_command_refuses_in_a_sentence_and_does_nothing(place, capsys, name):
    spoil, expected = HOSTILE[name]
    path = spoilt(place, spoil)
    before, there = path.read_bytes(), sorted(place.rglob("*"))
    for words in commands(path).values():
        assert main(words) == 1, words
        said = capsys.readouterr().err
        assert expected in said
        assert str(path.name) in said
        assert said.count("\n") == 1
    main(["info", str(path)])
    main(["choose-cleaning", "--ckpt", str(path), "--predictions", "in", "--references", "nowhere"])
    with pytest.raises(CheckpointError):
        SegmentationTask.load_from_checkpoint(path)
    with contextlib.suppress(CheckpointError):
        beginning_in(path, ["net.some"])
    assert path.read_bytes() == before
    assert sorted(place.rglob("*")) == there
    assert (place / "victim").read_text() == "precious"
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    "spoil",
    [
        entry("hyper_parameters.loss", "beside.evil + dice"),
        entry("hyper_parameters.optimizer", "beside.Evil"),
        entry("hyper_parameters.study", ["beside.evil"]),
        entry("hyper_parameters.init_from", "other.ckpt"),
    ],
)
def test_what_prediction_does_not_need_is_not_looked_at(place, spoil):
    """A checkpoint trained with a loss of one's own predicts without that loss."""
    path = spoilt(place, spoil)
    assert main(commands(path)["predict"]) == 0
    assert not list(place.glob("was_*"))


def test_no_command_needs_the_loss(place):
    path = spoilt(place, entry("hyper_parameters.loss", "beside.evil + dice"))
    for words in commands(path).values():
        main(words)
    assert (place / "out" / "configs" / "inference.json").is_file()
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    "spoil",
    [
        *(
            entry("hyper_parameters.loss", f"dice + {path}")
            for path in ("beside.evil", "beside . evil", "(beside).evil")
        ),
        entry("hyper_parameters.loss", "(0.5 * beside\n.evil(k=1) + blob(criterion='dice'))"),
        entry("hyper_parameters.loss", "\uff42eside.evil"),
        entry("hyper_parameters.study", ["dice", "beside .evil"]),
        entry("hyper_parameters.optimizer", "beside.evil"),
    ],
)
def test_no_loss_is_imported_that_only_a_checkpoint_names(place, spoil):
    """However Python lets its path be written."""
    path = spoilt(place, spoil)
    with pytest.raises(CheckpointError, match=r"--trust beside\.evil\.$"):
        SegmentationTask.load_from_checkpoint(path)
    assert "beside" not in sys.modules


def test_the_config_that_tells_of_flips_calls_nothing(place):
    values = {"data.augmentation.preset": "beside.evil", "data.augmentation.beside.evil.probability": 1.0}
    origin = {"plan": {}, "packages": {}, "commits": {}, "data": {"digest": "", "cases": []}}
    path = spoilt(place, entry("origin", {**origin, "config": {"digest": "", "values": values}}))
    assert main([*commands(path)["predict"], "--tta"]) == 2
    assert not list(place.glob("was_*"))


def test_the_option_that_is_named_lets_that_class_in(place, capsys):
    (place / "mine.py").write_text(
        "from torch import nn\n\n\nclass Plain(nn.Conv3d):\n"
        "    def __init__(self, in_channels, out_channels):\n        super().__init__(in_channels, out_channels, 1)\n"
    )
    path = Run(place / "run").best
    write_checkpoint(path, net="mine.Plain", net_options={})
    assert main(commands(path)["predict"]) == 1
    assert "--trust mine.Plain" in capsys.readouterr().err
    assert main([*commands(path)["predict"], "--trust", "beside.Evil", "--trust", "mine.Plain"]) == 0
    assert SegmentationTask.load_from_checkpoint(path, trust=["mine.Plain"]).hparams["net"] == "mine.Plain"
    assert "beside" not in sys.modules


def places_in(content, prefix=()):
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict) and key in ("medseg", "hyper_parameters", "plan", "origin", "config", "data"):
            yield from places_in(value, (*prefix, key))


def whole(place):
    """A checkpoint with everything that one may hold."""
    content = torch.load(Run(place / "run").best, weights_only=True)
    content["state_dict"] = {name: Weights(tuple(w.shape), (name,)) for name, w in content["state_dict"].items()}
    rule = {"value": 1, "largest_component": True, "minimum_mm3": 1.0, "fill_holes": False}
    content["medseg"] |= {"flips": [0], "peak_gib": 1.0, "scores": {"val/dice": 0.5}, "cleaning": [rule]}
    content["origin"] = {
        "plan": {"name": "x"},
        "config": {"digest": "x", "values": {"data.fold": 0}},
        "data": {"digest": "x", "cases": ["x"], "trained_on": ["y"]},
        "packages": {"torch": "2"},
        "commits": {"medseg": ""},
    }
    return content


WRONG = (None, -1, "\0", [[]], {"a": {}}, torch.ones(2), float("nan"))


def sentence_of(path, content):
    """What a command says to a checkpoint with that content; nothing where it reads and describes it."""
    try:
        kept = checked(path, content)
    except CheckpointError as error:
        return str(error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(info, "read_facts", lambda _: kept)
        info.describe_path(path)
    _ = (kept.knobs, kept.weights, kept.scores, kept.flips, rules_from_plain(kept.cleaning, kept.plan), kept.trained_on)
    return ""


def test_a_key_that_is_gone_or_of_another_kind_is_one_sentence_or_harmless(place):
    good, path = whole(place), place / "x.ckpt"
    path.touch()
    assert not sentence_of(path, good)
    told = {}
    for where in places_in(good):
        for value in (KeyError, *WRONG):
            content = inner = copy.copy(good)
            for key in where[:-1]:
                inner[key] = copy.copy(inner[key])
                inner = inner[key]
            inner.pop(where[-1])
            if value is not KeyError:
                inner[where[-1]] = value
            told[where, repr(value)] = sentence_of(path, content)
    assert len(told) > 350
    refused = [sentence for sentence in told.values() if sentence]
    assert len(refused) > 250
    assert all("x.ckpt" in sentence and "\n" not in sentence for sentence in refused)
