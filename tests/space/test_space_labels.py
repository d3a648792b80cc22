"""Label values: read as whole numbers, counted and replaced in memory that follows their number, told from scans."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medseg.space.labels import (
    boxes_of,
    cut_away,
    integer_type,
    looks_like_scan,
    replaced,
    strangers,
    value_counts,
    whole_numbers,
)

VALUES = st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5, unique=True)


def a_map_of(values: list[int], shape: tuple[int, ...] = (7, 6, 5)) -> np.ndarray:
    rng = np.random.default_rng(len(values))
    return np.array(values, dtype=np.int64)[rng.integers(0, len(values), shape)]


@given(values=VALUES)
def test_counts_are_those_of_numpy_whatever_the_values(values):
    labels = a_map_of(values)
    found, counts = np.unique(labels, return_counts=True)
    assert value_counts(labels) == dict(zip(found.tolist(), counts.tolist(), strict=True))


@given(values=VALUES)
def test_replacing_there_and_back_is_nothing(values):
    labels = a_map_of(values)
    table = {value: index for index, value in enumerate(values)}
    numbered = replaced(labels, table, other=-1)
    np.testing.assert_array_equal(np.array(values, dtype=np.int64)[numbered], labels)
    assert (replaced(labels, {values[0] ^ 1: 0}, other=-1)[labels != values[0] ^ 1] == -1).all()


@given(values=VALUES)
def test_boxes_are_those_of_each_mask(values):
    labels = a_map_of(values)
    for value, box in boxes_of(labels, values).items():
        (expected,) = ndimage.find_objects((labels == value).astype(int)) or [None]
        assert box == expected


@pytest.mark.parametrize("work", [value_counts, lambda v: replaced(v, {0: 0, 2**40: 1}, other=2),
                                  lambda v: boxes_of(v, [1, 2**40]), whole_numbers])  # fmt: skip
def test_memory_follows_the_volume_and_not_its_largest_value(work):
    labels = np.zeros((32, 32, 32), dtype=np.int64)
    labels[4:8, 4:8, 4:8] = 2**40
    tracemalloc.start()
    try:
        work(labels)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_the_ends_of_every_type_are_exact(kind):
    ends = np.iinfo(kind)
    labels = np.array([ends.min, min(ends.max, 2**63 - 1)], dtype=kind)
    assert whole_numbers(labels).array.tolist() == labels.tolist()
    assert value_counts(labels) == {int(value): 1 for value in labels}
    assert np.array_equal(labels.astype(integer_type(labels)), labels)


@pytest.mark.parametrize(
    ("numbers", "exact", "gap"),
    [
        ([0.0, 1.0, 16777217.0], True, 0.0),
        ([0.0, 2.9999999993], True, 7e-10),
        ([0.0, 60000.001], True, 1e-3),  # as far as 24 bits of a scale may put it
        ([0.0, 1.0001], False, 1e-4),
        ([0.0, 0.5], False, 0.5),
        ([0.0, np.nan], False, np.inf),
        ([-np.inf, 1.0], False, np.inf),
    ],
)
def test_rounding_is_told_from_fractions(numbers, exact, gap):
    found = whole_numbers(np.array(numbers))
    assert found.exact is exact
    assert found.gap == pytest.approx(gap, rel=1e-3)


@pytest.mark.parametrize("number", [2.0**53 + 2, -(2.0**60), 1e300])
def test_floats_beyond_every_whole_number_are_no_labels(number):
    with pytest.raises(ValueError, match="values up to"):
        whole_numbers(np.array([0.0, number]))


def test_a_value_that_is_not_there_costs_nothing():
    labels = np.array([0, 1, 1])
    assert boxes_of(labels, [1, 2**31 - 1, 2**50]) == {1: (slice(1, 3),), 2**31 - 1: None, 2**50: None}
    assert boxes_of(labels * 0, [1]) == {1: None}


def test_a_scan_is_told_from_an_atlas():
    rng = np.random.default_rng(0)
    scan = np.where(rng.random((20, 20, 20)) < 0.5, -1000, rng.normal(50, 20, (20, 20, 20))).astype(int)
    atlas = np.kron(np.arange(125).reshape(5, 5, 5), np.ones((4, 4, 4), int))
    assert looks_like_scan(scan, value_counts(scan))
    assert not looks_like_scan(atlas, value_counts(atlas))
    assert "a scan, not a label map" in strangers(scan, {0, 1})
    assert (
        strangers(atlas, {0, 1}) == "holds 7872 voxels with 123 values that no label names: 2, 3, 4, 5, 6 and 118 more"
    )
    assert strangers(atlas, set(range(125))) == ""


def test_what_is_cut_away_is_told_by_region():
    labels = np.array([1, 2, 2, 0, 3])
    assert cut_away(labels, labels[1:], {"both": (1, 2), "one": 2}) == ["both (1 of 3 voxels)"]
    assert cut_away(labels, labels, {"one": 1}) == []
