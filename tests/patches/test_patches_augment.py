import math
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage
from support import examples

from medseg.patches import intensity
from medseg.patches.augment import augment, swapped
from medseg.patches.datamodule import VolumesDataModule
from medseg.patches.draw import draw
from medseg.patches.geometry import Geometry, geometry_of
from medseg.patches.interpolate import Places, PlanePlaces, smooth_field
from medseg.patches.margin import crop_size
from medseg.patches.moves import turned
from medseg.patches.settings import DEFAULT_PRESET, PRESETS, augmentation
from medseg.patches.spatial import deform

PATCH = (12, 16, 14)
NOTHING = PRESETS["none"]
SPATIAL = {
    "rotation": NOTHING.but(rotation_probability=1.0),
    "scaling": NOTHING.but(scale_probability=1.0),
    "elastic": NOTHING.but(elastic_probability=1.0, elastic_mm=2.0),
    "mirror": NOTHING.but(mirror_probability=1.0),
    "together": NOTHING.but(
        rotation_probability=1.0, scale_probability=1.0, elastic_probability=1.0, mirror_probability=0.5
    ),
}
GRIDS = {
    "cubes": Geometry(PATCH, (1.0, 1.0, 1.0), (0, 1, 2)),
    "slices": Geometry(PATCH, (5.0, 0.8, 0.8), (0, 2)),
    "mild": Geometry(PATCH, (1.0, 1.0, 2.5), (1,)),
}


def blobs(shape, seed, labels=4):
    """Smooth random regions, so that boundaries are few and a wrong voxel is no accident."""
    noise = np.random.default_rng(seed).standard_normal((labels, *shape))
    smooth = [ndimage.gaussian_filter(field, 2.0) for field in noise]
    return torch.from_numpy(np.argmax(smooth, axis=0).astype(np.int16))[None]


def drawn(setting, grid, seed=0, samples=1, modalities=1):
    return draw(setting, grid, modalities=modalities, keys=[(seed, sample) for sample in range(samples)])


@pytest.mark.sweep(4)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", SPATIAL)
@examples(8)
@given(seed=st.integers(0, 10_000), extra=st.sampled_from([0, 4, 8]))
def test_image_and_labels_stay_together(name, grid, seed, extra):
    labels = blobs(tuple(size + extra for size in PATCH), seed)
    one_hot = torch.nn.functional.one_hot(labels[0].long(), 4).permute(3, 0, 1, 2)[None].float()
    parameters = drawn(SPATIAL[name], grid, seed, modalities=4)
    image, moved = augment(one_hot, labels, parameters, grid)
    shares = torch.cat([1 - image.sum(1, keepdim=True), image], dim=1)  # what comes from outside belongs to nobody
    best = shares.max(1).values
    chosen = shares.gather(1, moved.long()[:, None] + 1)[:, 0]
    assert (best - chosen).max() < 1e-3


@pytest.mark.parametrize("name", SPATIAL)
def test_nearest_labels_are_those_of_the_image_at_the_same_place(name):
    grid = GRIDS["cubes"]
    labels = blobs((20, 24, 22), 5)
    position = (
        torch.stack(torch.meshgrid(*[torch.arange(n) for n in labels.shape[1:]], indexing="ij")).float()[None] + 100
    )
    image, moved = augment(position, labels, drawn(SPATIAL[name], grid, 3, modalities=3), grid, nearest=True)
    inside = moved[0] >= 0
    inside &= (image[0] > 99.99).all(0)  # interpolation with the outside says nothing about where it was
    i, j, k = (axis[inside].sub(100).round().long() for axis in image[0])
    assert inside.float().mean() > 0.5
    assert (labels[0, i, j, k] == moved[0][inside]).float().mean() > 0.999  # the rest are ties at half a voxel


@examples(20)
@given(seed=st.integers(0, 10_000))
def test_the_shortcut_for_labels_equals_the_argmax_of_an_interpolated_one_hot_map(seed):
    labels = blobs((16, 20, 18), seed, labels=6)
    labels[:, :2] = -1
    parameters = drawn(SPATIAL["together"], GRIDS["cubes"], seed)
    one_hot = torch.stack([labels == value for value in range(6)], dim=1).float()
    shares, _ = deform(one_hot, labels, parameters, PATCH)
    _, ours = deform(one_hot[:, :1], labels, parameters, PATCH)
    with_outside = torch.cat([1 - shares.sum(1, keepdim=True), shares], dim=1)
    ties = with_outside.topk(2, dim=1).values
    clear = (ties[:, 0] - ties[:, 1]) > 1e-4
    assert torch.equal(ours[clear], (with_outside.argmax(1) - 1).to(ours.dtype)[clear])


