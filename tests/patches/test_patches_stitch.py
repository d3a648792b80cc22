import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from scipy import ndimage
from support import examples
from support.grids import sliding_window

from medseg.patches.stitch import gaussian_weights, mirrored, stitched_slabs, tile_starts

sizes = st.tuples(*[st.integers(3, 23)] * 3)
patches = st.tuples(*[st.integers(2, 11)] * 3)


def position_dependent(tiles):
    """A stand-in for a network: nonlinear, and different at every voxel of a tile, so that blending shows."""
    ramp = torch.linspace(0.5, 2.0, tiles[0, 0].numel()).reshape(tiles.shape[2:])
    return torch.cat([tiles[:, :1] * ramp, (tiles.sum(1, keepdim=True) - ramp).tanh()], dim=1)


@examples(40)
@given(size=sizes, patch=patches, overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]), batch_size=st.integers(1, 5))
def test_equals_monai_with_its_tiling(size, patch, overlap, batch_size):
    image = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(sum(size)))
    theirs = sliding_window_inference(image, patch, 1, position_dependent, overlap, mode="gaussian")
    ours = sliding_window(image, patch, position_dependent, overlap=overlap, batch_size=batch_size, tiling="shifted")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [(5, 6, 7), (40, 56, 40), (1, 1, 1)])
def test_weights_are_monais(patch):
    theirs = compute_importance_map(patch, mode="gaussian")
    torch.testing.assert_close(gaussian_weights(patch, tiling="shifted"), theirs)


def test_weights_fall_as_nnunets_to_the_corners():
    """nnU-Net blurs a point (SciPy, to four standard deviations) and keeps what float16 holds; so far they agree."""
    point = np.zeros((33, 33, 33))
    point[16, 16, 16] = 1
    theirs = ndimage.gaussian_filter(point, 33 / 8, mode="constant")
    theirs = torch.from_numpy(theirs / theirs.max()).float()
    held = theirs > 1e-7
    torch.testing.assert_close(gaussian_weights((33, 33, 33))[held], theirs[held], rtol=1e-4, atol=0)
    assert gaussian_weights((33, 33, 33)).min() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_border_of_a_flat_volume_is_weighted_as_its_middle(dtype):
    """Two tiles side by side, one deep: which of them counts how much depends on the axis they share, nowhere else."""
    image = torch.zeros(1, 1, 24, 16, 16)
    numbers = itertools.count(1)

    def numbered(tiles):
        return torch.cat([torch.full_like(tile[None], float(next(numbers))) for tile in tiles])

    (blended,) = torch.cat(
        [slab.clone().float() for _, slab in stitched_slabs(image, (16, 16, 16), numbered, dtype=dtype)], 1
    )
    torch.testing.assert_close(blended, blended[:, 8:9, 8:9].expand(24, 16, 16), rtol=0, atol=2e-3)
    assert len(blended.unique()) > 4


@pytest.mark.parametrize(
    ("size", "patch", "starts"),
    [  # as nnU-Net 2.8.1's compute_steps_for_sliding_window says at a step size of 0.5
        (110, 64, [0, 23, 46]),
        (64, 64, [0]),
        (50, 64, [0]),
        (65, 64, [0, 1]),
        (128, 64, [0, 32, 64]),
        (41, 16, [0, 6, 12, 19, 25]),
        (137, 96, [0, 41]),
        (311, 80, [0, 38, 77, 116, 154, 192, 231]),
    ],
)
def test_even_tiling_is_nnunets(size, patch, starts):
    assert tile_starts(size, patch) == starts


@given(size=st.integers(1, 300), patch=st.integers(1, 100), overlap=st.sampled_from([0.0, 0.3, 0.5, 0.75]))
def test_tiles_cover_the_volume_and_overlap_enough(size, patch, overlap):
    for tiling in ("even", "shifted"):
        starts = tile_starts(size, patch, overlap=overlap, tiling=tiling)
        assert starts[0] == 0
        assert starts[-1] == max(size - patch, 0)
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(0 <= step <= max(patch * (1 - overlap) + 1, 1) for step in steps)


@examples(40)
@given(size=sizes, patch=patches)
def test_slabs_cover_the_volume_once_and_equal_the_whole(size, patch):
    image = torch.rand(1, 1, *size)
    slabs = [(where, slab.clone()) for where, slab in stitched_slabs(image, patch, position_dependent)]
    assert [where.start for where, _ in slabs] == [0, *(where.stop for where, _ in slabs[:-1])]
    assert slabs[-1][0].stop == size[0]
    assert all(slab.shape[1] == where.stop - where.start for where, slab in slabs)
    theirs = sliding_window_inference(image, patch, 1, position_dependent, 0.5, mode="gaussian")
    shifted = sliding_window(image, patch, position_dependent, tiling="shifted", batch_size=3)
    torch.testing.assert_close(shifted, theirs, rtol=1e-5, atol=1e-5)


