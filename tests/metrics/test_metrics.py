"""Overlap, surfaces, detection and the empty cases, against hand-computed masks, peers and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric, compute_iou
from support import examples

from medseg.metrics import (
    Counts,
    Lesions,
    Outcome,
    average_distance_mm,
    count_labels,
    count_masks,
    dice,
    hausdorff_mm,
    image_diagonal_mm,
    match_lesions,
    score_case,
    surface_dice,
    surface_distances,
)
from medseg.space.distance import euclidean_distance, surface

ORGANS = {"liver": 1, "tumour": 2, "both": (1, 2), "never": 7}
SPACINGS = st.tuples(*[st.floats(0.3, 6.0)] * 3)
SHAPES = st.tuples(*[st.integers(2, 7)] * 3)


def masks(count=1):
    """Random masks of one shape, none of them empty."""
    one = SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * count))
    return one.filter(lambda drawn: all(mask.any() for mask in drawn))


def label_pairs():
    return SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 3))] * 2))


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(3, 1, 1), (0.75, 0.6, 0.75, 0.75)),
        (Counts(1, 0, 3), (0.4, 0.25, 1.0, 0.25)),
        (Counts(0, 2, 2), (0.0, 0.0, 0.0, 0.0)),  # both there, nothing shared
        (Counts(0, 0, 5), (0.0, 0.0, 0.0, 0.0)),  # missed
        (Counts(0, 5, 0), (0.0, 0.0, 0.0, 0.0)),  # invented
        (Counts(0, 0, 0), (1.0, 1.0, 1.0, 1.0)),  # absent on both sides
    ],
)
def test_overlap_of_hand_counted_masks(counts, expected):
    prediction, reference = (np.repeat([1, here, 1 - here, 0], [counts.tp, counts.fp, counts.fn, 1]) for here in (1, 0))
    found = score_case(prediction, reference, {"organ": 1}, spacing_mm=[1.0])["organ"]
    assert (found.dice, found.iou, found.precision, found.recall) == pytest.approx(expected)
    assert dice(counts) == found.dice


@given(label_pairs())
def test_labels_and_masks_are_counted_alike_and_as_a_plain_sum(pair):
    prediction, reference = (torch.from_numpy(part) for part in pair)
    stack = torch.stack([torch.isin(prediction, torch.tensor(value)) for value in ORGANS.values()])
    by_labels = count_labels(prediction, reference, ORGANS)
    assert by_labels == count_masks(stack, reference, ORGANS)
    for name, value in ORGANS.items():
        mine, true = np.isin(pair[0], value), np.isin(pair[1], value)
        plain = Counts(int((mine & true).sum()), int((mine & ~true).sum()), int((~mine & true).sum()))
        assert by_labels[name] == plain


def test_chunks_of_the_joint_histogram_add_up(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    prediction, reference = (torch.randint(0, high, (9, 8, 7), generator=generator) for high in (3, 4))
    whole = count_labels(prediction, reference, ORGANS)
    monkeypatch.setattr("medseg.metrics.overlap._CHUNK_VOXELS", 50)
    assert count_labels(prediction, reference, ORGANS) == whole


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_is_counted(dtype):
    labels = torch.tensor([0, 1, 2, 2], dtype=dtype)
    assert count_labels(labels, labels, {"tumour": 2}) == {"tumour": Counts(2, 0, 0)}


def test_ignored_voxels_count_for_nothing():
    prediction, reference = torch.tensor([1, 1, 0, 1]), torch.tensor([1, -1, -1, 0])
    expected = {"liver": Counts(tp=1, fp=1, fn=0)}
    assert count_labels(prediction, reference, {"liver": 1}, ignore=-1) == expected
    assert count_masks((prediction == 1)[None], reference, {"liver": 1}, ignore=-1) == expected
    scores = score_case(prediction.numpy(), reference.numpy(), {"liver": 1}, spacing_mm=[1.0], ignore=-1)
    assert scores["liver"].dice == dice(expected["liver"])


def test_everything_ignored_is_absent():
    nothing = torch.full((4,), -1)
    counts = count_labels(torch.ones(4, dtype=torch.int64), nothing, {"liver": 1}, ignore=-1)
    assert counts["liver"].outcome is Outcome.ABSENT


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count_labels(torch.zeros(3).int(), torch.zeros(4).int(), ORGANS), r"shape \(4,\).*got \(3,\)"),
        (lambda: count_labels(torch.tensor([-1]), torch.tensor([0]), ORGANS), "negative"),
        (lambda: count_masks(torch.zeros(2, 3).bool(), torch.zeros(3).int(), ORGANS), "expected 4 masks"),
        (lambda: surface_distances(*np.zeros((2, 3), bool), spacing_mm=[1.0]), "empty"),
        (lambda: surface_distances(*np.ones((2, 3), bool), spacing_mm=[1.0, 1.0]), "spacing per axis"),
        (lambda: _score(tolerance_mm={"livr": 1.0}), "livr"),
        (lambda: _score(spacing_mm=[1.0]), "spacing per axis"),
        (lambda: _score(prediction=np.zeros((1, 2, 2), bool)), "expected 4 prediction masks"),
        (lambda: _score(prediction=np.full((2, 2), 0.5)), "expected the prediction as label values.*take the argmax"),
        (lambda: _score(prediction=np.full((2, 2), np.nan)), "expected the prediction as label values"),
        (lambda: _score(prediction=np.full((2, 2), "a")), "expected the prediction as label values"),
        (lambda: _score(prediction=np.full((2, 2), -1)), "0 or more, got a negative one"),
        (lambda: _score(element="faces"), "element is one of voxels, areas, got 'faces'"),
        (lambda: _score(spacing_mm=[1.0, float("nan")]), "a spacing of lengths in mm, got 1, nan"),
        (lambda: _score(spacing_mm=[1.0, -2.0]), "a spacing of lengths in mm, got 1, -2"),
        (lambda: _score(tolerance_mm=-1.0), "tolerance of -1 mm is no length"),
        (lambda: score_case(*np.zeros((2, 0, 3), int), ORGANS, spacing_mm=[1.0, 1.0]), "a volume with voxels"),
        (lambda: score_case(*np.zeros((2, 2, 3), int), {"a": -1}, spacing_mm=[1.0, 1.0]), "0 or more, got -1"),
        (lambda: score_case(*np.zeros((2, 1, 3), bool), {"a": 1}, spacing_mm=[1.0], ignore=2), "leave ignore out"),
    ],
)
def test_misuse_is_answered_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _score(prediction=None, **options):
    labels = np.zeros((2, 2), np.uint8)
    return score_case(
        labels if prediction is None else prediction, labels, ORGANS, **{"spacing_mm": [1.0, 1.0], **options}
    )


@given(masks(2), SPACINGS)
def test_surface_distances_are_those_of_a_distance_map(drawn, spacing_mm):
    prediction, reference = drawn
    found = surface_distances(prediction, reference, spacing_mm=spacing_mm)
    expected = euclidean_distance(surface(reference), spacing_mm)[surface(prediction)]
    np.testing.assert_allclose(found.prediction_to_reference_mm, expected, atol=1e-9)


def test_two_plates_are_as_far_apart_as_drawn():
    one, other = np.zeros((2, 5, 5, 9), dtype=bool)
    one[:, :, 1], other[:, :, 6] = True, True
    surfaces = surface_distances(one, other, spacing_mm=(1.0, 1.0, 0.8))
    assert hausdorff_mm(surfaces) == hausdorff_mm(surfaces, percentile=95.0) == pytest.approx(4.0)
    assert average_distance_mm(surfaces) == pytest.approx(4.0)
    assert surface_dice(surfaces, tolerance_mm=4.0) == 1.0
    assert surface_dice(surfaces, tolerance_mm=3.9) == 0.0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI's own defaults are about to change
@examples(40)
@given(masks(2), SPACINGS, st.floats(0.0, 8.0))
def test_surface_measures_are_monais(drawn, spacing_mm, tolerance_mm):
    prediction, reference = drawn
    surfaces = surface_distances(prediction, reference, spacing_mm=spacing_mm)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in drawn]
    expected = {
        "hd": HausdorffDistanceMetric(include_background=True)(*pair, spacing=list(spacing_mm)),
        "hd95": HausdorffDistanceMetric(include_background=True, percentile=95)(*pair, spacing=list(spacing_mm)),
        "assd": SurfaceDistanceMetric(include_background=True, symmetric=True)(*pair, spacing=list(spacing_mm)),
    }
    found = {
        "hd": hausdorff_mm(surfaces),
        "hd95": hausdorff_mm(surfaces, percentile=95.0),
        "assd": average_distance_mm(surfaces),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4, abs=1e-4)
    distances = np.concatenate([surfaces.prediction_to_reference_mm, surfaces.reference_to_prediction_mm])
    if np.abs(distances - tolerance_mm).min() > 1e-4:  # MONAI rounds to float32 at the tolerance's edge
        nsd = SurfaceDiceMetric(class_thresholds=[tolerance_mm], include_background=True)
        assert surface_dice(surfaces, tolerance_mm=tolerance_mm) == pytest.approx(
            float(nsd(*pair, spacing=list(spacing_mm))), abs=1e-5
        )


@given(masks(2))
def test_iou_is_monais(drawn):
    found = score_case(*(mask[None] for mask in drawn), {"organ": 1}, spacing_mm=(1.0, 1.0, 1.0))["organ"].iou
    prediction, reference = (torch.from_numpy(mask) for mask in drawn)
    expected = compute_iou(prediction[None, None].float(), reference[None, None].float())
    assert found == pytest.approx(float(expected), abs=1e-6)


@given(masks(2), SPACINGS)
def test_distances_are_symmetric(drawn, spacing_mm):
    forth = surface_distances(*drawn, spacing_mm=spacing_mm)
    back = surface_distances(*drawn[::-1], spacing_mm=spacing_mm)
    assert hausdorff_mm(forth, percentile=95.0) == hausdorff_mm(back, percentile=95.0)
    assert average_distance_mm(forth) == pytest.approx(average_distance_mm(back))
    assert surface_dice(forth, tolerance_mm=1.0) == surface_dice(back, tolerance_mm=1.0)


@given(masks(2), SPACINGS, st.floats(0.25, 4.0))
def test_distances_scale_with_the_spacing(drawn, spacing_mm, factor):
    small = surface_distances(*drawn, spacing_mm=spacing_mm)
    large = surface_distances(*drawn, spacing_mm=[factor * step for step in spacing_mm])
    for measure in (hausdorff_mm, average_distance_mm):
        assert measure(large) == pytest.approx(factor * measure(small))


@given(label_pairs(), st.tuples(*[st.integers(0, 3)] * 3))
def test_scores_do_not_change_when_the_patient_moves(pair, shift):
    room = tuple((2 + step, 6 - step) for step in shift)
    here, there = (
        [np.pad(part, [(2, 6)] * 3) for part in pair],
        [np.pad(part, room) for part in pair],
    )
    assert score_case(*here, ORGANS, spacing_mm=(1.0, 1.5, 3.0)) == score_case(
        *there, ORGANS, spacing_mm=(1.0, 1.5, 3.0)
    )


@given(label_pairs(), st.permutations([0, 1, 2]))
def test_scores_do_not_depend_on_the_order_of_axes(pair, order):
    spacing_mm = (1.0, 2.0, 4.0)  # powers of two: sums of squares are exact in any order
    plain = score_case(*pair, ORGANS, spacing_mm=spacing_mm)
    turned = score_case(
        *(np.ascontiguousarray(part.transpose(order)) for part in pair),
        ORGANS,
        spacing_mm=[spacing_mm[i] for i in order],
    )
    for name in ORGANS:
        for measure in ("dice", "hd95_mm", "assd_mm", "nsd", "lesion_f1", "volume_ml"):
            assert getattr(plain[name], measure) == pytest.approx(getattr(turned[name], measure)), (name, measure)


@given(label_pairs())
def test_dice_and_iou_are_two_readings_of_one_number(pair):
    for scores in score_case(*pair, ORGANS, spacing_mm=(1.0, 1.0, 1.0)).values():
        assert scores.iou == pytest.approx(scores.dice / (2 - scores.dice))
        if scores.precision + scores.recall:
            harmonic = 2 * scores.precision * scores.recall / (scores.precision + scores.recall)
            assert scores.dice == pytest.approx(harmonic)


@given(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 3)), SPACINGS)
def test_a_reference_is_perfect_against_itself(labels, spacing_mm):
    for scores in score_case(labels, labels, ORGANS, spacing_mm=spacing_mm).values():
        assert (scores.dice, scores.hd95_mm, scores.nsd, scores.lesion_f1, scores.volume_error_ml) == (1, 0, 1, 1, 0)


def test_no_score_is_ever_nan_and_a_missed_organ_is_the_worst():
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[0, 0, 0] = 1
    far = np.zeros_like(reference)
    far[5, 5, 5] = 1
    spacing_mm = (1.0, 2.0, 3.0)
    nothing = np.zeros_like(reference)
    beside = score_case(far, reference, {"liver": 1}, spacing_mm=spacing_mm)["liver"]
    missed = score_case(nothing, reference, {"liver": 1}, spacing_mm=spacing_mm)["liver"]
    false = score_case(reference, nothing, {"liver": 1}, spacing_mm=spacing_mm)["liver"]
    absent = score_case(nothing, nothing, {"liver": 1}, spacing_mm=spacing_mm)["liver"]
    outcomes = [one.outcome.value for one in (beside, missed, false, absent)]
    assert outcomes == ["missed", "missed", "false", "absent"], "what lies beside it misses it, at a known distance"
    assert beside.hd_mm < missed.hd_mm == false.hd_mm == image_diagonal_mm((6, 6, 6), spacing_mm)
    assert (missed.dice, missed.nsd, missed.lesion_f1, missed.hd95_mm) == (0, 0, 0, missed.hd_mm)
    assert (absent.dice, absent.nsd, absent.lesion_f1, absent.hd95_mm, absent.assd_mm) == (1, 1, 1, 0, 0)
    assert (missed.volume_error_ml, false.volume_error_ml) == pytest.approx((-0.006, 0.006))
    assert (missed.lesions_missed, false.lesions_false) == (1, 1)


def test_masks_of_overlapping_regions_are_scored_like_their_label_map():
    rng = np.random.default_rng(3)
    prediction, reference = rng.integers(0, 4, (2, 9, 8, 7)).astype(np.uint8)
    stacks = [np.stack([np.isin(part, value) for value in ORGANS.values()]) for part in (prediction, reference)]
    expected = score_case(prediction, reference, ORGANS, spacing_mm=(1.0, 1.0, 2.0))
    assert score_case(*stacks, ORGANS, spacing_mm=(1.0, 1.0, 2.0)) == expected
    assert score_case(stacks[0], reference, ORGANS, spacing_mm=(1.0, 1.0, 2.0), workers=3) == expected


def test_tolerance_by_organ():
    one, other = np.zeros((2, 3, 12), np.uint8)
    one[:, 2], other[:, 5] = 1, 1
    one[:, 8], other[:, 11] = 2, 2
    organs = {"near": 1, "far": 2}
    scores = score_case(one, other, organs, spacing_mm=(1.0, 1.0), tolerance_mm={"near": 3.0})
    assert (scores["near"].nsd, scores["far"].nsd) == (1.0, 0.0)  # the far one has the default of 2 mm


@given(label_pairs(), st.sampled_from([None, 3]))
def test_background_is_a_structure_like_any_other(pair, ignore):
    """Numbered from 0 or from 1, the same voxels score the same."""
    organs = {"background": 0, "ends": (0, 2), "one": 1}
    shifted = {"background": 1, "ends": (1, 3), "one": 2}
    plain = score_case(*pair, organs, spacing_mm=(1.0, 1.0, 1.0), ignore=ignore)
    moved = [part.astype(np.uint16) + 1 for part in pair]
    assert plain == score_case(*moved, shifted, spacing_mm=(1.0, 1.0, 1.0), ignore=ignore and ignore + 1)
    counts = count_labels(*map(torch.from_numpy, pair), organs, ignore=ignore)
    for name in organs:
        assert plain[name].dice == dice(counts[name])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint16, np.int8, np.int64, bool, torch.tensor])
def test_labels_of_any_type_score_alike(kind):
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 2, (2, 5, 6)).astype(np.uint8)
    given = [part[None].astype(bool) if kind is bool else kind(part) for part in pair]
    options = {"spacing_mm": (1.0, 2.0)}
    assert score_case(*given, {"organ": 1}, **options) == score_case(*pair, {"organ": 1}, **options)


def test_lesions_are_matched_by_touch():
    prediction, reference = np.zeros((2, 5, 12), dtype=bool)
    reference[1:3, 1:3] = True  # touched
    reference[1:3, 5:7] = True  # missed
    prediction[2:4, 2:4] = True
    prediction[0, 10] = prediction[4, 10] = True  # two inventions
    assert match_lesions(prediction, reference) == Lesions(found=1, missed=1, false=2)


def test_one_prediction_over_two_lesions_finds_both():
    reference = np.array([True, False, True])
    assert match_lesions(np.ones(3, dtype=bool), reference) == Lesions(found=2, missed=0, false=0)


def test_a_litre_is_a_thousand_millilitres():
    litre = np.ones((1, 10, 10, 10), dtype=bool)
    found = score_case(litre, ~litre, {"organ": 1}, spacing_mm=(10.0, 10.0, 10.0))["organ"]
    assert (found.volume_ml, found.reference_volume_ml, found.volume_error_ml) == (1000.0, 0.0, 1000.0)
