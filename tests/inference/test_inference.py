"""Back to the image's grid slab by slab: the labels of the plain path, wherever the image lies."""

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.grids import probabilities_from_plan_grid, sliding_window
from support.prediction import PLAN, REGIONS, Brightness, affines, predictor, random_affine, smooth

from medseg.errors import UsageError
from medseg.inference.library import predict
from medseg.inference.predict import Predictor, Prepared
from medseg.inference.restore import restore
from medseg.plan.grid import to_plan_grid
from medseg.segmenter import HALF_BEYOND_BYTES, sweep_of
from medseg.space.volume import Volume

shapes = st.tuples(*[st.integers(3, 21)] * 3)


@examples(40)
@given(shape=shapes, affine=affines, seed=st.integers(0, 99), regions=st.booleans(), through=st.booleans())
def test_slabs_give_the_labels_of_the_plain_path(shape, affine, seed, regions, through):
    plan = REGIONS if regions else PLAN
    if through:
        plan = replace(plan, spacing_mm=(1.0, 1.0, 5.0))
    image = Volume(smooth(shape, seed), affine)
    made = predictor(plan)
    prepared, change = to_plan_grid(image, plan)
    scores = sliding_window(torch.from_numpy(prepared)[None], plan.patch_size, made.segmenters[0])[0].numpy()
    found = made.segment(Prepared(prepared, change))
    if regions:
        first, second = probabilities_from_plan_grid(scores, change)
        inside = probabilities_from_plan_grid(np.ones_like(scores[:1]), change)[0] > 0
        expected = np.where((second > 0) & inside, 5, np.where((first > 0) & inside, 1, 0))
        margin = np.minimum(abs(first), abs(second))
    else:
        returned = probabilities_from_plan_grid(scores, change)
        expected = np.array([0, 1, 5])[returned.argmax(axis=0)]
        ordered = np.sort(returned, axis=0)
        margin = ordered[-1] - ordered[-2]
    assert found.shape == image.shape
    clear = margin > 1e-4  # closer than that, the rounding of two orders of summation decides
    np.testing.assert_array_equal(found[clear], expected[clear])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 3, 50])
def test_any_cutting_into_slabs_gives_the_same(axis, step):
    image = Volume(smooth((17, 11, 14), 3), np.diag([-0.7, 1.1, 2.0, 1.0]))
    prepared, change = to_plan_grid(image, PLAN)
    scores = Brightness([0.0, 1.0, 2.0], [0.0, -1.0, -3.0])(torch.from_numpy(prepared)[None])[0]
    count = scores.shape[axis + 1]
    slabs = [
        (slice(at, min(at + step, count)), scores.narrow(axis + 1, at, min(step, count - at)))
        for at in range(0, count, step)
    ]
    whole = restore([(slice(0, scores.shape[1]), scores)], change, PLAN)
    assert set(np.unique(whole)) == {0, 1, 5}
    np.testing.assert_array_equal(restore(slabs, change, PLAN, axis=axis), whole)


@examples(60)
@given(shape=shapes, affine=affines, seed=st.integers(0, 99))
def test_a_prediction_lies_voxel_by_voxel_on_its_image(shape, affine, seed):
    """With the image's own spacing nothing is interpolated, so thresholding the image is what must come out."""
    image = Volume(smooth(shape, seed), affine)
    codes = image.orientation
    spacing = Volume(image.array, affine).reoriented("RAS").spacing_mm
    found = predictor(replace(PLAN, spacing_mm=spacing)).predict(image)
    voxels = image.array[0]
    expected = np.select([voxels > 2, voxels > 1], [5, 1], 0)
    clear = (abs(voxels - 2) > 1e-3) & (abs(voxels - 1) > 1e-3)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert codes == image.orientation


def test_an_ensemble_averages_probabilities_not_logits():
    offsets = ([0.0, 9.0, 0], [1.5, 0.0, 0])
    tasks = [predictor(slopes=[0.0, 0.0, 0.0], offsets=each).segmenters[0] for each in offsets]
    image = Volume(np.ones((1, 9, 9, 9), np.float32), np.diag([1.5, 1.5, 3.0, 1.0]))
    maps = np.zeros((3, 9, 9, 9), np.float16)
    made = Predictor([*tasks, tasks[1]], device="cpu")
    made.half = None
    labels = made.segment(made.prepare(image), probabilities=maps)
    first, second = (torch.tensor(offsets).softmax(0) for offsets in ([0.0, 9.0, 0.0], [1.5, 0.0, 0.0]))
    np.testing.assert_allclose(maps[:, 4, 4, 4], (first + 2 * second) / 3, atol=1e-3)
    assert set(np.unique(labels)) == {1 if maps[1, 0, 0, 0] > maps[0, 0, 0, 0] else 0}


@pytest.mark.parametrize("plan", [PLAN, REGIONS], ids=["softmax", "sigmoid"])
def test_probabilities_are_those_of_the_head(plan):
    image = Volume(smooth((12, 9, 7), 1), np.diag([1.5, -1.5, 3.0, 1.0]))
    made = predictor(plan)
    maps = np.zeros((plan.num_classes, *image.shape), np.float16)
    labels = made.segment(made.prepare(image), probabilities=maps)
    logits = made.segmenters[0].net(torch.from_numpy(image.array)[None])[0]
    expected = logits.softmax(0) if plan.exclusive else logits.sigmoid()
    np.testing.assert_allclose(maps, expected.numpy(), atol=2e-3)
    assert labels.shape == image.shape


