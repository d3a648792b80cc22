"""Where peers and medseg differ, and why: empty organs, and deepmind's surface elements."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric

from medseg.metrics import average_distance_mm, hausdorff_mm, score_case, surface_dice, surface_distances

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
def test_deepminds_area_weighted_measures_lie_within_a_voxel(spacing_mm):
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
