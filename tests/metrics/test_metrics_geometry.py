"""Volumes and distances where voxels are sheared, images have one slice, or label values are large."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from support.toys import write_nifti

from medseg.datasets.matching import Pair
from medseg.errors import DataError
from medseg.metrics.cases import score_case
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.metrics.overlap import count_labels
from medseg.report.scoring import Scoring, score_pair
from medseg.space.distance import surface

GANTRY = np.array([[1.0, 0, 0], [0, 1.0, 3 * np.tan(np.radians(25))], [0, 0, 3.0]])


def two_balls(shape=(16, 15, 9)) -> tuple[np.ndarray, np.ndarray]:
    i, j, k = np.indices(shape)
    ball = (i - 7) ** 2 + (j - 7) ** 2 + 3 * (k - 4) ** 2 < 25
    return ball.astype(np.uint8), np.roll(ball, (2, 1, 1), (0, 1, 2)).astype(np.uint8)


def test_sheared_voxels_are_measured_where_they_lie():
    prediction, reference = two_balls()
    scores = score_case(prediction, reference, {"ball": 1}, spacing_mm=GANTRY)["ball"]
    ours, theirs = (np.argwhere(surface(mask > 0)) @ GANTRY.T for mask in (prediction, reference))
    apart = cdist(ours, theirs)
    there, back = apart.min(axis=1), apart.min(axis=0)
    both = np.concatenate([there, back])
    assert scores.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert scores.hd_mm == pytest.approx(both.max())
    assert scores.assd_mm == pytest.approx(both.mean())
    assert scores.nsd == pytest.approx((both <= DEFAULT_TOLERANCE_MM).mean())
    assert scores.volume_ml == pytest.approx(prediction.sum() * 3 / 1000)  # the base times the height


def test_a_turned_grid_measures_as_its_edges_do():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    edges = (1.0, 2.0, 3.5)
    by_matrix, by_edges = (score_case(*two_balls(), {"a": 1}, spacing_mm=s)["a"] for s in (turn * edges, edges))
    for name, value in by_edges.values.items():
        assert by_matrix.values[name] == pytest.approx(value), name


def test_areas_of_sheared_voxels_are_refused(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = GANTRY
    files = [
        write_nifti(tmp_path / name / "a.nii.gz", mask, affine) for name, mask in zip("pr", two_balls(), strict=True)
    ]
    pair = Pair("a", *files)
    assert score_pair(pair, Scoring({"ball": 1})).rows[0].scores.volume_ml == pytest.approx(two_balls()[0].sum() * 3e-3)
    with pytest.raises(DataError, match=r"cannot be scored: the areas .*\. Measure between"):
        score_pair(pair, Scoring({"ball": 1}, element="areas"))
    with pytest.raises(ValueError, match="square voxels only"):
        score_case(*two_balls(), {"ball": 1}, spacing_mm=GANTRY, element="areas")


@pytest.mark.parametrize("element", ["voxels", "areas"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_scored_by_its_outlines(axis, element):
    prediction, reference = (mask[:, :, 4] for mask in two_balls())
    edges = [1.5, 2.0]
    flat = score_case(prediction, reference, {"a": 1}, spacing_mm=edges, element=element)["a"].values
    edges.insert(axis, 8.0)
    masks = [np.expand_dims(mask, axis) for mask in (prediction, reference)]
    scores = score_case(*masks, {"a": 1}, spacing_mm=edges, element=element)["a"].values
    for name in ("dice", "hd95_mm", "hd_mm", "nsd", "assd_mm", "lesion_f1"):
        assert scores[name] == pytest.approx(flat[name]), name
    assert scores["volume_ml"] == pytest.approx(prediction.sum() * 24 / 1000)


def test_one_slice_of_a_sheared_grid():
    masks = [mask[:, :, 4:5] for mask in two_balls()]
    sheared = np.array([[1.0, 0.4, 0], [0, 1.0, 0], [0, 0, 5.0]])
    flat = score_case(*(mask[:, :, 0] for mask in masks), {"a": 1}, spacing_mm=sheared[:2, :2])["a"]
    assert score_case(*masks, {"a": 1}, spacing_mm=sheared)["a"].hd95_mm == pytest.approx(flat.hd95_mm)


LARGE = {"cortex": 614454277, "thalamus": 312782546, "both": (614454277, 312782546), "background": 0}


def test_large_values_count_as_small_ones_do_and_take_no_memory():
    rng = np.random.default_rng(1)
    small = {"cortex": 2, "thalamus": 1, "both": (1, 2), "background": 0}
    maps = [rng.integers(0, 4, (12, 11, 10)) for _ in range(2)]
    table = np.array([0, 312782546, 614454277, 99])
    expected = count_labels(*map(torch.from_numpy, maps), small)
    scores = score_case(*maps, small, spacing_mm=(1.0, 1.0, 1.0))
    tracemalloc.start()
    try:
        assert count_labels(*(torch.from_numpy(table[one]) for one in maps), LARGE) == expected
        assert score_case(*(table[one] for one in maps), LARGE, spacing_mm=(1.0, 1.0, 1.0)) == scores
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stray", [-(2**31), 2**31 - 1, 3])
def test_a_stray_value_fails_its_own_case_in_one_sentence(stray, tmp_path):
    labels = two_balls()[0].astype(np.int32)
    reference = write_nifti(tmp_path / "r/a.nii.gz", labels, np.eye(4))
    labels[0, 0, 0] = stray
    prediction = write_nifti(tmp_path / "p/a.nii.gz", labels, np.eye(4))
    with pytest.raises(DataError, match=f"holds 1 voxel with 1 value that no label names: {stray}"):
        score_pair(Pair("a", prediction, reference), Scoring({"ball": 1}))