@examples(20)
@given(seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(1, 15)] * 3), reach=st.floats(-3.0, 3.0))
def test_planes_laid_end_to_end_read_as_three_dimensions_do(seed, shape, reach):
    rng = torch.Generator().manual_seed(seed)
    image, labels = torch.rand(2, *shape, generator=rng), torch.randint(-1, 4, shape, generator=rng)
    sizes = [size + 2 * reach for size in shape]
    positions = [(torch.rand(4, 5, 1, generator=rng) * size - reach, torch.rand(3, generator=rng)) for size in sizes]
    flat, native = read(PlanePlaces, positions, image, labels), read(Places, positions, image, labels)
    torch.testing.assert_close(flat[0], native[0], rtol=0, atol=1e-4)
    assert torch.equal(flat[1], native[1])
    assert torch.equal(flat[2], native[2])


@examples(20)
@example(seed=1143, shape=(10, 11, 11))
@given(seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(2, 15)] * 3))
def test_what_stays_inside_needs_no_border(seed, shape):
    rng = torch.Generator().manual_seed(seed)
    image, labels = torch.rand(2, *shape, generator=rng), torch.randint(-1, 4, shape, generator=rng)
    # halves of 64ths are exact with and without a border, and never between two voxels
    inside = [(torch.rand(4, 5, 3, generator=rng) * (size - 1) * 64).floor() for size in shape]
    positions = [((place + 0.5) / 64, torch.zeros(3)) for place in inside]
    bare, bordered = (read(PlanePlaces, positions, image, labels, border=border) for border in (0, 1))
    torch.testing.assert_close(bare[0], bordered[0], rtol=0, atol=1e-4)
    assert torch.equal(bare[1], bordered[1])
    assert torch.equal(bare[2], bordered[2])


def read(kind, positions, image, labels, **options):
    """Image, nearest labels and voted labels at some positions."""
    look = kind(positions, tuple(labels.shape), **options)
    shape = torch.broadcast_shapes(*[part.shape for part in positions[0]])
    patch = image.new_empty((len(image), *shape))
    nearest, voted = labels.new_empty(shape), labels.new_empty(shape)
    look.read((image, labels), (patch, nearest), nearest=True)
    look.read((image, labels), (patch, voted), nearest=False)
    return patch, nearest, voted


@pytest.mark.parametrize("kind", [PlanePlaces, Places])
def test_positions_on_voxels_read_those_voxels(kind):
    image, labels = torch.rand(1, 5, 6, 7), torch.randint(0, 3, (5, 6, 7))
    i, j, k = (torch.arange(float(size)) for size in labels.shape)
    none = torch.zeros(7)
    positions = [(i[:, None, None] + torch.zeros(6, 1), none), (torch.zeros(5, 1, 1) + j[:, None], none)]
    patch, nearest, voted = read(kind, [*positions, (torch.zeros(5, 6, 1), k)], image, labels)
    torch.testing.assert_close(patch, image)
    assert torch.equal(voted, labels)
    assert torch.equal(nearest, labels)


def test_a_rotation_by_ninety_degrees_is_exact():
    grid = Geometry((9, 9, 9), (1.0, 1.0, 1.0))
    setting = NOTHING.but(rotation_probability=1.0)
    parameters = drawn(setting, grid)
    parameters.affine[0] = turned(np.array([0.0, 0.0, math.pi / 2]))
    image, labels = torch.rand(1, 1, 9, 9, 9), blobs((9, 9, 9), 0)
    patch, moved = deform(image, labels, parameters, grid.patch_size)
    torch.testing.assert_close(patch, image.rot90(-1, (2, 3)), rtol=0, atol=1e-4)
    assert torch.equal(moved, labels.rot90(-1, (1, 2)))


