"""Layout and compiling by measurement: what is chosen, what is said, and that nothing but the pace changes."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.toys import write_toy_dataset
from torch import nn

from medseg.errors import UsageError
from medseg.nets import list_nets
from medseg.patches.datamodule import VolumesDataModule
from medseg.store.prepare import prepare
from medseg.training import pace
from medseg.training.pace import Pace, Trial, compiler_cache, missing_compiler, set_pace, step_seconds
from medseg.training.task import SegmentationTask

COMPILER = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))

EVERY_NET = """
import sys, torch
from medseg.nets import NetSpec, build_net, deeply_supervised_nets
SMALL = {
    "anatomynet": {"width": 4, "blocks": 1, "reduction": 2}, "mednext": {"width": 2},
    "residual_encoder_unet": {"blocks": [1, 2]}, "segresnet": {"width": 4},
    "swin_unetr": {"width": 12, "depths": [1, 1, 1, 1], "window": 2},
    "unetr": {"width": 2, "hidden": 8, "mlp": 8, "heads": 2},
}
strides, kernels = ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3
for name in sys.argv[1:]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    patch, size = ((64, 32, 32), (33, 9, 8)) if name == "swin_unetr" else ((32, 16, 16), (31, 15, 13))
    knobs = SMALL.get(name, {}) | ({"deep_supervision": True} if name in deeply_supervised_nets() else {})
    net = build_net(name, NetSpec(2, 3, patch, strides, kernels, (4, 8, 8)), knobs)
    image = torch.randn(2, 2, *size).contiguous(memory_format=torch.channels_last_3d)
    weights, results = set(net.state_dict()), []
    for compiled in (False, True):
        if compiled:
            net.compile(dynamic=False, backend="eager")
        net.zero_grad()
        levels = net(image)
        levels = levels if isinstance(levels, tuple) else (levels,)
        sum(level.square().mean() for level in levels).backward()
        results.append([*(level.detach() for level in levels), *(p.grad.clone() for p in net.parameters())])
    for plain, traced in zip(*results, strict=True):
        error = (plain - traced).abs().max() / (plain.abs().max() + 1e-3)
        assert error < 2e-2, (name, error)
    assert set(net.state_dict()) == weights, name
    print(name)
