"""medseg on CUDA, rehearsed on `support.shadow_cuda`: the CPU's values, no mixed devices, and no more waits than told.

The tables below say how often the host waits. A new wait fails a test, so that none comes in unseen; where some have
gone, lower the number.
"""

from __future__ import annotations

import json
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from support.nets import TINY
from support.rehearsal import CELLS, SPEC, crops, example, plan, value_and_gradient
from support.runs import load
from support.shadow_cuda import CUDA, Shadow, shadow_cuda, to_host
from support.shadow_rules import LEDGER, MixedDevicesError

from medseg.cli import main
from medseg.inference.predict import Predictor
from medseg.losses import Criterion, build_loss
from medseg.nets import NetSpec, build_net, deeply_supervised_nets, list_nets
from medseg.nets.norm import InstanceNorm3d
from medseg.patches.batch import augmented
from medseg.segmenter import Segmenter, net_spec
from medseg.space.volume import Volume
from medseg.training.task import SegmentationTask

DOOR = 2  # of every loss: the range of the labels, and whether the value is finite
BESIDES = {  # waits of a loss beyond those, forward and backward, for the two samples of `example`
    "bce": 2, "combo": 2, "generalized_wasserstein_dice": 2, "topk_cross_entropy": 2, "dice_topk": 2,
    "hausdorff_dt": 2, "log_hausdorff_dt": 2, "boundary": 1, "weighted_hausdorff": 11, "shape_aware": 1,
    "blob": 2, "cc_dice_ce": 1, "ohem_cross_entropy": 1,
}  # fmt: skip
UNREPEATABLE = {"lovasz_softmax": {"cumsum"}, "lovasz_hinge": {"cumsum"}}  # as docs/resuming.md says
WAITS_OF_A_STEP = {"32": 1, "bf16-mixed": 1, "16-mixed": 5}  # of `medseg fit` with everything on


def rehearse(loss, mode, *, waits, unrepeatable=frozenset()):
    """Hold a loss on the shadow, with the maps that a batch carries, against the same on the CPU, without them."""
    logits, target, spacing_mm = example(mode)
    expected = value_and_gradient(loss, logits, target, spacing_mm)
    wishes = loss.wishes(logits.shape[1]) if isinstance(loss, Criterion) else None
    maps = wishes.granted(target, spacing_mm) if wishes else {}
    with shadow_cuda() as ledger:
        loss, logits, target = loss.to(CUDA), logits.to(CUDA), target.to(CUDA)
        carried = {"beforehand": {wish: made.to(CUDA) for wish, made in maps.items()}} if maps else {}
        ledger.clear()
        found = value_and_gradient(partial(loss, **carried), logits, target, spacing_mm)
        assert ledger.total() <= waits, str(ledger)
        assert set(ledger.unrepeatable) <= unrepeatable
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("name", "mode"), CELLS)
def test_a_loss_is_on_cuda_what_it_is_on_the_cpu_and_waits_no_more_than_told(name, mode):
    loss = build_loss(name, mode=mode, ignore_index=-1)
    rehearse(loss, mode, waits=DOOR + BESIDES.get(name, 0), unrepeatable=UNREPEATABLE.get(name, set()))


