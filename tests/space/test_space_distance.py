"""Distances, surfaces, components and skeletons, against their definitions written out point by point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from support import examples

from medseg.machine.threads import in_threads
from medseg.space import fields
from medseg.space.components import connected_components
from medseg.space.distance import bounding_box, checked_spacing, euclidean_distance, surface
from medseg.space.skeleton import skeleton, skeleton_tube


@st.composite
def volumes(draw):
    axes = draw(st.sampled_from([2, 3]))
    mask = draw(hnp.arrays(bool, hnp.array_shapes(min_dims=axes, max_dims=axes, max_side=6)))
    edge = st.sampled_from([0.7, 1.0, 1.5, 3.0])
    return mask, draw(st.none() | st.tuples(*[edge] * axes))


def point_by_point(mask: np.ndarray, spacing: tuple[float, ...] | None) -> np.ndarray:
    """The distance of every voxel to every True voxel, and the least of them."""
    steps = np.ones(mask.ndim) if spacing is None else np.asarray(spacing)
    here = np.argwhere(np.ones_like(mask)) * steps
    there = np.argwhere(mask) * steps
    if not len(there):
        return np.full(mask.shape, np.inf)
    return np.linalg.norm(here[:, None] - there, axis=2).min(1).reshape(mask.shape)


@given(volumes())
def test_distances_are_the_least_of_all_pairs(volume):
    mask, spacing = volume
    np.testing.assert_allclose(euclidean_distance(mask, spacing), point_by_point(mask, spacing), rtol=1e-14)


@given(volumes())
def test_surfaces_touch_the_outside_over_a_face(volume):
    mask, _ = volume
    outside = ~np.pad(mask, 1)
    touching = np.zeros_like(outside)
    for axis in range(mask.ndim):
        touching |= np.roll(outside, 1, axis) | np.roll(outside, -1, axis)
    inner = tuple(slice(1, -1) for _ in range(mask.ndim))
    np.testing.assert_array_equal(surface(mask), mask & touching[inner])


@given(volumes(), st.integers(0, 2))
def test_boxes_hold_the_mask_and_no_empty_side(volume, margin):
    mask, _ = volume
    box = bounding_box(mask, margin=margin)
    if not mask.any():
        assert box is None
        return
    assert mask[box].sum() == mask.sum()
    points = np.argwhere(mask)
    assert [(part.start, part.stop) for part in box] == [
        (max(low - margin, 0), min(high + margin, side - 1) + 1)
        for low, high, side in zip(points.min(0), points.max(0), mask.shape, strict=True)
    ]


@given(volumes(), st.sampled_from([None, 1, 2]))
def test_components_join_what_steps_can_join(volume, connectivity):
    mask, _ = volume
    numbered, count = connected_components(mask, connectivity)
    assert numbered.dtype == np.int32
    np.testing.assert_array_equal(numbered > 0, mask)
    assert sorted(set(numbered[mask].tolist())) == list(range(1, count + 1))
    points, steps = np.argwhere(mask), connectivity or mask.ndim
    offset = np.abs(points[:, None] - points) if len(points) else np.zeros((0, 0, mask.ndim))
    near = (offset.max(-1, initial=0) <= 1) & (offset.sum(-1) <= steps)
    reach = np.linalg.matrix_power(near.astype(float), max(1, len(points))) > 0 if len(points) else near
    labels = numbered[mask]
    np.testing.assert_array_equal(reach, labels[:, None] == labels)


def test_what_is_not_a_spacing_or_a_connectivity_is_refused():
    mask = np.ones((2, 2), dtype=bool)
    for spacing in [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan"))]:
        with pytest.raises(ValueError, match="2 positive numbers"):
            euclidean_distance(mask, spacing)
    with pytest.raises(ValueError, match="between 1 and 2"):
        connected_components(mask, connectivity=3)
    with pytest.raises(ValueError, match="one row per sample"):
        fields.steps_per_sample(torch.ones(3, 2), 2, 2)
    assert checked_spacing([2.0, 1.0], 2) == (2.0, 1.0)


# ---------------------------------------------------------------------------------------------- fields of a batch


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Two samples of five masks: empty, full, an organ, an organ with specks, noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij"))
    organ = (grid**2).sum(0) < 0.3
    masks = [np.zeros(shape, bool), np.ones(shape, bool), organ, organ | (rng.random(shape) < 0.01)]
    return np.stack([[*masks, rng.random(shape) < 0.4], [*masks[::-1], rng.random(shape) < 0.05]])


def both_sides(mask: np.ndarray, spacing: tuple[float, ...] | None) -> np.ndarray:
    """Of every voxel to the nearest one on the other side; 0 where there is none."""
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)
    return np.where(mask, euclidean_distance(~mask, spacing), euclidean_distance(mask, spacing))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0), (3.0, 0.8, 0.8)], ids=["voxels", "cubic", "anisotropic"])
@pytest.mark.parametrize("method", ["scan", "sweep", "chosen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_fields_are_those_of_single_volumes(monkeypatch, method, spacing, dtype):
    if method != "chosen":
        monkeypatch.setattr(fields, "SWEEP_WORTH", 0 if method == "scan" else 1e9)
        monkeypatch.setattr(fields, "SMALL", 1e9 if method == "scan" else 0)
    masks = blobs((13, 12, 14))
    expected = np.stack([[both_sides(mask, spacing) for mask in sample] for sample in masks])
    nearest = np.stack([[euclidean_distance(mask, spacing) for mask in sample] for sample in masks])
    batch, tight = torch.from_numpy(masks), {"rtol": 1e-6 if dtype == torch.float32 else 1e-13}
    np.testing.assert_allclose(fields.boundary_distance(batch, spacing, dtype=dtype), expected, **tight)
    np.testing.assert_allclose(fields.inner_distance(batch, spacing, dtype=dtype), expected * masks, **tight)
    np.testing.assert_allclose(fields.distance_to(batch, spacing, dtype=dtype), nearest, **tight)


def test_a_sweep_takes_many_volumes_at_once_as_a_gpu_does():
    masks = blobs((9, 10))[0]
    whole = tuple(slice(0, side) for side in masks.shape[1:])
    swept = fields.swept_distance(torch.from_numpy(masks), (1.0, 0.5), whole, dtype=torch.float64)
    np.testing.assert_allclose(swept, np.stack([point_by_point(mask, (1.0, 0.5)) for mask in masks]), rtol=1e-14)


def test_each_sample_has_its_own_spacing():
    masks = torch.from_numpy(blobs((8, 9)))
    spacing = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)
    both = fields.boundary_distance(masks, spacing)
    for n in range(2):
        torch.testing.assert_close(both[n : n + 1], fields.boundary_distance(masks[n : n + 1], spacing[n].tolist()))


@pytest.mark.parametrize("channels", [1, 5])
def test_voxels_that_do_not_exist_are_as_good_as_cut_away(channels):
    masks = torch.from_numpy(blobs((8, 9, 7)))
    valid = torch.ones(2, channels, 8, 9, 7, dtype=torch.bool)
    valid[..., -3:] = False
    for field in (fields.boundary_distance, fields.inner_distance):
        kept = field(masks & valid, valid=valid)[..., :-3]
        torch.testing.assert_close(kept, field(masks[..., :-3].contiguous()))


def test_a_mask_of_very_many_parts_is_measured_as_one(monkeypatch):
    monkeypatch.setattr(fields, "MOST_PIECES", 3)
    masks = torch.from_numpy(blobs((10, 10)))
    torch.testing.assert_close(
        fields.inner_distance(masks), torch.from_numpy(both_sides_of(masks)).float() * masks, rtol=1e-6, atol=0
    )


def both_sides_of(masks: torch.Tensor) -> np.ndarray:
    return np.stack([[both_sides(mask, None) for mask in sample] for sample in masks.numpy()])


# ---------------------------------------------------------------------------------------------- skeletons, threads


@examples(50)
@given(st.integers(0, 10_000), st.sampled_from([(24, 21), (10, 11, 12)]))
def test_every_part_of_a_mask_has_its_lines(seed, shape):
    from skimage.morphology import skeletonize

    mask = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5) > 0.52
    mask[: seed % 6] = False
    lines, peer = skeleton(mask), skeletonize(mask).astype(bool)
    assert not (lines & ~mask).any()
    numbered, count = connected_components(mask)
    for number in range(1, count + 1):
        if peer[numbered == number].any():
            np.testing.assert_array_equal(lines[numbered == number], peer[numbered == number])
        else:  # scikit-image wears small lumps away
            assert lines[numbered == number].sum() == 1


def test_tubes_are_skeletons_dilated_over_faces():
    mask = np.zeros((9, 9, 15), dtype=bool)
    mask[3:6, 3:6, 2:13] = True
    cross = ndimage.generate_binary_structure(3, 1)
    for dilations in (0, 1, 2):
        expected = skeleton(mask)
        for _ in range(dilations):
            expected = ndimage.binary_dilation(expected, cross)
        np.testing.assert_array_equal(skeleton_tube(mask, dilations=dilations), expected)
    assert not skeleton_tube(np.zeros((4, 4), dtype=bool)).any()


def test_threads_keep_the_order_and_pass_on_what_went_wrong(monkeypatch):
    monkeypatch.setattr("medseg.machine.threads.usable_cores", lambda: 3)
    assert in_threads(lambda job: job**2, range(20)) == [job**2 for job in range(20)]
    assert in_threads(abs, []) == []
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda job: 1 // job, [1, 0, 2])


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    import os

    from medseg.machine.hardware import usable_cores

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.3, 4.0)])
@pytest.mark.parametrize("seed", range(3))
def test_one_sweep_measures_the_depth_in_every_one_of_many_parts(seed, spacing_mm):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 5, (1, 1, 3, 4, 2), generator=generator).float()
    names = torch.nn.functional.interpolate(coarse, (9, 11, 7))[0, 0].to(torch.int16)
    exists = torch.rand(names.shape, generator=generator) > 0.2 * seed
    found = fields.swept_depth(names, exists, spacing_mm, dtype=torch.float64)
    for name in names.unique():
        others = euclidean_distance((exists & (names != name)).numpy(), spacing_mm)
        here = (exists & (names == name)).numpy()
        np.testing.assert_allclose(found.numpy()[here], others[here], rtol=1e-6)