def test_rotation_is_in_millimetres():
    grid = Geometry((17, 17, 17), (1.0, 1.0, 2.0))
    parameters = drawn(SPATIAL["rotation"], grid, 7)
    spacing = np.diag(grid.spacing_mm)
    in_mm = spacing @ parameters.affine[0] @ np.linalg.inv(spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(in_mm) == pytest.approx(1.0, abs=1e-6)


@examples(30)
@given(seed=st.integers(0, 10_000))
def test_anisotropic_volumes_are_moved_within_their_planes_only(seed):
    grid = GRIDS["slices"]
    assert grid.through_plane == 0
    parameters = drawn(SPATIAL["together"].but(low_resolution_probability=1.0), grid, seed)
    np.testing.assert_array_equal(parameters.affine[0][0], [1, 0, 0])
    np.testing.assert_array_equal(parameters.affine[0][:, 0], [1, 0, 0])
    assert not parameters.fields[0][0][0].any()
    assert all(change.values["low_resolution"][0] == 1 for change in parameters.changes[0])


def test_mild_anisotropy_rotates_about_every_axis():
    assert GRIDS["mild"].through_plane is None
    assert np.abs(drawn(SPATIAL["rotation"], GRIDS["mild"]).affine[0] - np.eye(3)).min() > 1e-4


def test_scale_looks_at_a_region_of_that_length():
    grid = GRIDS["cubes"]
    parameters = drawn(NOTHING.but(scale_probability=1.0, scale=(1.25, 1.25)), grid)
    np.testing.assert_allclose(parameters.affine[0], 1.25 * np.eye(3), rtol=1e-6)


def test_only_axes_of_the_plan_are_mirrored():
    flips = drawn(SPATIAL["mirror"], GRIDS["slices"], samples=5).flips
    assert (flips == [True, False, True]).all()


def test_mirrored_left_and_right_change_names():
    grid = Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0,), swap_labels=((1, 2),))
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int16)
    labels[0, 0], labels[0, 3], labels[0, 1, 0], labels[0, 2, 0] = 1, 2, 3, -1
    image = labels[:, None].float()
    _, moved = augment(image, labels, drawn(SPATIAL["mirror"], grid), grid)
    assert (moved[0, 0] == 1).all()
    assert (moved[0, 3] == 2).all()
    assert (moved[0, 2, 0] == 3).all()
    assert (moved[0, 1, 0] == -1).all()


def test_swapping_leaves_other_labels_alone():
    assert swapped(torch.tensor([[[9, 1, 2]]]), ((1, 2),)).tolist() == [[[9, 2, 1]]]


def test_outside_is_zero_in_the_image_and_ignored_in_the_labels():
    grid = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
    parameters = drawn(NOTHING.but(scale_probability=1.0, scale=(2.0, 2.0)), grid)
    for nearest in (False, True):
        image, labels = torch.ones(1, 1, 8, 8, 8), torch.ones(1, 8, 8, 8, dtype=torch.int16)
        patch, target = augment(image, labels, parameters, grid, nearest=nearest)
        assert (patch[0, 0, 0] == 0).all()
        assert (target[0, 0] == -1).all()
        assert (target[0, 2:6, 2:6, 2:6] == 1).all()


def test_an_untouched_patch_is_the_middle_of_its_crop():
    image, labels = torch.rand(2, 1, 16, 20, 18), blobs((16, 20, 18), 0).repeat(2, 1, 1, 1)
    patch, target = augment(image, labels, drawn(NOTHING, GRIDS["cubes"], samples=2), GRIDS["cubes"])
    assert torch.equal(patch, image[:, :, 2:-2, 2:-2, 2:-2])
    assert torch.equal(target, labels[:, 2:-2, 2:-2, 2:-2])


def test_the_crops_are_left_as_they_were():
    image, labels = torch.rand(4, 2, *PATCH), blobs(PATCH, 1).repeat(4, 1, 1, 1)
    before = image.clone(), labels.clone()
    augment(image, labels, drawn(everything(), GRIDS["cubes"], samples=4, modalities=2), GRIDS["cubes"])
    assert torch.equal(image, before[0])
    assert torch.equal(labels, before[1])


def everything():
    full = PRESETS["full"]
    channels = {f"{one.row.name}_channel_probability" for one in full.strengths if "channel_probability" in one.values}
    names = {f"{one.row.name}_probability" for one in full.strengths} | channels | {"mirror_probability"}
    return full.but(**dict.fromkeys(names, 1.0))


