"""Every law on every metric of the table: a new one is filed, and these run on it."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.metrics import score_case
from medseg.metrics.table import metric, rows

TABLE = rows()
SPACING_MM = (1.0, 2.0, 4.0)  # powers of two: sums of squares are exact in any order
SEEDS = range(4)


def pair(seed):
    """Two label maps, half alike, in which all values occur."""
    rng = np.random.default_rng(seed)
    prediction, other = (np.repeat(rng.integers(0, 3, (4, 3, 6)), 2, axis=1).astype(np.uint8) for _ in range(2))
    return prediction, np.where(rng.random(prediction.shape) < 0.5, prediction, other)


def score(name, prediction, reference, spacing_mm=SPACING_MM, **options):
    return score_case(prediction, reference, {"organ": 1}, spacing_mm=spacing_mm, **options)["organ"].values[name]


ONE, NONE = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
ONE[1:3, 1:4, 2:5] = 1
DIAGONAL_MM = np.linalg.norm(np.array(ONE.shape) * SPACING_MM)


@pytest.mark.parametrize("name", TABLE)
def test_a_perfect_prediction_is_best_and_no_other_is_better(name):
    best, better = TABLE[name].best, TABLE[name].better
    for seed in SEEDS:
        prediction, reference = pair(seed)
        perfect, found = score(name, reference, reference), score(name, prediction, reference)
        if best is not None:
            assert perfect == pytest.approx(best)
        if better != "neither":
            assert (found <= perfect) if better == "higher" else (found >= perfect)


@pytest.mark.parametrize("name", TABLE)
def test_prediction_and_reference_change_places_where_it_says_so(name):
    over_both = np.array([[[1, 1, 1, 0, 0, 1]], [[1, 0, 1, 0, 0, 0]]], np.uint8)[
        :, None
    ]  # one lesion over two, and one
    pairs = [over_both, *(pair(seed) for seed in SEEDS)]
    same = [score(name, a, b) == pytest.approx(score(name, b, a)) for a, b in pairs]
    assert all(same) is TABLE[name].symmetric


@pytest.mark.parametrize("name", TABLE)
def test_empty_sides_score_as_everywhere(name):
    missed, false, absent = score(name, NONE, ONE), score(name, ONE, NONE), score(name, NONE, NONE)
    if TABLE[name].empty == "overlap":
        assert (missed, false, absent) == (0, 0, 1)
    elif TABLE[name].empty == "distance":
        assert (missed, false, absent) == pytest.approx((DIAGONAL_MM, DIAGONAL_MM, 0))
    assert np.isfinite([missed, false, absent]).all()


@pytest.mark.parametrize("name", TABLE)
def test_the_unit_in_the_name_is_that_of_the_spacing(name):
    prediction, reference = pair(1)
    small = score(name, prediction, reference, tolerance_mm=1.0)
    large = score(name, prediction, reference, [2 * step for step in SPACING_MM], tolerance_mm=2.0)
    factor = {"mm": 2, "ml": 8}.get(name.rpartition("_")[2], 1)
    assert large == pytest.approx(factor * small)


@pytest.mark.parametrize("name", TABLE)
def test_the_order_and_direction_of_axes_say_nothing(name):
    prediction, reference = pair(2)
    plain = score(name, prediction, reference)
    turned = [np.ascontiguousarray(part.transpose(2, 0, 1)[::-1]) for part in (prediction, reference)]
    assert score(name, *turned, (4.0, 1.0, 2.0)) == pytest.approx(plain)


@pytest.mark.parametrize("name", TABLE)
def test_ignored_voxels_are_as_if_neither_had_them(name):
    prediction, reference = pair(3)
    reference[:, :2] = 7
    without = prediction.copy()
    without[:, :2] = 0
    assert score(name, prediction, reference, ignore=7) == score(name, without, np.where(reference == 7, 0, reference))


@pytest.mark.parametrize("name", TABLE)
def test_it_says_what_it_means(name):
    assert TABLE[name].meaning
    assert (TABLE[name].best is None) <= (TABLE[name].better == "neither")


def test_a_metric_of_ones_own_is_a_function_under_the_decorator():
    @metric(better="higher", best=1, empty="overlap", symmetric=True)
    def size_similarity(x) -> float:
        """One minus the difference of both sizes over their sum."""
        return 1 - abs(x.counts.predicted - x.counts.reference) / (x.counts.predicted + x.counts.reference)

    assert [*rows()] == [*TABLE, "size_similarity"]
    assert score("size_similarity", ONE, ONE) == 1
    assert score("size_similarity", NONE, ONE) == 0
    with pytest.raises(ValueError, match="there is a metric dice already"):

        @metric(better="higher", empty="overlap")
        def dice(x) -> float: ...
