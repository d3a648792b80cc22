"""Layout and compiling: nothing but the pace changes."""

import os
import shutil
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch

from medseg.errors import UsageError
from medseg.nets import list_nets
from medseg.patches.datamodule import VolumesDataModule
from medseg.training import pace
from medseg.training.pace import compiler_cache, missing_compiler
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


@pytest.mark.slow  # minutes of tracing
def test_every_net_can_be_traced_and_computes_the_same():
    script = [sys.executable, "-c", EVERY_NET, *list_nets()]  # a process of its own: checked shapes do not compile
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list_nets()


def test_compiled_code_is_kept_apart_by_user_machine_and_version():
    assert os.uname().nodename in compiler_cache()
    assert torch.__version__.split("+")[0] in compiler_cache()


def test_a_missing_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C++ compiler" in missing_compiler("cpu")
    monkeypatch.setattr(pace.importlib.util, "find_spec", lambda name: name)
    assert "C compiler" in missing_compiler("cuda")
    with pytest.raises(UsageError, match=r"model.compile needs a C\+\+ compiler"):
        pace.start_compiler(torch.nn.Conv3d(1, 1, 1), "cpu")


def test_a_compiled_run_is_the_same_training_and_goes_on_uncompiled(store, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "missing_compiler", lambda _: "")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, **_: calls.append(net))  # inductor takes its time
    calls, ends = [], []
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    for compiling in (True, False):
        torch.manual_seed(0)
        for steps, path in ((2, None), (4, str(tmp_path / "part.ckpt"))):
            data = VolumesDataModule(store, folds=2, batch_size=2, steps_per_epoch=2, workers=0)
            options = {"net_options": {"features": [4, 8, 8]}, "schedule": "constant"}
            task = SegmentationTask(data.plan.to_dict(), compile=compiling and path is None, **options)
            trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, max_steps=steps, max_epochs=-1, **quiet)
            trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True if path else None)
            trainer.save_checkpoint(tmp_path / "part.ckpt")
        ends.append(task.state_dict())
    assert len(calls) == 1
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


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