@examples(10)
@given(seed=st.integers(0, 10_000), nearest=st.booleans())
def test_everything_at_once_stays_finite_and_each_sample_is_its_own(seed, nearest):
    grid = GRIDS["cubes"]
    image, labels = torch.randn(4, 2, *PATCH), blobs(PATCH, seed).repeat(4, 1, 1, 1)
    parameters = drawn(everything(), grid, seed, samples=4, modalities=2)
    together, targets = augment(image, labels, parameters, grid, nearest=nearest)
    assert torch.isfinite(together).all()
    assert together.std() > 0.05
    for part in (slice(0, 2), slice(2, 4), slice(1, 2)):
        alone = type(parameters)(*(field[part] for field in parameters))
        few, target = augment(image[part], labels[part], alone, grid, nearest=nearest)
        assert torch.equal(few, together[part])  # to the last bit: ranks that share a batch see what one would
        assert torch.equal(target, targets[part])


ODD = {
    "zeros": lambda shape: torch.zeros(shape),
    "a negative constant": lambda shape: torch.full(shape, -3.0),
    "negatives": lambda shape: -1000 * torch.rand(shape),
    "next to nothing": lambda shape: 1e-20 * torch.randn(shape),
    "one bright voxel": lambda shape: 1e4 * (torch.arange(math.prod(shape)) == 0).float().view(shape),
}
FLAT = {"a slab": (12, 10, 2), "a slice": (12, 10, 1), "a voxel": (1, 1, 1)}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", [*ODD, *FLAT])
def test_odd_images_and_patches_stay_finite(name):
    patch = FLAT.get(name, PATCH)
    grid = Geometry(patch, (1.0, 1.0, 2.0), (0, 1, 2))
    quiet = everything().but(noise_probability=0.0)  # noise would hide that nothing is there
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 3, (2, *patch)).astype(np.int16))
    image = ODD.get(name, torch.randn)((2, 2, *patch))
    for seed in range(8):
        parameters = drawn(quiet, grid, seed, samples=2, modalities=2)
        changed_image, targets = augment(image, labels, parameters, grid)
        assert torch.isfinite(changed_image).all()
        assert -1 <= int(targets.min()) <= int(targets.max()) <= 2


def test_what_is_drawn_depends_on_key_and_sample_only():
    grid = GRIDS["cubes"]
    few, many = drawn(everything(), grid, 3, samples=2), drawn(everything(), grid, 3, samples=5)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_equal(a, b[:2])
    assert not np.array_equal(few.affine, drawn(everything(), grid, 4, samples=2).affine)
    assert len({row.tobytes() for row in many.affine}) == 5


def values_of(parameters, name):
    """What was drawn for the one setting of an augmentation, over all samples and modalities."""
    return np.array([c.values[name] for changes in parameters.changes for c in changes if name in c.values])


@pytest.mark.slow
def test_moves_and_flips_are_as_probable_as_asked():
    parameters = drawn(PRESETS["full"], GRIDS["cubes"], samples=4000)
    assert parameters.spatial.mean() == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    assert parameters.flips.mean() == pytest.approx(0.5, abs=0.03)


def test_factors_lie_below_and_above_one_equally_often():
    factors = values_of(drawn(NOTHING.but(gamma_probability=1.0), GRIDS["cubes"], samples=2000), "gamma")
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.05)
    assert factors.min() >= 0.7
    assert factors.max() <= 1.5


@pytest.mark.parametrize(("name", "limits"), [("brightness", (0.5, 0.9)), ("contrast", (1.1, 1.2))])
def test_one_sided_ranges_are_kept(name, limits):
    setting = NOTHING.but(**{f"{name}_probability": 1.0, name: limits})
    factors = values_of(drawn(setting, GRIDS["cubes"], samples=200), name)
    assert limits[0] <= factors.min() <= factors.max() <= limits[1]


ROWS = torch.randn(3, 12, 14, 13, generator=torch.Generator().manual_seed(0))


def changed(function, volume=ROWS[0], **drawn):
    """What a function that works in place leaves of a volume."""
    result = volume.clone()
    function(result, **drawn)
    return result


@pytest.mark.parametrize("sigma", [(0.5, 0.7, 1.0), (1.0, 1.0, 1.0), (0.8, 0.5, 6.0)])
def test_blur_is_a_gaussian(sigma):
    radius = [math.ceil(3 * width) for width in sigma]
    reference = ndimage.gaussian_filter(ROWS[0].numpy(), sigma, mode="nearest", radius=radius)
    np.testing.assert_allclose(changed(intensity.blur, blur_sigma_voxels=sigma).numpy(), reference, atol=1e-5)


def test_brightness_multiplies():
    torch.testing.assert_close(changed(intensity.brightness, brightness=0.5), ROWS[0] / 2)