@examples(20)
@given(size=sizes, patch=patches, axis=st.integers(0, 2), half=st.booleans())
def test_any_axis_may_be_cut_into_slabs_and_the_sums_be_halved(size, patch, axis, half):
    image = torch.rand(1, 2, *size)
    dtype, tolerance = (torch.float16, 4e-3) if half else (torch.float32, 1e-5)
    slabs = [
        (where, slab.clone())
        for where, slab in stitched_slabs(image, patch, position_dependent, axis=axis, dtype=dtype, batch_size=3)
    ]
    assert [where.start for where, _ in slabs] == [0, *(where.stop for where, _ in slabs[:-1])]
    assert slabs[0][1].dtype == dtype
    whole = torch.cat([slab for _, slab in slabs], dim=axis + 1).float()
    torch.testing.assert_close(whole, sliding_window(image, patch, position_dependent)[0], rtol=0, atol=tolerance)


def test_nnunets_tiling_rounds_where_it_does():
    """All windows of a volume in turn, logits and weights added up in float16 and divided in the end: bit for bit."""
    size, patch = (21, 13, 10), (8, 8, 10)
    image = 8 * torch.rand(1, 1, *size)
    weights = (10 * gaussian_weights(patch, tiling="nnunet")).half()
    weights[weights == 0] = weights[weights > 0].min()
    sums, total = torch.zeros(2, *size, dtype=torch.half), torch.zeros(size, dtype=torch.half)
    for corner in itertools.product(*(tile_starts(n, edge) for n, edge in zip(size, patch, strict=True))):
        where = (..., *(slice(start, start + edge) for start, edge in zip(corner, patch, strict=True)))
        sums[where] += position_dependent(image[where])[0] * weights
        total[where] += weights
    ours = sliding_window(image, patch, position_dependent, tiling="nnunet", batch_size=2)
    assert torch.equal(ours[0], sums / total)


def test_sums_in_float32_whatever_the_network_returns():
    image = torch.rand(1, 1, 20, 20, 20)
    result = sliding_window(image, (8, 8, 8), lambda tiles: tiles.to(torch.bfloat16))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image, rtol=0, atol=4e-3)


def test_memory_does_not_grow_with_the_length_of_the_volume():
    depths = [slab.shape[1] for _, slab in stitched_slabs(torch.rand(1, 1, 64, 8, 8), (8, 8, 8), lambda t: t)]
    assert max(depths) <= 8


def test_mirroring_averages_over_all_flips():
    patch = torch.rand(2, 1, 4, 5, 6)
    kernel = torch.rand(1, 1, 3, 3, 3)

    def predict(x):
        return torch.nn.functional.conv3d(x, kernel, padding=1).sigmoid()

    by_hand = (
        sum(
            predict(patch.flip(dims)).flip(dims)
            for dims in ([], [2], [4], [2, 4])  # axes 0 and 2
        )
        / 4
    )
    torch.testing.assert_close(mirrored(predict, (0, 2))(patch), by_hand)
    assert torch.equal(mirrored(predict, ())(patch), predict(patch))


def test_a_flip_of_left_and_right_exchanges_the_sides():
    """A network that knows left from right by the first axis, as one trained with exchanged labels is asked to."""
    patch = torch.rand(1, 1, 6, 4, 4)

    def predict(x):
        left = x * torch.linspace(0, 1, 6).view(1, 1, 6, 1, 1)
        return torch.cat([x, left, x.square(), x - left], dim=1)

    torch.testing.assert_close(mirrored(predict, (0, 2), pairs=[(1, 3)])(patch), predict(patch))
    assert not torch.allclose(mirrored(predict, (0, 2))(patch), predict(patch))
    torch.testing.assert_close(mirrored(predict, (1, 2), pairs=[(1, 3)])(patch), predict(patch))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"overlap": 1.0}, "overlap is a share"), ({"tiling": "odd"}, "expected one of even, nnunet, shifted")],
)
def test_refuses_with_a_way_out(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        sliding_window(torch.rand(1, 1, 4, 4, 4), (4, 4, 4), lambda tiles: tiles, **arguments)


def test_refuses_a_network_that_changes_the_grid():
    with pytest.raises(ValueError, match="must keep samples and voxels"):
        sliding_window(torch.rand(1, 1, 4, 4, 4), (4, 4, 4), lambda tiles: tiles[..., :2])


def test_refuses_mirror_axes_that_do_not_exist():
    with pytest.raises(ValueError, match="out of 0, 1 and 2"):
        mirrored(lambda x: x, (3,))
