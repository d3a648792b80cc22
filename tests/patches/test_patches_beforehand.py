"""Maps that the loader makes of the labels: what the loss would have made, at the voxels of the batch."""

import pickle

import numpy as np
import pytest
import torch
from support.rehearsal import CELLS, CHANNELS, crops, example, value_and_gradient
from support.toys import write_toy_dataset

from medseg.losses import build_loss
from medseg.patches.batch import Batch, augmented, with_maps
from medseg.patches.datamodule import VolumesDataModule
from medseg.store.prepare import prepare
from medseg.training.loss import judge, nearest_labels

MADE = {"skeleton_recall", "dice_ce_skeleton_recall", "blob", "cc_dice_ce", "unet_weighted_cross_entropy"}


@pytest.mark.parametrize("mode", CHANNELS)
def test_the_losses_that_ask_for_maps_are_found_by_a_try(mode):
    asking = {name for name, of in CELLS if of == mode and build_loss(name, mode=mode).wishes(CHANNELS[mode])}
    assert asking == {name for name in MADE if (name, mode) in CELLS}


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(("name", "mode"), [cell for cell in CELLS if cell[0] in MADE])
def test_a_loss_is_the_same_with_maps_made_beforehand(name, mode, weighed):
    """To the last digit; what goes to another process finds itself by name."""
    logits, target, spacing_mm = example(mode)
    loss = build_loss(name, mode=mode, ignore_index=-1)
    options = {"class_mask": torch.ones(logits.shape[:2])}
    if weighed:
        options["voxel_weight"] = torch.rand(2, *logits.shape[2:]).round()
        options["class_mask"][0, -1] = 0

    def given(**more):
        return value_and_gradient(lambda *three: loss(*three, **options, **more), logits, target, spacing_mm)

    wishes = pickle.loads(pickle.dumps(loss.wishes(logits.shape[1])))
    maps = pickle.loads(pickle.dumps(wishes.granted(target, spacing_mm, **options)))
    counted = sum(each.numel() * each.element_size() for each in maps.values())
    assert counted == wishes.bytes_per_voxel * 2 * logits[0, 0].numel()
    with pytest.MonkeyPatch.context() as patch:
        for wish in maps:
            patch.setattr(wish.map, "make", None)  # nothing is made any more
        found = given(beforehand=maps)
    torch.testing.assert_close(found, given(), rtol=0, atol=0)


@pytest.mark.parametrize("number", range(3))
def test_labels_that_are_moved_by_the_loader_are_those_of_the_device(number):
    batch, geometry, nearest = crops("full", number)
    batch = batch._replace(class_mask=torch.tensor([[True, True, False], [True, False, True]]))
    copied = batch._replace(image=tuple(image.clone() for image in batch.image))
    wishes = build_loss("skeleton_recall + blob", ignore_index=-1).wishes(3)
    moved = with_maps(copied, geometry, wishes, None, nearest=nearest)
    found, expected = (augmented(one, geometry, nearest=nearest) for one in (moved, batch))
    for one, other in zip(found[:5], expected[:5], strict=True):
        assert one == other if isinstance(one, tuple) else torch.equal(one, other)
    again = wishes.granted(found.labels, found.spacing_mm, class_mask=found.class_mask)
    assert found.beforehand.keys() == again.keys()
    assert all(torch.equal(found.beforehand[wish], again[wish]) for wish in again)


@pytest.mark.slow
def test_workers_make_the_maps_and_coarser_levels_read_them_as_they_read_labels(tmp_path):
    store = prepare(write_toy_dataset(tmp_path / "data"), tmp_path / "store", workers=1).path
    loss = build_loss("dice + skeleton_recall + blob", ignore_index=-1)
    batches = []
    for workers in (0, 1):
        data = VolumesDataModule(store, folds=2, batch_size=2, workers=workers, steps_per_epoch=1, augmentation="full")
        data.wishes = loss.wishes(data.plan.num_classes)
        batches += [data.on_after_batch_transfer(one, 0) for one in data.train_dataloader()]
    here, there = batches
    assert torch.equal(here.labels, there.labels)
    assert all(torch.equal(here.beforehand[wish], there.beforehand[wish]) for wish in here.beforehand)
    space = here.labels.shape[1:]
    outputs = tuple(torch.zeros(2, 3, *(size // step for size in space)).requires_grad_() for step in (1, 2, 4))
    value = judge(loss, outputs, here, None)
    value.backward()
    tube = here.beforehand[next(wish for wish in here.beforehand if "tubes" in wish.map.__name__)]
    assert tube.any()
    coarse = nearest_labels(tube, outputs[1].shape[2:])
    assert coarse.shape == (2, 1, *outputs[1].shape[2:])
    assert np.isfinite(value.item())
    assert all(output.grad.isfinite().all() for output in outputs)
    assert isinstance(here, Batch)