LARGE = torch.randn(50, 60, 70, generator=torch.Generator().manual_seed(1))
"""More than is worked on at once."""


@pytest.mark.parametrize("volume", [ROWS[0], LARGE], ids=["small", "large"])
def test_contrast_keeps_mean_and_extremes(volume):
    weaker = changed(intensity.contrast, volume, contrast=0.5)
    torch.testing.assert_close(weaker, volume.mean() + (volume - volume.mean()) / 2)
    stronger = changed(intensity.contrast, volume, contrast=2.0)
    wanted = volume.mean() + (volume - volume.mean()) * 2
    torch.testing.assert_close(stronger, wanted.clamp(volume.min(), volume.max()))


@pytest.mark.parametrize("volume", [ROWS[0], LARGE], ids=["small", "large"])
@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("curve", [intensity.gamma, intensity.gamma_inverted])
def test_gamma_keeps_order_mean_and_deviation(volume, exponent, curve):
    curved, inverted = changed(curve, volume, gamma=exponent), curve is intensity.gamma_inverted
    low, high = volume.min(), volume.max()
    unit = ((high - volume) if inverted else (volume - low)) / (high - low)
    power = (-1 if inverted else 1) * unit**exponent
    wanted = (power - power.mean()) / power.std() * volume.std() + volume.mean()
    torch.testing.assert_close(curved, wanted, atol=2e-4, rtol=0)
    assert curved.flatten()[volume.flatten().argsort()].diff().min() >= -1e-5


def test_gamma_bends_the_dark_end_and_inverted_gamma_the_bright_one():
    ramp = torch.linspace(0, 1, 1000).reshape(10, 10, 10)
    upright = changed(intensity.gamma, ramp, gamma=1.5).flatten().diff()
    upside_down = changed(intensity.gamma_inverted, ramp, gamma=1.5).flatten().diff()
    assert upright[0] < upright[-1]
    torch.testing.assert_close(upside_down, upright.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("curve", [intensity.gamma, intensity.gamma_inverted])
def test_gamma_of_a_constant_is_that_constant(curve):
    constant = torch.full((4, 4, 4), 3.0)
    torch.testing.assert_close(changed(curve, constant, gamma=1.5), constant)
    nearly = 1e-9 * torch.rand(4, 4, 4)
    torch.testing.assert_close(changed(curve, nearly, gamma=1.5), nearly)


@pytest.mark.parametrize("share", [(0.5, 0.5, 0.5), (1.0, 0.5, 0.7), (0.9, 0.31, 0.04)])
def test_low_resolution_takes_nearest_voxels_and_interpolates_them_back(share):
    shape = [max(1, round(size * factor)) for size, factor in zip(ROWS[0].shape, share, strict=True)]
    small = torch.nn.functional.interpolate(ROWS[:1, None], size=shape, mode="nearest-exact")
    wanted = torch.nn.functional.interpolate(small, size=ROWS[0].shape, mode="trilinear")[0, 0]
    torch.testing.assert_close(changed(intensity.low_resolution, low_resolution=share), wanted, atol=1e-5, rtol=0)


def test_full_resolution_changes_nothing():
    torch.testing.assert_close(changed(intensity.low_resolution, low_resolution=(1.0, 1.0, 1.0)), ROWS[0])


def test_bias_is_a_smooth_factor_above_the_darkest_voxel():
    setting = NOTHING.but(bias_probability=1.0)
    image = torch.rand(1, 1, *PATCH) + 2
    changed, _ = augment(image, blobs(PATCH, 0), drawn(setting, GRIDS["cubes"]), GRIDS["cubes"])
    above = image > image.min() + 0.05
    factor = ((changed - image.min()) / (image - image.min()))[above]
    assert factor.min() > 0.3
    assert factor.std() > 0.02


def test_noise_has_the_drawn_variance_and_repeats():
    setting = NOTHING.but(noise_probability=1.0, noise_variance=(0.09, 0.09))
    image, labels = torch.zeros(2, 1, *PATCH), blobs(PATCH, 0).repeat(2, 1, 1, 1)
    parameters = drawn(setting, GRIDS["cubes"], samples=2)
    noisy, _ = augment(image, labels, parameters, GRIDS["cubes"])
    assert noisy.std() == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy, augment(image, labels, parameters, GRIDS["cubes"])[0])