"""


def test_every_net_can_be_traced_and_computes_the_same():
    script = [sys.executable, "-c", EVERY_NET, *list_nets()]  # a process of its own: checked shapes do not compile
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list_nets()


def trial(net=None, seconds_left=1e9):
    net = net or nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout(0.5))
    return Trial(net, torch.randn(2, 1, 4, 4, 4), contextlib.nullcontext, lambda step_s: seconds_left)


def scripted(monkeypatch, *seconds):
    """Steps take what the test says: first those of the layouts, then the plain one, then the compiled one."""
    said = iter(seconds)
    monkeypatch.setattr(pace, "step_seconds", lambda *_, **__: next(said))
    monkeypatch.setattr(pace, "missing_compiler", lambda _: "")


def compiled(net):
    return net._compiled_call_impl is not None


def test_nothing_is_measured_unless_asked(monkeypatch):
    scripted(monkeypatch)
    assert set_pace(trial()) == Pace(channels_last=True, compiled=False)
    assert set_pace(trial(), channels_last=False) == Pace(channels_last=False, compiled=False)


@pytest.mark.parametrize(("first", "last", "expected"), [(1.0, 0.5, True), (0.5, 1.0, False)])
def test_the_faster_layout_is_taken_and_the_weights_lie_in_it(monkeypatch, first, last, expected):
    scripted(monkeypatch, first, last)
    net = nn.Conv3d(2, 2, 3)
    chosen = set_pace(trial(net), channels_last="auto")
    assert chosen.channels_last is expected
    assert net.weight.is_contiguous(memory_format=torch.channels_last_3d) is expected


@pytest.mark.parametrize(
    ("seconds", "left", "expected", "words"),
    [
        ((1.0,), 5.0, False, "would take about 3 s and cannot gain that back in the 5 s left (1000 ms a step)"),
        ((1.0, 0.5), 1000.0, True, "compiled, 500 ms a step instead of 1000 ms"),
        ((1.0, 0.99), 1000.0, False, "990 ms a step instead of 1000 ms, after 0 s of compiling is not worth it"),
    ],
)
def test_auto_compiles_where_the_time_left_repays_it_and_it_got_faster(monkeypatch, seconds, left, expected, words):
    scripted(monkeypatch, *seconds)
    made = trial(seconds_left=left)
    chosen = set_pace(made, compiling="auto")
    assert chosen.compiled is expected is compiled(made.net)
    assert words in chosen.reasons


def test_a_missing_compiler_is_a_sentence_and_an_error_only_where_compiling_was_demanded(monkeypatch):
    monkeypatch.setattr(pace.shutil, "which", lambda name: None)
    assert "not compiled, which needs a C++ compiler such as g++" in set_pace(trial(), compiling="auto").reasons
    with pytest.raises(UsageError, match=r"model.compile needs a C\+\+ compiler"):
        set_pace(trial(), compiling=True)
    monkeypatch.setattr(pace.importlib.util, "find_spec", lambda name: None)
    assert missing_compiler("cuda") == "the package triton, which is not installed"


def test_a_net_that_does_not_compile_goes_on_as_it_is_or_is_an_error_where_compiling_was_demanded(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no kernel\nand a long story")

    for demanded in ("auto", True):
        made = trial()
        scripted(monkeypatch, 1.0)
        monkeypatch.setattr(pace, "start_compiler", refuse_later := lambda net: net.compile(backend="eager"))
        steps = iter((lambda *_, **__: 1.0, refuse))
        monkeypatch.setattr(pace, "step_seconds", lambda *a, **k: next(steps)(*a, **k))  # noqa: B023
        assert refuse_later
        if demanded is True:
            with pytest.raises(UsageError, match=r"cannot be compiled \(no kernel\)"):
                set_pace(made, compiling=demanded)
        else:
            assert "not compiled, which failed (no kernel)" in set_pace(made, compiling=demanded).reasons
        assert not compiled(made.net)


def test_timing_leaves_weights_buffers_gradients_and_random_numbers_alone():
    made = trial()
    before = {name: tensor.clone() for name, tensor in made.net.state_dict().items()}
    chance = torch.get_rng_state()
    assert step_seconds(made, channels_last=True) > 0
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.net.state_dict().items())
    assert all(p.grad is None for p in made.net.parameters())


def test_compiled_code_is_kept_apart_by_user_machine_and_version():
    assert os.uname().nodename in compiler_cache()
    assert torch.__version__.split("+")[0] in compiler_cache()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pace")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    return folder / "store"


def fit(store: Path, steps: int, **options):
    """Train a few steps; the trainer, for its checkpoint."""
    torch.manual_seed(0)
    data = VolumesDataModule(store, folds=2, batch_size=2, steps_per_epoch=2, workers=0)
    ckpt_path = options.pop("ckpt_path", None)
    task = SegmentationTask(data.plan.to_dict(), net_options={"features": [4, 8, 8]}, schedule="constant", **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, max_steps=steps, max_epochs=-1, **quiet)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer, task


class FakeCompiler:
    """Stands in for inductor, which takes its time: the same function, and it counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, net):
        def run(*args):
            self.calls += 1
            return net._call_impl(*args)

        net._compiled_call_impl = run


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
def test_a_compiled_run_goes_on_uncompiled_and_the_other_way_round(store, tmp_path, monkeypatch, first, second):
    fake = FakeCompiler()
    monkeypatch.setattr(pace, "start_compiler", fake)
    monkeypatch.setattr(pace, "missing_compiler", lambda _: "")
    ends = []
    for one, other in ((first, second), (False, False)):
        part, _ = fit(store, 2, compile=one)
        part.save_checkpoint(tmp_path / "part.ckpt")
        state = torch.load(tmp_path / "part.ckpt", weights_only=True)
        assert state["medseg"]["pace"] == {"channels_last": True, "compiled": one}
        rest, task = fit(store, 4, compile=other, ckpt_path=str(tmp_path / "part.ckpt"))
        assert rest.global_step == 4
        assert set(state["state_dict"]) == set(task.state_dict())
        ends.append(task.state_dict())
    assert fake.calls > 0
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_what_auto_meant_is_kept_when_a_run_is_resumed(store, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "start_compiler", FakeCompiler())
    monkeypatch.setattr("medseg.training.task.missing_compiler", lambda _: "")
    scripted(monkeypatch, 1.0, 0.5, 1.0, 0.5)
    monkeypatch.setattr("medseg.training.task.seconds_left", lambda *_: 1e9)
    part, task = fit(store, 2, compile="auto", channels_last="auto")
    assert task.pace.compiled
    part.save_checkpoint(tmp_path / "part.ckpt")
    scripted(monkeypatch, 1.0, 2.0)  # it is slower now, and stays compiled
    _, resumed = fit(store, 4, compile="auto", channels_last="auto", ckpt_path=str(tmp_path / "part.ckpt"))
    assert resumed.pace.to_dict() == {"channels_last": True, "compiled": True}


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
def test_fit_with_the_real_compiler_and_going_on_without(store, tmp_path):
    words = [sys.executable, "-m", "medseg", "fit", "--data.store", str(store), "--data.folds", "2"]
    words += ["--run", str(tmp_path / "run"), "--data.steps_per_epoch", "2", "--trainer.accelerator", "cpu"]
    words += ["--model.net_options", '{"features": [4, 8, 8]}', "--trainer.enable_progress_bar", "false"]
    fresh = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    for compiling, steps, more in [("true", "2", []), ("false", "4", ["--ckpt_path", "last"])]:
        run = [*words, "--trainer.max_steps", steps, "--model.compile", compiling, *more]
        done = subprocess.run(run, capture_output=True, text=True, check=False, env=fresh)
        assert done.returncode == 0, done.stderr
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert not [name for name in last["state_dict"] if "_orig_mod" in name]
