"""Regions that overlap, written as values and read back: a voxel lies in those that it was found in."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.prediction import REGIONS, predictor

from medseg.export.transforms import _painted
from medseg.metrics.overlap import count_labels, count_masks, dice
from medseg.segmenter import Canvas, Segmenter
from medseg.space.labels import Painting, overlap, paint_order
from medseg.space.volume import Volume

some_regions = st.lists(
    st.sets(st.integers(1, 6), min_size=1).map(lambda values: tuple(sorted(values))),
    min_size=2,
    max_size=5,
    unique=True,
)


def plan_of(regions, order=None):
    labels = {f"region {index}": values for index, values in enumerate(regions)}
    return replace(REGIONS, labels=labels, paint_order=order)


@given(regions=some_regions, seed=st.integers(0, 99))
def test_what_a_value_can_tell_is_written_and_read_without_loss(regions, seed):
    """From the truth to masks, painted by the canvas, to masks again."""
    painting = Painting(tuple(regions), paint_order(regions))
    truth = torch.from_numpy(np.random.default_rng(seed).integers(0, 7, (4, 4, 4)))
    masks = [torch.isin(truth, torch.tensor(values)) for values in regions]
    canvas = Canvas(painting, torch.zeros(truth.shape, dtype=torch.int32))
    for index, mask in enumerate(masks):
        canvas.add(index, ..., mask)
    written = canvas.finished()
    for values, mask in zip(regions, masks, strict=True):
        assert torch.equal(torch.isin(written, torch.tensor(values)), mask)


@given(regions=some_regions, data=st.data())
def test_the_canvas_the_bundle_and_the_table_name_a_set_alike(regions, data):
    painting = Painting(tuple(regions), tuple(data.draw(st.sampled_from(values)) for values in regions))
    sets = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=len(regions), max_size=len(regions)), min_size=1, max_size=9)
        )
    )
    canvas = Canvas(painting, torch.zeros(len(sets), dtype=torch.int32))
    for index in range(len(regions)):
        canvas.add(index, ..., sets[:, index])
    expected = [painting.value(np.flatnonzero(members).tolist()) for members in sets]
    assert canvas.finished().tolist() == expected
    (step,) = _painted(painting)
    names = {"functools": functools, "itertools": itertools, "torch": torch}  # what a bundle's config imports
    logits = (sets.T.float() - 0.5)[:, :, None, None]
    assert eval(step["func"].removeprefix("$"), names)(logits)[0, :, 0, 0].tolist() == expected


@given(regions=some_regions)
def test_the_order_of_nnunet_is_kept_where_it_says_which_regions_are_meant(regions):
    """Nested regions, for which painting suffices: every set has the value that nnU-Net gives it."""
    nested = [tuple(sorted(set().union(*regions[index:]))) for index in range(len(regions))]
    assume(len(set(nested)) == len(nested))
    order = paint_order(nested)
    painting = Painting(tuple(nested), order)
    assert not painting.exact
    for last in range(len(nested)):
        assert painting.value(range(last + 1)) == order[last]
        assert painting.value([last]) == order[last], "a set that no value tells is painted, too"


THREE = ((1, 2, 4, 7), (2, 3, 6, 7), (4, 6, 5, 7))  # three circles, of which each two and all three overlap


def test_three_overlapping_regions_by_hand():
    painting = Painting(THREE, (1, 3, 5))
    every = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert [painting.value(members) for members in every] == [1, 3, 5, 2, 4, 6, 7]
    assert [painting.within(members) for members in ((0, 1), (), (1, 2))] == [2, 0, 6]


@pytest.mark.parametrize("order", [None, (1, 3, 5), (2, 6, 7)])
def test_validation_prediction_and_evaluation_count_the_same_voxels(order):
    """Of one network: the masks that validation counts are those that evaluation reads from the written file."""
    plan = replace(plan_of(THREE, order), ignore=9, spacing_mm=(1.0, 1.0, 1.0))
    made = predictor(plan, slopes=[1.0, -1.0, 0.5], offsets=[-1.0, 1.5, 0.0])
    image = Volume(np.random.default_rng(0).normal(1, 1, (1, 8, 8, 8)).astype(np.float32), np.eye(4))
    truth = torch.from_numpy(np.random.default_rng(1).integers(0, 8, (8, 8, 8)))
    truth[:2] = 9
    written = torch.from_numpy(made.predict(image).astype(np.int64))
    segmenter: Segmenter = made.segmenters[0]
    masks = segmenter.decide(segmenter.net(torch.from_numpy(image.array)[None]))[0]
    validated = count_masks(masks, truth, plan.labels, ignore=9)
    evaluated = count_labels(written, truth, plan.labels, ignore=9)
    assert validated == evaluated
    assert all(0 < dice(counts) < 1 for counts in evaluated.values())


def test_regions_without_an_order_are_written_with_values_that_the_files_know():
    plan = plan_of(((11, 12), (12, 13)))
    assert overlap(plan.labels.values())
    assert set(plan.painted.values()) <= {11, 12, 13}
    assert predictor(plan).predict(Volume(np.full((1, 8, 8, 8), 5.0, np.float32), np.eye(4))).max() == 12


def test_an_exclusive_organ_of_several_values_keeps_the_one_that_the_order_names():
    plan = replace(REGIONS, labels={"tumour": (1, 4), "rest": 2}, paint_order=(4, 2))
    assert plan.painted == {"tumour": 4, "rest": 2}
    assert replace(plan, paint_order=None).painted == {"tumour": 1, "rest": 2}
