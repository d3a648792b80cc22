"""To the plan's grid and back: any orientation, any spacing, any crop."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from support.grids import from_plan_grid, probabilities_from_plan_grid

from medseg.plan.grid import (
    GridChange,
    filled,
    labels_to_plan_grid,
    normalise,
    to_plan_grid,
)
from medseg.plan.plan import Normalisation, Plan
from medseg.space.nifti import read_labels, read_volume
from medseg.space.volume import Volume

ABDOMEN = Path(__file__).parents[3] / "shared" / "data" / "ct_abdomen"
AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]
ZSCORE = (Normalisation(),)
CT = Normalisation("ct", lower=-100.0, upper=300.0, mean=50.0, std=80.0)


def a_plan(spacing=(1.0, 1.0, 1.0), *, orientation="RAS", labels=None, normalisation=ZSCORE, ignore=None):
    return Plan(
        name="toy",
        modalities=tuple(f"m{index}" for index in range(len(normalisation))),
        labels=labels or {"liver": 1, "spleen": 3},
        orientation=orientation,
        spacing_mm=spacing,
        patch_size=(16, 16, 16),
        batch_size=2,
        normalisation=normalisation,
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3)),
        features=(8, 16),
        ignore=ignore,
    )


def an_affine(order, signs, spacing, tilt=0.0):
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-30.0, 12.5, 7.0)
    return affine


def a_case(rng, shape, affine, margin=1):
    """Noise in a box of zeros, and labels inside that box."""
    image = np.zeros((1, *shape), dtype=np.float32)
    labels = np.zeros((1, *shape), dtype=np.int32)
    inside = (0, *[slice(margin, -margin)] * 3)
    image[inside] = rng.normal(10, 1, image[inside].shape)
    labels[inside] = rng.choice([0, 1, 3], size=labels[inside].shape)
    return Volume(image, affine), Volume(labels, affine)


@given(
    st.sampled_from(AXES), st.tuples(*[st.integers(4, 9)] * 3), st.floats(-0.6, 0.6), st.integers(0, 9),
    st.sampled_from(["RAS", "LPS", "SAR"]),
)  # fmt: skip
def test_labels_return_unchanged_when_the_spacing_is_the_plans(axes, shape, tilt, seed, target):
    affine = an_affine(*axes, (1.0, 1.5, 2.0), tilt)
    image, labels = a_case(np.random.default_rng(seed), shape, affine)
    plan = a_plan(image.reoriented(target).spacing_mm, orientation=target)
    array, change = to_plan_grid(image, plan)
    atoms = labels_to_plan_grid(labels, plan, change)
    assert array.shape[1:] == atoms.shape == change.shape
    back = np.array([0, 1, 3])[from_plan_grid(atoms, change)]
    np.testing.assert_array_equal(back, labels.array[0])
    assert change.through_plane is None


@given(st.sampled_from(AXES), st.tuples(*[st.floats(0.5, 3.0)] * 3), st.floats(-0.6, 0.6), st.integers(0, 9))
def test_the_plan_grid_lies_where_the_scanner_was(axes, spacing, tilt, seed):
    """A ramp along each world axis keeps its world values: no shift, no flip, whatever is resampled."""
    affine = an_affine(*axes, spacing, tilt)
    shape = (14, 11, 12)
    world = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    ramps = Volume((world.reshape(3, *shape) + 1000).astype(np.float32), affine)
    plan = a_plan((1.3, 1.1, 0.9), normalisation=(Normalisation("none"),) * 3)
    array, change = to_plan_grid(ramps, plan)
    expected = change.affine[:3, :3] @ np.indices(change.shape).reshape(3, -1) + change.affine[:3, 3:] + 1000
    inner = (slice(None), *[slice(n // 3, -(n // 3)) for n in change.shape])  # the edge value continues outside
    if change.through_plane is None:
        found, wanted = array[inner], expected.reshape(array.shape)[inner]
        np.testing.assert_allclose(found, wanted, atol=0.12 * max(spacing))


def test_the_change_is_plain_data():
    image, _ = a_case(np.random.default_rng(0), (6, 7, 8), an_affine((2, 0, 1), (1.0, -1.0, 1.0), (1.0, 2.0, 3.0)))
    _, change = to_plan_grid(image, a_plan())
    assert GridChange.from_dict(json.loads(json.dumps(change.to_dict()))) == change


@given(st.sampled_from(AXES), st.integers(0, 9))
def test_scores_return_like_labels(axes, seed):
    rng = np.random.default_rng(seed)
    image, labels = a_case(rng, (9, 10, 8), an_affine(*axes, (2.0, 2.0, 3.0)))
    plan = a_plan((1.0, 1.5, 2.0))
    _, change = to_plan_grid(image, plan)
    atoms = labels_to_plan_grid(labels, plan, change)
    one_hot = np.stack([(atoms == index).astype(np.float32) for index in range(3)])
    probabilities = probabilities_from_plan_grid(one_hot, change)
    assert probabilities.shape == (3, 9, 10, 8)
    kept = np.zeros(image.shape, dtype=bool)
    kept[1:-1, 1:-1, 1:-1] = True
    assert not probabilities[:, ~kept].any()
    np.testing.assert_allclose(probabilities.sum(axis=0)[kept], 1, atol=1e-5)


def test_what_is_zero_in_every_channel_is_cropped():
    array = np.zeros((2, 10, 10, 10), dtype=np.float32)
    array[0, 2:5, 4:6, 3:9] = 1
    array[1, 3:7, 4:5, 3:4] = 2
    _, change = to_plan_grid(Volume(array, np.eye(4)), a_plan(normalisation=(Normalisation(),) * 2))
    assert (change.corner, change.size, change.shape) == ((2, 4, 3), (5, 2, 6), (5, 2, 6))


def test_an_empty_image_is_kept_whole():
    array, change = to_plan_grid(Volume(np.zeros((1, 3, 4, 5), dtype=np.float32), np.eye(4)), a_plan())
    assert change.shape == (3, 4, 5)
    assert not array.any()


def test_thick_slices_are_not_blended():
    image, labels = a_case(np.random.default_rng(0), (20, 20, 6), np.diag([0.8, 0.8, 5.0, 1.0]), margin=1)
    plan = a_plan((1.0, 1.0, 5.0))
    _, change = to_plan_grid(image, plan)
    assert change.through_plane == 2
    assert labels_to_plan_grid(labels, plan, change).shape == change.shape


def test_file_values_become_atoms():
    affine = np.eye(4)
    values = np.array([0, 1, 2, 3, 9], dtype=np.int32).reshape(1, 5, 1, 1)
    image = Volume(np.ones((1, 5, 1, 1), dtype=np.float32), affine)
    plan = a_plan(labels={"a": 3, "b": (1, 2)}, ignore=9)
    _, change = to_plan_grid(image, plan)
    assert labels_to_plan_grid(Volume(values, affine), plan, change).ravel().tolist() == [0, 2, 2, 1, -1]
    usual = a_plan(labels={"a": 1, "b": 2, "c": 3})
    counted = values.clip(0, 3)
    assert labels_to_plan_grid(Volume(counted, affine), usual, change).ravel().tolist() == [0, 1, 2, 3, 3]
    negative = a_plan(labels={"a": 3, "b": (1, 2)}, ignore=-7)
    values[values == 9] = -7
    assert labels_to_plan_grid(Volume(values, affine), negative, change).ravel().tolist() == [0, 2, 2, 1, -1]


def test_what_cannot_be_is_said():
    image = Volume(np.ones((1, 4, 4, 4), dtype=np.float32), np.eye(4))
    plan = a_plan()
    _, change = to_plan_grid(image, plan)
    with pytest.raises(ValueError, match=r"1 channels, the plan expects 2: m0, m1"):
        to_plan_grid(image, a_plan(normalisation=(Normalisation(),) * 2))
    with pytest.raises(ValueError, match=r"1 value that no label names: 2"):
        labels_to_plan_grid(Volume(np.full((1, 4, 4, 4), 2, dtype=np.int32), np.eye(4)), plan, change)
    with pytest.raises(ValueError, match=r"labels have shape \(4, 4, 3\)"):
        labels_to_plan_grid(Volume(np.zeros((1, 4, 4, 3), dtype=np.int32), np.eye(4)), plan, change)


def test_normalisation_schemes():
    rng = np.random.default_rng(0)
    image = rng.normal(100, 30, (1, 12, 11, 10)).astype(np.float32)
    image[0, :3] = 0
    image[0, 6, 5, 5] = 0  # a hole: inside the head, dark
    inside = np.ones((12, 11, 10), dtype=bool)
    inside[:3] = False

    def by(scheme):
        return normalise(image, (scheme,))[0]

    values = image[0].astype(np.float64)
    np.testing.assert_allclose(by(CT), (values.clip(-100, 300) - 50) / 80, atol=1e-5)
    np.testing.assert_allclose(by(Normalisation("zscore")), (values - values.mean()) / values.std(), atol=1e-4)
    masked = by(Normalisation("zscore_nonzero"))
    assert not masked[~inside].any()
    expected = (values[inside] - values[inside].mean()) / values[inside].std()
    np.testing.assert_allclose(masked[inside], expected, atol=1e-4)
    rescaled = by(Normalisation("rescale"))
    assert (rescaled.min(), rescaled.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(by(Normalisation("none")), image[0])


@pytest.mark.parametrize("scheme", ["zscore", "zscore_nonzero", "rescale"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_becomes_zero(scheme, value):
    assert not normalise(np.full((1, 3, 3, 3), value, dtype=np.float32), (Normalisation(scheme),)).any()


@given(st.integers(0, 99), st.floats(0.2, 0.9))
def test_holes_are_filled_as_scipy_fills_them(seed, share):
    mask = np.random.default_rng(seed).random((7, 8, 6)) < share
    np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.skipif(not ABDOMEN.is_dir(), reason="needs the real CT beside the repository")
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (3.0, 3.0, 2.0)])
def test_a_real_ct_keeps_its_organs_there_and_back(spacing):
    image, labels = read_volume(ABDOMEN / "ct.nii.gz"), read_labels(ABDOMEN / "labels.nii.gz")
    values = [int(value) for value in np.unique(labels.array) if value]
    plan = a_plan(spacing, labels={f"organ{value}": value for value in values}, normalisation=(CT,))
    _, change = to_plan_grid(image, plan)
    back = from_plan_grid(labels_to_plan_grid(labels, plan, change), change)
    for index, value in enumerate(values, start=1):
        before, after = labels.array[0] == value, back == index
        if before.sum() > 50:
            assert 2 * np.sum(before & after) / (before.sum() + after.sum()) > 0.9


@given(st.sampled_from(AXES), st.permutations("ijk"), st.tuples(*[st.integers(4, 7)] * 3), st.integers(0, 9))
def test_axes_as_stored_are_put_in_order_and_never_turned(axes, order, shape, seed):
    spacing = (1.0, 1.5, 2.0)
    image, labels = a_case(np.random.default_rng(seed), shape, an_affine(*axes, spacing), margin=0)
    places = ["ijk".index(letter) for letter in order]
    x, y, z = (spacing[place] for place in places)
    plan = a_plan((x, y, z), orientation="".join(order), normalisation=(Normalisation("none"),))
    array, change = to_plan_grid(image, plan)
    atoms = labels_to_plan_grid(labels, plan, change)
    assert np.array_equal(array[0], image.array[0].transpose(places))
    assert np.array_equal(np.array([0, 1, 3])[from_plan_grid(atoms, change)], labels.array[0])
    there = change.affine @ np.array([1, 2, 3, 1])
    voxel = [(1, 2, 3)[order.index(letter)] for letter in "ijk"]
    assert np.allclose(there, image.affine @ np.array([*voxel, 1]))


@pytest.mark.parametrize("axis", range(3))
def test_an_axis_of_its_own_spacing_is_not_resampled(axis):
    image, _ = a_case(np.random.default_rng(0), (6, 7, 8), an_affine((0, 1, 2), (1, 1, 1), (2.0, 3.0, 7.0)), margin=0)
    _, change = to_plan_grid(image, replace(a_plan((1.0, 1.0, 1.0)), own_spacing=(axis,)))
    assert change.shape[axis] == image.shape[axis]
    assert [change.shape[other] > image.shape[other] for other in range(3) if other != axis] == [True, True]
