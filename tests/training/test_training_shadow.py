"""medseg on CUDA, rehearsed on `support.shadow_cuda`: the CPU's values, no mixed devices, and no more waits than told.

The tables below say how often the host waits. A new wait fails a test, so that none comes in unseen; where some have
gone, lower the number.
"""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.nets import TINY
from support.runs import load
from support.shadow_cuda import CUDA, Shadow, shadow_cuda, to_host
from support.shadow_rules import MixedDevicesError

from medseg.cli import main
from medseg.inference.predict import Predictor
from medseg.losses import build_loss
from medseg.losses.table import rows
from medseg.nets import NetSpec, build_net, deeply_supervised_nets, list_nets
from medseg.patches.batch import Batch, Crops, augmented
from medseg.patches.draw import draw
from medseg.patches.geometry import geometry_of
from medseg.patches.margin import crop_size
from medseg.patches.settings import augmentation
from medseg.plan.plan import Normalisation, Plan
from medseg.segmenter import Segmenter, net_spec
from medseg.space.volume import Volume
from medseg.training.task import SegmentationTask

CELLS = [(row.name, mode) for row in rows().values() for mode in row.modes]
CHANNELS = {"multiclass": 3, "binary": 1, "multilabel": 2}

DOOR = 3  # of every loss: the range of the labels, the spacing of the voxels, whether the value is finite
BESIDES = {  # waits of a loss beyond those, forward and backward, for the two samples of `example`
    "bce": 2, "combo": 2, "generalized_wasserstein_dice": 2, "topk_cross_entropy": 2, "dice_topk": 2,
    "hausdorff_dt": 2, "log_hausdorff_dt": 2, "boundary": 1, "distance_penalized_ce": 2,
    "weighted_hausdorff": 10, "shape_aware": 4, "blob": 4, "skeleton_recall": 2, "dice_ce_skeleton_recall": 2,
    "unet_weighted_cross_entropy": 3,
}  # fmt: skip
UNREPEATABLE = {"lovasz_softmax": {"cumsum"}, "lovasz_hinge": {"cumsum"}}  # as docs/resuming.md says
STEP = {}  # waits of a step of `medseg fit` with everything on, by file


def example(mode):
    """Logits and a target of few voxels, with every class and some that are ignored."""
    generator = torch.Generator().manual_seed(0)
    channels, space = CHANNELS[mode], (16, 14, 12)
    maps = torch.zeros(2, max(channels, 3), *space, dtype=torch.int16)
    for sample in range(2):
        maps[sample, 0, 1:6, 1:7, 2:9] = 1
        maps[sample, 0, 12:, :3] = 1
        maps[sample, 1, 7:11, 5 - sample : 10] = 1
    target = maps[:, 0] + 2 * maps[:, 1] if mode == "multiclass" else maps[:, :channels].to(torch.int8)
    target[..., :1] = -1
    return torch.randn(2, channels, *space, generator=generator), target, torch.tensor([[1.5, 1.5, 4.0]] * 2)


def value_and_gradient(loss, logits, target, spacing_mm):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target, spacing_mm)
    value.backward()
    return to_host((value.detach(), logits.grad))


def rehearse(loss, mode, *, waits, unrepeatable=frozenset()):
    """Hold a loss on the shadow against the same on the CPU."""
    logits, target, spacing_mm = example(mode)
    expected = value_and_gradient(loss, logits, target, spacing_mm)
    with shadow_cuda() as ledger:
        loss, logits, target = loss.to(CUDA), logits.to(CUDA), target.to(CUDA)
        ledger.clear()
        found = value_and_gradient(loss, logits, target, spacing_mm)
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


SPEC = NetSpec(1, 3, (32, 16, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (4, 8, 8))


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


def plan(classes=3, swap=()):
    labels = {f"organ_{number}": number for number in range(1, classes)}
    return Plan("toy", ("CT",), labels, "RAS", (1.0, 1.0, 1.5), (32, 32, 16), 2, (Normalisation(),), SPEC.strides,
                ((3, 3, 3),) * 3, (4, 8, 8), ignore=99, swap_labels=swap)  # fmt: skip


def crops(preset, number):
    settings, geometry = augmentation(preset), geometry_of(plan(swap=(("organ_1", "organ_2"),)))
    size = crop_size(settings, geometry, (200, 200, 200))
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(number))
    labels = torch.zeros(2, *size, dtype=torch.int16)
    labels[:, 8:20, 3:20, 2:14], labels[:, 22:30, 9:25, 4:12] = 1, 2
    drawn = draw(settings, geometry, modalities=1, keys=[(number, key) for key in range(2)])
    mask = torch.tensor([[True, True, False]] * 2)
    batch = Batch(image, labels, torch.tensor([geometry.spacing_mm] * 2), ("a", "b"), mask)
    return Crops(batch, drawn), geometry, settings.label_interpolation == "nearest"


@pytest.mark.parametrize("preset", ["light", "moderate", "full"])
def test_a_batch_is_augmented_on_cuda_as_on_the_cpu(preset):
    for number in range(3):
        batch, geometry, nearest = crops(preset, number)
        copied = batch._replace(batch=batch.batch._replace(image=batch.batch.image.clone()))
        expected = augmented(copied, geometry, nearest=nearest)
        with shadow_cuda() as ledger:
            moved = {k: v.to(CUDA) for k, v in batch.batch._asdict().items() if isinstance(v, torch.Tensor)}
            ledger.clear()
            found = augmented(batch._replace(batch=batch.batch._replace(**moved)), geometry, nearest=nearest)
            assert ledger.total("read", "size") == 0, str(ledger)
        image, labels = to_host((found.image, found.labels))
        quiet = [not any(change.seed for change in changes) for changes in batch.draw.changes]  # noise is the device's
        torch.testing.assert_close(image[quiet], expected.image[quiet], rtol=0, atol=5e-3)
        assert (labels != expected.labels).float().mean() < 1e-3
        assert torch.equal(to_host(found.class_mask), expected.class_mask)


@pytest.mark.parametrize(("classes", "mirror"), [(3, (0, 1, 2)), (14, ())])
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
                    "enable_progress_bar": False, "logger": False},
    }  # fmt: skip
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f"{run.name}.yaml"
    path.write_text(json.dumps(config))
    return main(["fit", "--config", str(path), "--run", str(run), *more])


@pytest.fixture
def steps(monkeypatch):
    """What the ledger holds after each step."""
    found = []

    def note(task, *given):
        found.append(SimpleNamespace(waits=dict(ledgers[0].waits)))

    ledgers = []
    monkeypatch.setattr(SegmentationTask, "on_train_batch_start", lambda task, *given: ledgers and ledgers[0].clear())
    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", note)
    return SimpleNamespace(found=found, ledgers=ledgers)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_a_whole_fit_runs_on_cuda_and_no_step_waits_more_often_than_told(store, tmp_path, precision):
    with warnings.catch_warnings(), shadow_cuda(pinned=True) as ledger:
        warnings.simplefilter("ignore")  # Lightning's and torch's, of a card that they do not find
        assert fit(store, tmp_path / "cuda", "gpu", "--trainer.precision", precision) == 0
        found = dict(ledger.by_file())
    print(found)
    if precision == "32":
        assert fit(store, tmp_path / "cpu", "cpu", "--trainer.precision", precision) == 0
        ours, theirs = (load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("cuda", "cpu"))
        for name, weights in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], weights, rtol=0, atol=1e-5)


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
