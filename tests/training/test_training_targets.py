"""The mean of raters and weights of voxels in a training: on CUDA as on the CPU, and refused without meaning."""

import json
import warnings

import pytest
import torch
from monai.losses import DiceCELoss
from support.dialects import write_rated
from support.rehearsal import crops as rehearsed
from support.shadow_cuda import CUDA, shadow_cuda, to_host
from support.shadow_rules import LEDGER
from torch import nn

from medseg.cli import main
from medseg.errors import UsageError
from medseg.losses import build_loss
from medseg.patches.batch import augmented
from medseg.store.prepare import prepare
from medseg.training.loss import OwnLoss, judge, require_targets
from medseg.training.task import SegmentationTask


@pytest.fixture(scope="module")
def rated_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    return prepare(write_rated(folder / "data", "folders", "mean"), folder / "store", workers=1).path


@pytest.mark.parametrize("number", range(2))
def test_raters_and_weights_are_moved_and_judged_on_cuda_as_on_the_cpu_without_a_wait(number):
    crops, geometry, nearest = rehearsed("full", number)
    crops = crops._replace(
        image=tuple(torch.cat([one, one.abs()]) for one in crops.image),
        labels=tuple(torch.stack([one, one, one.roll(2, 1)]) for one in crops.labels),
        class_mask=None,
        draw=crops.draw,
        weighted=True,
    )
    loss = build_loss("dice(soft_target=True) + cross_entropy", ignore_index=-1)
    loss.looks = False
    logits = torch.randn(2, 3, *geometry.patch_size, generator=torch.Generator().manual_seed(0))
    expected = augmented(crops._replace(image=tuple(one.clone() for one in crops.image)), geometry, nearest=nearest)
    with shadow_cuda() as ledger:
        image, labels = ([one.to(CUDA) for one in several] for several in (crops.image, crops.labels))
        there, batch = logits.to(CUDA), expected._replace(
            image=expected.image.to(CUDA), labels=expected.labels.to(CUDA),
            weight=expected.weight.to(CUDA), raters=expected.raters.to(CUDA),
        )  # fmt: skip
        ledger.clear()
        found = augmented(crops._replace(image=image, labels=labels), geometry, nearest=nearest)
        value = judge(loss, there, batch, None)
        assert ledger.total() == 0, str(ledger)
    weight, raters, value = to_host((found.weight, found.raters, value))
    torch.testing.assert_close(weight, expected.weight, rtol=0, atol=5e-3)
    assert (raters != expected.raters).float().mean() < 1e-3
    torch.testing.assert_close(value, judge(loss, logits, expected, None), rtol=1e-5, atol=1e-6)


def test_a_whole_fit_on_raters_and_weights_waits_for_a_gpu_once_a_step(rated_store, tmp_path, monkeypatch):
    steps = []

    def note(task, *given):
        steps.append(dict(LEDGER.waits))
        LEDGER.clear()

    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", note)
    config = {
        "data": {"store": str(rated_store), "workers": 0, "steps_per_epoch": 4, "folds": 2, "augmentation": "full"},
        "model": {"net_options": {"features": [4, 8]}, "deep_supervision": True, "loss": "focal + dice_squared"},
        "trainer": {"accelerator": "gpu", "devices": 1, "max_steps": 4, "precision": 32, "gradient_clip_val": 12.0,
                    "enable_progress_bar": False, "num_sanity_val_steps": 0},
    }  # fmt: skip
    (tmp_path / "my.yaml").write_text(json.dumps(config))
    with warnings.catch_warnings(), shadow_cuda(pinned=True):
        warnings.simplefilter("ignore")  # Lightning's and torch's, of a card that they do not find
        assert main(["fit", "--config", str(tmp_path / "my.yaml"), "--run", str(tmp_path / "run")]) == 0
    assert len(steps) == 4
    assert all(sum(step.values()) <= 1 for step in steps[1:-1]), steps  # the first looks at labels and logits


class Data:
    def __init__(self, *, soft, weighted):
        self.targets = soft, weighted


def test_a_loss_that_cannot_take_such_targets_is_refused():
    own, hard, soft = (
        OwnLoss(lambda logits, target: logits.sum()),
        build_loss("dice"),
        build_loss("dice_squared + bce", "multilabel"),
    )
    for loss in (own, hard, soft):
        require_targets(Data(soft=False, weighted=False), loss)
        require_targets(None, loss)
    for loss in (hard, soft):
        require_targets(Data(soft=False, weighted=True), loss)
    require_targets(Data(soft=True, weighted=True), soft)
    for data, loss, sentence in (
        (Data(soft=True, weighted=False), hard, "no meaning for fractions"),
        (Data(soft=True, weighted=False), own, "no mean of raters"),
        (Data(soft=False, weighted=True), own, "is not told"),
    ):
        with pytest.raises(UsageError, match=sentence):
            require_targets(data, loss)


def test_a_loss_of_ones_own_gets_labels_as_torch_wants_them():
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4), dtype=torch.int16)
    expected = nn.functional.cross_entropy(logits, labels.long())
    assert torch.equal(OwnLoss(nn.CrossEntropyLoss())(logits, labels), expected)
    maps = (logits > 0).to(torch.int8)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, maps.float())
    assert torch.equal(OwnLoss(nn.BCEWithLogitsLoss())(logits, maps), expected)


@pytest.mark.parametrize("loss", [DiceCELoss(to_onehot_y=True, softmax=True), nn.CrossEntropyLoss()])
def test_a_loss_of_ones_own_that_takes_other_arguments_is_answered_in_a_sentence(loss):
    labels = torch.full((1, 4, 4, 4), -1, dtype=torch.int16)
    with pytest.raises(UsageError, match=r"Loss does not take logits \(1, 3, 4, 4, 4\) .* want labels\[:, None\]"):
        OwnLoss(loss)(torch.randn(1, 3, 4, 4, 4), labels)