def test_a_field_of_equal_control_points_is_constant():
    field = smooth_field(torch.full((5, 5, 5), 2.0), (7, 9, 8))
    torch.testing.assert_close(field, torch.full((7, 9, 8), 2.0))


@examples(25)
@given(seed=st.integers(0, 1000))
def test_the_margin_holds_what_moderate_transforms_look_at(seed):
    grid = Geometry((40, 40, 40), (1.0, 1.0, 1.0))
    setting = PRESETS["moderate"].but(rotation_probability=1.0, scale_probability=1.0, margin=1.0, elastic_mm=0.0)
    half = np.array(crop_size(setting, grid, (500, 500, 500))) / 2
    corners = np.array(np.meshgrid(*[[-19.5, 19.5]] * 3)).reshape(3, -1)
    single = drawn(setting.but(rotation_deg=0.0, rotation_probability=0.0), grid, seed)
    assert (np.abs(single.affine[0] @ corners) <= half[:, None]).all()


def test_the_margin_covers_elastic_and_planar_motion():
    grid = Geometry((8, 40, 40), (5.0, 1.0, 1.0))
    setting = NOTHING.but(elastic_probability=1.0, scale_probability=1.0, rotation_probability=1.0)
    assert crop_size(setting, grid, (100, 500, 500)) == (8, 60, 60)
    assert crop_size(NOTHING, grid, (100, 500, 500)) == (8, 40, 40)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("moderat", "did you mean 'moderate'"),
        ({"rotation_degrees": 10}, "did you mean 'rotation_deg'"),
        ({"scale": 3}, "expected one like"),
        ({"scale": [1.2, 0.8]}, "is a range"),
        ({"gamma": [0.0, 1.0]}, "above 0"),
        ({"noise_probability": 1.5}, "between 0 and 1"),
        ({"low_resolution": [0.5, 1.5]}, "at most 1"),
        ({"elastic_points": 1}, "at least 2"),
        ({"margin": -0.1}, "margin must be at least 0, got -0.1"),
        ({"rotation_deg": float("nan")}, "rotation_deg is made of finite numbers"),
        ({"contrast": [1, float("inf")]}, "contrast is made of finite numbers"),
        ({"bias_log_std": 9}, "between 0 and 5"),
        ({"elastic_points": 2.5}, "expected one like 6"),
        ({"noise_probability": True}, "cannot be True"),
        ({"label_interpolation": "cubic"}, "'linear' or 'nearest'"),
        ("gjhgkjh", "expected one of"),
        ({"blur": {"sigma": 1}}, "expected one of.*blur_sigma_voxels"),
        ({"blurr": {}}, "did you mean 'blur'"),
        ({"collections.OrderedDict": {}}, r"is no augmentation: put @augmentation\(...\)"),
    ],
)
def test_wrong_settings_are_answered_with_a_way_out(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        augmentation(wrong)


def test_settings_come_by_name_by_number_or_ready_made():
    default = signature(VolumesDataModule).parameters["augmentation"].default
    assert augmentation({}) == augmentation(default) == PRESETS[DEFAULT_PRESET]
    assert augmentation({"blur": {"probability": 1}}) == augmentation({"blur_probability": 1.0})
    assert augmentation(PRESETS["light"]) is PRESETS["light"]
    assert augmentation({"preset": "none", "scale": [0.5, 1], "scale_probability": 1}).scale == (0.5, 1.0)
    assert not PRESETS["light"].spatial


def test_overlapping_organs_cannot_be_swapped(tiny_plan):
    plan = replace(tiny_plan, labels={"left": (1, 2), "right": (2, 3)}, swap_labels=(("left", "right"),))
    with pytest.raises(ValueError, match="cannot split overlapping"):
        geometry_of(plan)


def test_geometry_follows_the_plan(tiny_plan):
    plan = replace(tiny_plan, labels={"left": 4, "right": 7}, swap_labels=(("left", "right"),))
    assert geometry_of(plan).swap_labels == ((1, 2),)
    assert geometry_of(plan, (8, 8, 8)).patch_size == (8, 8, 8)


@pytest.fixture
def tiny_plan():
    from medseg.plan.plan import Normalisation, Plan

    return Plan(
        "tiny",
        ("MRI",),
        {"left": 1, "right": 2},
        "RAS",
        (1.0, 1.0, 1.0),
        (16, 16, 16),
        2,
        (Normalisation(),),
        ((1, 1, 1), (2, 2, 2)),
        ((3, 3, 3), (3, 3, 3)),
        (8, 16),
    )
