"""Resampling against scipy's splines and against the definition of an interpolated one-hot volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage

from medseg.space.resample import (
    resample_image,
    resample_labels,
    resampled_shape,
    through_plane_axis,
)
from medseg.space.volume import spacing_of

SHAPES = st.tuples(*[st.integers(1, 24)] * 3)


def zoomed(volume, shape, order):
    """What scikit-image's resize, and so nnU-Net, calls; its result is clipped to the range of the input."""
    factors = [new / old for new, old in zip(shape, volume.shape, strict=True)]
    out = ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(out, volume.min(), volume.max())


@given(SHAPES, SHAPES, st.integers(0, 9), st.sampled_from([1, 3]))
@example((512, 3, 2), (511, 5, 2), 0, 3)
def test_images_agree_with_scipy(before, after, seed, order):
    volume = np.random.default_rng(seed).normal(size=before).astype(np.float32)
    ours = resample_image(volume[None], after, order=order)[0]
    assert ours.shape == after
    np.testing.assert_allclose(ours, zoomed(volume, after, order), atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slices", [3, 5, 9])
def test_thick_slices_are_copied_and_never_blended(axis, slices):
    rng = np.random.default_rng(0)
    volume = np.moveaxis(rng.normal(size=(12, 10, 5)).astype(np.float32), 2, axis)
    shape = [9, 13]
    shape.insert(axis, slices)
    ours = np.moveaxis(resample_image(volume[None], tuple(shape), through_plane=axis)[0], axis, 0)
    source = np.moveaxis(volume, axis, 0)
    centres = (np.arange(slices) + 0.5) * 5 / slices - 0.5
    for index, centre in enumerate(centres):
        expected = zoomed(source[int(np.clip(np.floor(centre + 0.5), 0, 4))], (9, 13), 3)
        np.testing.assert_allclose(ours[index], expected, atol=2e-5)


def test_nearest_takes_values_of_the_input_only():
    volume = np.arange(24.0, dtype=np.float32).reshape(1, 2, 3, 4)
    assert set(np.unique(resample_image(volume, (5, 5, 5), order=0))) <= set(range(24))


def test_an_image_of_the_right_shape_is_not_copied():
    volume = np.zeros((1, 3, 3, 3), dtype=np.float32)
    assert resample_image(volume, (3, 3, 3)) is volume


def test_an_order_that_nobody_needs_is_refused():
    with pytest.raises(ValueError, match="order must be 0"):
        resample_image(np.zeros((1, 2, 2, 2), dtype=np.float32), (3, 3, 3), order=2)


@given(SHAPES, SHAPES, st.integers(0, 99), st.sampled_from([np.int16, np.int32, np.int64]))
def test_labels_are_the_argmax_of_the_interpolated_one_hot(before, after, seed, dtype):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([-1, 0, 0, 1, 2, 7], dtype=dtype), size=before)
    ours = resample_labels(labels, after)
    values = np.array([-1, 0, 1, 2, 7])
    weights = np.stack([zoomed((labels == value).astype(np.float32), after, 1) for value in values])
    won = np.take_along_axis(weights, np.searchsorted(values, ours)[None], axis=0)[0]
    assert ours.dtype == dtype
    assert (won >= weights.max(axis=0) - 2e-5).all()


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4), (5, 5)])
def test_labels_of_thick_slices_keep_their_slices(before, after):
    labels = np.zeros((6, 6, before), dtype=np.int32)
    labels[:, :, before // 2] = 3
    ours = resample_labels(labels, (12, 12, after), through_plane=2)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    nearest = np.floor(centres + 0.5).astype(int)
    assert [int(plane.max()) for plane in np.moveaxis(ours, 2, 0)] == [3 * (n == before // 2) for n in nearest]


@given(st.integers(0, 99), st.floats(0.4, 0.9))
def test_a_ball_survives_the_round_trip(seed, factor):
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(10, 20, 3), rng.uniform(5, 9)
    grid = np.indices((30, 30, 30)) - centre.reshape(3, 1, 1, 1)
    ball = (np.square(grid).sum(axis=0) < radius**2).astype(np.int16)
    back = resample_labels(resample_labels(ball, resampled_shape(ball.shape, (1.0,) * 3, (factor,) * 3)), ball.shape)
    assert 2 * np.sum(ball & back) / (ball.sum() + back.sum()) > 0.97


def test_a_speck_between_the_new_centres_leaves_background():
    labels = np.zeros((40, 1, 1), dtype=np.int32)
    labels[0] = 1
    assert not resample_labels(labels, (2, 1, 1)).any()


@given(st.integers(0, 2**32 - 1))
def test_how_a_volume_lies_decides_neither_its_voxels_nor_its_axis(seed):
    """An oblique affine in float32 knows 4.5 mm as 4.49999995; a half voxel and a third are those of the header."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    pairs = (((4.5, 1.6, 1.1), (3.0, 1.5, 1.5)), ((3.0, 1.0, 1.0), (1.0,) * 3), ((4.0, 4.0, 1.0), (2.0,) * 3))
    for spacing, target in pairs:
        affine = np.eye(4, dtype=np.float32)
        affine[:3, :3] = turn * spacing
        known = spacing_of(affine.astype(np.float64))
        assert resampled_shape((17, 15, 30), known, target) == resampled_shape((17, 15, 30), spacing, target)
        assert through_plane_axis(known, target) == through_plane_axis(spacing, target)
    assert resampled_shape((17, 15, 30), (4.5, 1.0, 1.0), (3.0, 1.0, 1.0)) == (26, 15, 30)  # as Python rounds 25.5


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((0.8, 0.8, 5.0), (0.8, 0.8, 5.0), 2),
        ((5.0, 0.8, 0.8), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
        ((1.0, 1.0, 3.0), (1.0, 1.0, 2.9), None),  # the threshold itself is not beyond the threshold
        ((0.2, 1.2, 1.2), (1.0, 1.0, 1.0), None),  # two coarse axes: no single one to keep apart
    ],
)
def test_which_axis_is_through_plane(spacing, target, axis):
    assert through_plane_axis(spacing, target) == axis


def test_a_grid_never_vanishes():
    assert resampled_shape((1, 2, 3), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)) == (1, 1, 1)
