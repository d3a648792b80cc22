"""Where peers and medseg differ, and why: empty organs, and deepmind's surface elements."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from support import examples

from medseg.metrics import (
    average_distance_mm,
    element_distances,
    hausdorff_mm,
    score_case,
    surface_dice,
    surface_distances,
)

needs_deepmind = pytest.mark.skipif(
    importlib.util.find_spec("surface_distance") is None, reason="surface-distance is not installed"
)
ORGAN, NOTHING = np.zeros((2, 8, 8, 8), dtype=np.uint8)
ORGAN[2:6, 2:6, 2:6] = 1


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


@needs_deepmind
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it imports scipy.ndimage.filters
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5)])
def test_surface_voxels_lie_within_a_voxel_of_deepminds_surface_elements(spacing_mm):
    from surface_distance import metrics as deepmind

    one, other = ball((40, 40, 30), (18, 20, 15), 11), ball((40, 40, 30), (21, 19, 14), 10)
    theirs = deepmind.compute_surface_distances(one, other, spacing_mm)
    ours = surface_distances(one, other, spacing_mm=spacing_mm)
    voxel_mm = math.hypot(*spacing_mm)
    assert abs(hausdorff_mm(ours, percentile=95.0) - deepmind.compute_robust_hausdorff(theirs, 95)) < voxel_mm
    assert abs(hausdorff_mm(ours) - deepmind.compute_robust_hausdorff(theirs, 100)) < voxel_mm
    forth, back = deepmind.compute_average_surface_distance(theirs)
    assert abs(average_distance_mm(ours) - (forth + back) / 2) < voxel_mm / 2
    nsd = deepmind.compute_surface_dice_at_tolerance(theirs, 2.0)
    assert surface_dice(ours, tolerance_mm=2.0) == pytest.approx(nsd, abs=0.15)


@needs_deepmind
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@examples(30)
@given(st.tuples(*[st.integers(2, 7)] * 3), st.integers(0, 2**32), st.tuples(*[st.floats(0.3, 6.0)] * 3))
def test_surface_elements_are_deepminds(shape, seed, spacing_mm):
    from surface_distance import metrics as deepmind

    masks = np.random.default_rng(seed).random((2, *shape)) > 0.6
    masks[:, 0, 0, 0] = True  # neither is empty
    theirs = deepmind.compute_surface_distances(*masks, spacing_mm)
    ours = element_distances(*masks, spacing_mm=spacing_mm)
    for percentile in (50.0, 95.0, 100.0):
        expected = deepmind.compute_robust_hausdorff(theirs, percentile)
        assert hausdorff_mm(ours, percentile=percentile) == pytest.approx(expected, rel=1e-6)
    nsd = deepmind.compute_surface_dice_at_tolerance(theirs, 1.234)
    assert surface_dice(ours, tolerance_mm=1.234) == pytest.approx(nsd, abs=1e-6)
    means = [(ways * area).sum() / area.sum() for ways, area in ours.sides]
    assert means == pytest.approx(deepmind.compute_average_surface_distance(theirs), rel=1e-6)


def test_the_kind_of_surface_is_chosen_per_case():
    moved = np.roll(ORGAN, 1, axis=0)
    by_voxels, by_areas = (
        score_case(moved, ORGAN, {"organ": 1}, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=0.5, element=element)["organ"]
        for element in ("voxels", "areas")
    )
    assert by_voxels.dice == by_areas.dice
    assert by_voxels.nsd != by_areas.nsd
    assert by_voxels.hd_mm == by_areas.hd_mm == 1.0


@pytest.mark.filterwarnings("ignore:.*(all 0|nan/inf).*:UserWarning", "ignore::FutureWarning")
def test_monai_takes_a_missed_organ_for_a_perfect_one_and_medseg_for_the_worst():
    metric = HausdorffDistanceMetric(include_background=True, percentile=95)
    metric(*(torch.from_numpy(labels)[None, None].float() for labels in (NOTHING, ORGAN)))
    assert float(metric.aggregate()) == 0.0  # if this fails MONAI has changed: tell the docs of medseg.metrics.empty
    assert score_case(NOTHING, ORGAN, {"organ": 1}, spacing_mm=(1.0, 1.0, 1.0))["organ"].hd95_mm == math.hypot(8, 8, 8)


def test_monai_leaves_an_invented_organ_out_of_the_mean_and_medseg_counts_it():
    metric = DiceMetric(include_background=True)
    for prediction, reference in ((ORGAN, ORGAN), (ORGAN, NOTHING)):
        metric(*(torch.from_numpy(labels)[None, None].float() for labels in (prediction, reference)))
    assert float(metric.aggregate()) == 1.0
    assert score_case(ORGAN, NOTHING, {"organ": 1}, spacing_mm=(1.0, 1.0, 1.0))["organ"].dice == 0.0


@needs_deepmind
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_deepmind_has_three_answers_for_a_missed_organ_and_medseg_one():
    from surface_distance import metrics as deepmind

    theirs = deepmind.compute_surface_distances(ORGAN.astype(bool), NOTHING.astype(bool), (1.0, 1.0, 1.0))
    assert math.isinf(deepmind.compute_robust_hausdorff(theirs, 95))
    assert any(math.isnan(value) for value in deepmind.compute_average_surface_distance(theirs))
    missed = score_case(NOTHING, ORGAN, {"organ": 1}, spacing_mm=(1.0, 1.0, 1.0))["organ"]
    assert missed.hd_mm == missed.hd95_mm == missed.assd_mm == math.hypot(8, 8, 8)
    assert missed.nsd == 0.0