def test_outside_of_the_box_that_is_looked_at_there_is_background():
    image = Volume(np.pad(smooth((8, 8, 4), 1) + 9, [(0, 0), (2, 3), (0, 1), (4, 0)]), np.diag([1.5, 1.5, 3.0, 1.0]))
    made = predictor()
    maps = np.zeros((3, *image.shape), np.float16)
    made.segment(made.prepare(image), probabilities=maps)
    np.testing.assert_allclose(maps.sum(axis=0, dtype=np.float32), 1, atol=2e-3)
    assert maps[:, 0, 0, 0].tolist() == [1, 0, 0]


def test_mirroring_never_crosses_left_and_right():
    """A network that marks where it sees the first axis begin tells whether that axis was ever flipped."""

    class Ramp(torch.nn.Module):
        def forward(self, tiles):
            ramp = torch.arange(tiles.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1).expand_as(tiles)
            return torch.cat([torch.full_like(tiles, 3.4), ramp, torch.full_like(tiles, -99.0)], dim=1)

    image = Volume(np.ones((1, 8, 8, 4), np.float32), np.diag([1.5, 1.5, 3.0, 1.0]))
    for axes, flipped in (((1, 2), False), ((0, 1, 2), True)):
        made = predictor(replace(PLAN, mirror_axes=axes), mirror=True)
        made.segmenters[0] = replace(made.segmenters[0], net=Ramp())
        labels = made.predict(image)
        assert (labels[0] == labels[-1]).all() == flipped


def test_mirroring_across_left_and_right_exchanges_the_pairs_of_the_plan():
    """What a network says of sides in a mirrored tile is true of the other side."""

    class Sides(torch.nn.Module):
        def forward(self, tiles):
            ramp = torch.arange(tiles.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1).expand_as(tiles)
            return torch.cat([torch.full_like(tiles, -99.0), ramp, 7.4 - ramp], dim=1)

    image = Volume(np.ones((1, 8, 8, 4), np.float32), np.diag([1.5, 1.5, 3.0, 1.0]))
    plan = replace(PLAN, labels={"kidney left": 1, "kidney right": 5}, mirror_axes=(0, 1, 2))
    plain, exchanged = (replace(plan, swap_labels=swaps) for swaps in ((), (("kidney left", "kidney right"),)))
    made = predictor(exchanged, mirror=True)
    made.segmenters[0] = replace(made.segmenters[0], net=Sides())
    assert made.predict(image)[:, 0, 0].tolist() == [5, 5, 5, 5, 1, 1, 1, 1]
    maps = np.zeros((3, 8, 8, 4), np.float16)
    made = predictor(plain, mirror=True)
    made.segmenters[0] = replace(made.segmenters[0], net=Sides())
    made.segment(made.prepare(image), probabilities=maps)
    np.testing.assert_allclose(maps[1], maps[1, ::-1], atol=1e-3)  # without them every flip denies the others


def test_a_volume_smaller_than_a_patch():
    image = Volume(np.full((1, 3, 2, 1), 9.0, np.float32), np.eye(4))
    assert predictor().predict(image).tolist() == np.full((3, 2, 1), 5).tolist()


def test_large_sums_are_halved():
    made = predictor(replace(PLAN, labels={f"organ {n}": n for n in range(1, 105)}, patch_size=(128, 128, 128)))
    assert sweep_of((256, 256, 300), made.plan) == (2, torch.float16)
    assert sweep_of((128, 128, 96), made.plan) == (0, torch.float32)
    assert 105 * math.prod((128, 256, 256)) * 2 <= HALF_BEYOND_BYTES


def test_half_precision_sums_give_nearly_the_same_labels(monkeypatch):
    image = Volume(smooth((40, 33, 21), 5), np.diag([1.0, 1.0, 2.0, 1.0]))
    made = predictor()
    whole = made.predict(image)
    monkeypatch.setattr("medseg.segmenter.HALF_BEYOND_BYTES", 0)
    assert (made.predict(image) != whole).mean() < 2e-3


def test_orientation_by_nibabel(tmp_path):
    """The written file, read and turned by nibabel alone, marks the bright corner of the turned image."""
    voxels = np.zeros((9, 10, 11), np.float32)
    voxels[:3, :4, :5] = 9
    affine = random_affine(7, (-1, 1, -1), (2, 0, 1), np.array([1.5, 1.5, 3.0]))
    labels = predictor().predict(Volume(voxels[None], affine))
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels.astype(np.uint8), affine))
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    corner = tuple(round(x) for x in np.argwhere(image.get_fdata() == 9).mean(axis=0))
    assert turned.get_fdata()[corner] == 5


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 5, 6, 7), r"the image has 2 channels, the network was trained on 1 \(CT\)\. Give one of the shape \(m, i"),
        ((6, 7), r"expected an array \(c, i, j, k\) .* got \(6, 7\)"),
    ],
)
def test_an_array_of_another_shape_than_the_network_takes_is_answered_in_a_sentence(shape, sentence):
    with pytest.raises(UsageError, match=sentence):
        predict(np.zeros(shape, np.float32), predictor(), affine=np.eye(4))