class Planted(torch.nn.Module):
    """A loss with a fault that the CPU does not know."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, logits, target, spacing_mm):
        return self.fault(logits.square().mean(), logits)


PLANTED = {
    "two devices": (lambda value, logits: value + torch.ones(1).sum(0, keepdim=True).mean(0, keepdim=True).sum() * 0
                    + (torch.zeros(3) + value.expand(3)).sum() * 0, MixedDevicesError),
    "a wait": (lambda value, logits: value * (1 if value.item() > -1 else 0), AssertionError),
    "another value": (lambda value, logits: value * (2 if logits.device.type == "cuda" else 1), AssertionError),
    "no repeatable form": (lambda value, logits: value + logits.flatten().cumsum(0).mean() * 0, AssertionError),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_caught(kind):
    fault, error = PLANTED[kind]
    with pytest.raises(error):
        rehearse(Planted(fault), "multiclass", waits=0)
    rehearse(Planted(lambda value, logits: value), "multiclass", waits=0)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", list_nets())
def test_a_network_trains_on_cuda_without_a_wait_and_every_weight_has_a_gradient(name):
    torch.manual_seed(0)
    large = name == "swin_unetr"
    spec = NetSpec(1, 3, (64, 32, 32) if large else SPEC.patch_size, SPEC.strides, SPEC.kernels, SPEC.features)
    deep = {"deep_supervision": True} if name in deeply_supervised_nets() else {}
    net = build_net(name, spec, {**TINY.get(name, {}), **deep})
    image = torch.randn(2, 1, *((33, 9, 8) if large else spec.patch_size))
    with shadow_cuda() as ledger:
        net, image = net.to(CUDA).train(), image.to(CUDA)
        ledger.clear()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            levels = net(image)
        sum(level.float().square().mean() for level in (levels if isinstance(levels, tuple) else (levels,))).backward()
        assert ledger.total() == 0, str(ledger)
        assert set(ledger.unrepeatable) <= ({"avg_pool3d_backward"} if name == "residual_encoder_unet" else set())
    assert all(weight.grad is not None for weight in net.parameters())  # DDP would wait for it for ever


@pytest.mark.parametrize("preset", ["light", "moderate", "full"])
def test_a_batch_is_augmented_on_cuda_as_on_the_cpu(preset):
    for number in range(3):
        batch, geometry, nearest = crops(preset, number)
        copied = batch._replace(image=tuple(image.clone() for image in batch.image))
        expected = augmented(copied, geometry, nearest=nearest)
        with shadow_cuda() as ledger:
            image, labels = ([one.to(CUDA) for one in several] for several in (batch.image, batch.labels))
            ledger.clear()
            found = augmented(batch._replace(image=image, labels=labels), geometry, nearest=nearest)
            assert ledger.total() == 0, str(ledger)
        image, labels = to_host((found.image, found.labels))
        quiet = [not any(change.seed for change in changes) for changes in batch.draw.changes]  # noise is the device's
        torch.testing.assert_close(image[quiet], expected.image[quiet], rtol=0, atol=5e-3)
        assert (labels != expected.labels).float().mean() < 1e-3
        assert torch.equal(found.class_mask, expected.class_mask)


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("classes", "mirror"), [(3, (0, 2)), (14, ())])
def test_a_volume_is_predicted_on_cuda_as_on_the_cpu(classes, mirror):
    torch.manual_seed(0)
    toy = plan(classes)
    segmenter = Segmenter(build_net("unet", net_spec(toy), {}), toy)
    voxels = np.random.default_rng(0).normal(size=(1, 44, 40, 30)).astype(np.float32)
    volume = Volume(array=voxels, affine=np.diag([1.2, 1.1, 1.7, 1.0]))
    predictor = Predictor([segmenter], mirror=mirror, device="cpu")
    predictor.half = None  # so that ties are no matter of rounding
    expected = predictor.predict(volume)
    with shadow_cuda() as ledger:
        predictor = Predictor([segmenter], mirror=mirror, device="auto")
        predictor.half = None
        assert predictor.device.type == "cuda"
        ledger.clear()
        found = predictor.predict(volume)
        slabs = 4
        assert ledger.total("read", "size") <= slabs * (11 * classes + 1), str(ledger)
    np.testing.assert_array_equal(found, expected)


def fit(store, run, device, *more):
    config = {
        "data": {"store": str(store), "workers": 0, "steps_per_epoch": 5, "folds": 2, "augmentation": "full"},
        "model": {"net_options": {"features": [4, 8, 8]}, "deep_supervision": True, "ema": 0.9},
        "trainer": {"accelerator": device, "devices": 1, "max_steps": 5, "gradient_clip_val": 12.0,
                    "enable_progress_bar": False, "num_sanity_val_steps": 0},
    }  # fmt: skip
    path = run.parent / f"{run.name}.yaml"
    path.write_text(json.dumps(config))
    return main(["fit", "--config", str(path), "--run", str(run), *more])


@pytest.mark.sweep(8)
@pytest.mark.parametrize("precision", WAITS_OF_A_STEP)
def test_a_whole_fit_runs_on_cuda_and_no_step_waits_more_often_than_told(store, tmp_path, monkeypatch, precision):
    steps = []

    def note(task, *given):
        steps.append(dict(LEDGER.waits))
        LEDGER.clear()

    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", note)
    with warnings.catch_warnings(), shadow_cuda(pinned=True):
        warnings.simplefilter("ignore")  # Lightning's and torch's, of a card that they do not find
        more = ["--model.optimizer", "muon"] if precision != "32" else []
        more += ["--model.loss", "dice_ce_skeleton_recall"] if precision == "bf16-mixed" else []  # maps of the loader
        assert fit(store, tmp_path / "cuda", "gpu", "--trainer.precision", precision, *more) == 0
    assert len(steps) == 5
    for step in steps[1:-1]:  # the first looks at labels and logits
        assert sum(step.values()) <= WAITS_OF_A_STEP[precision], step
    if precision == "32":
        assert fit(store, tmp_path / "cpu", "cpu", "--trainer.precision", precision) == 0
        ours = to_host(torch.load(tmp_path / "cuda" / "checkpoints" / "last.ckpt", weights_only=False))
        theirs = load(tmp_path / "cpu" / "checkpoints" / "last.ckpt")
        assert set(ours) == set(theirs)
        for name, weights in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], weights, rtol=0, atol=1e-5)


def test_a_step_copies_no_activation_into_another_layout():
    """In bytes, of all that convolutions give out: PyTorch's own norm copies more than three times as much."""
    torch.manual_seed(0)
    copied = {}
    for norm in (InstanceNorm3d, torch.nn.InstanceNorm3d):
        net = torch.nn.Sequential(
            torch.nn.Conv3d(1, 8, 3, padding=1), norm(8, affine=True), torch.nn.LeakyReLU(inplace=True),
            torch.nn.Conv3d(8, 8, 3, padding=1), norm(8, affine=True), torch.nn.LeakyReLU(inplace=True),
        ).to(memory_format=torch.channels_last_3d)  # fmt: skip
        image = torch.randn(2, 1, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
        with shadow_cuda() as ledger:
            net, image = net.to(CUDA), image.to(CUDA)
            ledger.clear()
            net(image).sum().backward()
            copied[norm] = ledger.copied_bytes / (2 * 2 * 8 * 8**3 * 4)
    assert copied[InstanceNorm3d] < 0.6
    assert copied[torch.nn.InstanceNorm3d] > 3


def test_the_shadow_tells_what_cuda_would():
    with shadow_cuda() as ledger:
        ours, theirs = torch.zeros(3, device="cuda"), torch.zeros(3)
        assert isinstance(ours, Shadow)
        with pytest.raises(MixedDevicesError, match="same device"):
            ours + theirs
        with pytest.raises(TypeError, match="cuda"):
            ours.numpy()
        assert (ours + torch.tensor(2.0)).sum() == 6  # a number may come from the host
        ledger.clear()
        (ours > 0).nonzero()
        float(ours.sum())
        torch.tensor([1, 2], device="cuda")
        assert [ledger.total(kind) for kind in ("read", "size", "upload")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trainer.devices", "4"], "trainer.devices 4 on gpu"),
        (["--trainer.accelerator", "mps"], "not supported"),
    ],
)
def test_a_card_that_is_not_there_is_a_sentence(store, tmp_path, capsys, words, sentence):
    with warnings.catch_warnings(), shadow_cuda():
        warnings.simplefilter("ignore")
        assert fit(store, tmp_path / "run", "gpu", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_patch_too_large_for_the_card_is_a_sentence_with_numbers(store, tmp_path, capsys, monkeypatch):
    def full(*given):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(SegmentationTask, "forward", full)
    with warnings.catch_warnings(), shadow_cuda(pinned=True):
        warnings.simplefilter("ignore")
        assert fit(store, tmp_path / "run", "gpu", "--trainer.precision", "32") == 1
    told = capsys.readouterr().err
    assert "do not fit into the memory of the GPU" in told
    assert "--data.batch_size" in told
    assert "--data.patch_size" in told
