"""Raters and weights on their way from the store to a loss: at the voxels of the image, and counted as they should."""

import math

import numpy as np
import pytest
import torch
from support.dialects import CASES, rated, write_rated
from support.rehearsal import crops as rehearsed

from medseg.losses import build_loss
from medseg.patches.batch import augmented
from medseg.patches.cutting import Layers
from medseg.patches.datamodule import VolumesDataModule
from medseg.patches.shared import CAN_SHARE, SharedVolumes
from medseg.store.prepare import prepare
from medseg.store.store import Store
from medseg.training.loss import judge, mean_of, nearest_labels


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The toy, drawn by three, of whom one is beside the others; the first case without weights."""
    folder = tmp_path_factory.mktemp("rated")
    return prepare(write_rated(folder / "data", "folders", "mean"), folder / "store", workers=1).path


def heavier(preset="full", number=1, *, raters=3):
    """Training crops whose weight is a copy of the image, and whose raters drew what the labels say."""
    crops, geometry, nearest = rehearsed(preset, number)
    image = tuple(torch.cat([one, one]) for one in crops.image)
    labels = tuple(torch.stack([one] * (1 + raters)) for one in crops.labels)
    return crops, crops._replace(image=image, labels=labels, weighted=True), geometry, nearest


@pytest.mark.parametrize("number", range(3))
def test_weights_and_raters_move_with_image_and_labels_and_keep_their_numbers(number):
    plain, heavy, geometry, nearest = heavier(number=number)
    expected, found = (augmented(crops, geometry, nearest=nearest) for crops in (plain, heavy))
    torch.testing.assert_close(found.image, expected.image, rtol=0, atol=0)
    torch.testing.assert_close(found.labels, expected.labels, rtol=0, atol=0)
    assert found.raters.shape[1] == 3
    assert all(torch.equal(rater, expected.labels) for rater in found.raters.unbind(1))
    quiet = plain._replace(
        draw=plain.draw._replace(changes=[()] * 2) if hasattr(plain.draw, "_replace") else _calm(plain.draw)
    )
    torch.testing.assert_close(found.weight, augmented(quiet, geometry, nearest=nearest).image[:, 0], rtol=0, atol=0)


def _calm(drawn):
    """The same moves, and no change of intensities."""
    from dataclasses import replace

    return replace(drawn, changes=tuple(() for _ in drawn.changes))


def test_the_store_keeps_raters_and_weights_on_the_grid_of_the_labels(store):
    opened = Store(store)
    for case, index in CASES.items():
        info, labels = opened.info(case), np.asarray(opened.labels(case)[:])
        raters = np.asarray(opened.raters(case)[:])
        assert raters.shape == (3, *labels.shape)
        np.testing.assert_array_equal(raters[0], labels)
        np.testing.assert_array_equal(raters[2], labels)
        assert (raters[1] != labels).any()
        assert info.weighted == (index > 0)
        if index:
            _, _, weight = rated(index)
            kept = np.asarray(opened.weight(case)[:])
            assert 0 == kept.min() < kept.max() == pytest.approx(2.5, rel=1e-3)
            assert kept.mean() == pytest.approx(weight.mean(), rel=0.1)


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_a_batch_has_the_weights_and_raters_of_its_cases(store, cache):
    data = VolumesDataModule(
        store,
        folds=2,
        batch_size=2,
        patch_size=(24, 24, 16),
        workers=0,
        augmentation="none",
        cache=cache,
        steps_per_epoch=4,
    )
    assert data.targets == (True, True)
    seen = set()
    for crops in data.train_dataloader():
        batch = data.on_after_batch_transfer(crops, 0)
        assert batch.image.shape[1] == 1
        assert batch.raters.shape == (2, 3, *batch.labels.shape[1:])
        assert torch.equal(batch.raters[:, 0], batch.labels)
        for case, weight, labels in zip(batch.id, batch.weight, batch.labels, strict=True):
            inside = weight[labels >= 0]
            assert (inside == 1).all() if case == "toy_0" else inside.max() > 1
            seen.add(case)
    assert len(seen) == 2
    for whole in data.val_dataloader():
        assert whole.image.shape[1] == 1
        assert whole.labels.ndim == 4
        assert whole.raters is None


def test_layers_are_read_as_one_array():
    rng = np.random.default_rng(0)
    parts = rng.random((2, 5, 4, 3)), rng.random((5, 4, 3)), rng.random((1, 5, 4, 3))
    whole = np.concatenate([part.reshape(-1, 5, 4, 3) for part in parts])
    layers = Layers(parts)
    assert layers.shape == whole.shape
    where = (slice(None), slice(1, 4), slice(2), slice(None))
    np.testing.assert_array_equal(layers[where], whole[where])


@pytest.mark.skipif(not CAN_SHARE, reason="this system has no memory without a name")
def test_shared_memory_has_room_for_all_channels_and_maps():
    shapes = {"a": (3, 4, 5), "b": (2, 2, 2)}
    shared = SharedVolumes.make(shapes, 2, 3)
    for case, shape in shapes.items():
        full = (
            np.random.default_rng(1).random((2, *shape), np.float32),
            np.arange(3 * math.prod(shape)).reshape(3, *shape),
        )
        for found, expected in zip(shared.arrays(case, lambda full=full: full), full, strict=True):
            np.testing.assert_array_equal(found, expected)


def batch_and_logits():
    _, heavy, geometry, nearest = heavier("none")
    batch = augmented(heavy, geometry, nearest=nearest)
    generator = torch.Generator().manual_seed(3)
    return batch, torch.randn(2, 3, *batch.labels.shape[1:], generator=generator)


@pytest.mark.parametrize("expression", ["dice", "cross_entropy", "focal", "tversky", "dice + cross_entropy"])
def test_a_voxel_of_weight_0_counts_as_an_ignored_one_and_2_as_two(expression):
    batch, logits = batch_and_logits()
    loss = build_loss(expression, ignore_index=-1)
    batch = batch._replace(raters=None, class_mask=None)
    out = torch.rand(batch.labels.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    ignored = judge(loss, logits, batch._replace(weight=None, labels=batch.labels.masked_fill(out, -1)), None)
    weighed = judge(loss, logits, batch._replace(weight=(~out).float()), None)
    doubled = judge(loss, logits, batch._replace(weight=(~out).float() * 2), None)
    torch.testing.assert_close(weighed, ignored)
    torch.testing.assert_close(doubled, ignored, rtol=1e-3, atol=1e-4)  # but for what keeps a ratio from 0 / 0
    assert not torch.isclose(judge(loss, logits, batch._replace(weight=None), None), ignored)


@pytest.mark.parametrize("expression", ["cross_entropy", "dice(soft_target=True)", "focal"])
def test_raters_who_agree_are_one_and_others_a_mean(expression):
    batch, logits = batch_and_logits()
    loss = build_loss(expression, ignore_index=-1)
    batch = batch._replace(weight=None, class_mask=None)
    hard = judge(loss, logits, batch._replace(raters=None), None)
    torch.testing.assert_close(judge(loss, logits, batch, None), hard)
    other = batch.labels.roll(3, 1)
    two = batch._replace(raters=torch.stack([batch.labels, other], 1))
    if expression == "cross_entropy":  # linear in the target: the mean of both, where both count
        known = (batch.labels >= 0) & (other >= 0)
        parts = [judge(loss, logits, batch._replace(raters=None, labels=one.masked_fill(~known, -1)), None)
                 for one in (batch.labels, other)]  # fmt: skip
        both = two._replace(raters=two.raters.masked_fill(~known[:, None], -1))
        torch.testing.assert_close(judge(loss, logits, both, None), sum(parts) / 2)
    for looks in (True, False):
        loss.looks = looks
        value = judge(loss, logits, two, None)
        assert value.isfinite()
        assert not torch.isclose(value, hard)


def test_the_mean_of_regions_is_that_of_each_region():
    membership = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    raters = torch.tensor([[[[1, 2, -1, 0]], [[2, -1, -1, 0]]]])[:, :, None]
    shares = mean_of(raters, membership, classes=2)
    assert shares[0, :, 0, 0].tolist() == [[1.0, 1.0, -1.0, 0.0], [0.5, 1.0, -1.0, 0.0]]
    assert nearest_labels(raters, torch.Size([1, 1, 2])).shape == (1, 2, 1, 1, 2)
