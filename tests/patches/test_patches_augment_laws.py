"""Every law on every augmentation of the table: a new one is filed, and these run on it."""

import inspect
import sys

import numpy as np
import pytest
import torch

from medseg.errors import UsageError
from medseg.patches.augment import augment
from medseg.patches.augmentations import Volume, augmentation, rows
from medseg.patches.draw import draw
from medseg.patches.geometry import Geometry
from medseg.patches.margin import crop_size
from medseg.patches.settings import PRESETS
from medseg.patches.settings import augmentation as named_settings

PATCH = (12, 16, 14)
GRIDS = {"cubes": Geometry(PATCH, (1.0, 1.0, 1.0)), "slices": Geometry(PATCH, (5.0, 0.8, 0.8))}
NONE = PRESETS["none"]
OURS = rows()


def law(row, name):
    """Skip what a row declares that it cannot keep, with its reason."""
    if name in row.excepts:
        pytest.skip(row.excepts[name])


def always(name, **settings):
    return NONE.but(**{name: {"probability": 1.0, **settings}})


def batch(samples=2, modalities=2, margin=4, seed=0):
    rng = np.random.default_rng(seed)
    shape = [size + margin for size in PATCH]
    image = torch.from_numpy(rng.standard_normal((samples, modalities, *shape)).astype(np.float32))
    return image, torch.from_numpy(rng.integers(-1, 4, (samples, *shape)).astype(np.int16))


def drawn(settings, grid="cubes", samples=2, modalities=2, seed=0):
    return draw(settings, GRIDS[grid], modalities=modalities, keys=[(seed, sample) for sample in range(samples)])


def applied(settings, grid="cubes", **crops):
    return augment(*batch(**crops), drawn(settings, grid), GRIDS[grid])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", OURS)
def test_shape_type_and_numbers(name, grid):
    image, labels = applied(always(name), grid)
    assert image.shape == (2, 2, *PATCH)
    assert image.dtype == torch.float32
    assert torch.isfinite(image).all()
    assert labels.dtype == torch.int16
    assert set(labels.unique().tolist()) <= {-1, 0, 1, 2, 3}


@pytest.mark.parametrize("name", OURS)
def test_it_does_something_and_labels_follow_what_moves_only(name):
    before, after = applied(NONE), applied(always(name))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1]) is not OURS[name].spatial


@pytest.mark.parametrize("name", [name for name, row in OURS.items() if row.spatial])
def test_image_and_labels_are_read_at_the_same_places(name):
    """An image whose intensity is the label, 0 or 1: where it is nearly one of them, both must agree."""
    labels = torch.zeros(1, 20, 24, 22, dtype=torch.int16)
    labels[:, 4:16, 5:18, 6:17] = 1
    settings, grid = always(name), GRIDS["cubes"]
    image, moved = augment(labels[:, None].float(), labels, drawn(settings, samples=1, modalities=1), grid)
    sure = (image[:, 0] - image[:, 0].round()).abs() < 1e-3
    assert sure.float().mean() > 0.5
    assert torch.equal(image[:, 0].round()[sure & (moved >= 0)].short(), moved[sure & (moved >= 0)])


@pytest.mark.parametrize("name", OURS)
def test_the_key_decides_and_nothing_else(name):
    """Seed, epoch and step stand in the key: the same key gives the same bits, also beside other samples."""
    settings, grid = always(name), GRIDS["cubes"]
    image, labels = batch(3)
    keys = [(7, 2, 5, sample) for sample in range(3)]
    once, twice = (augment(image, labels, draw(settings, grid, modalities=2, keys=keys), grid) for _ in range(2))
    alone = augment(image[2:], labels[2:], draw(settings, grid, modalities=2, keys=keys[2:]), grid)
    later = augment(image, labels, draw(settings, grid, modalities=2, keys=[(7, 3, *k[2:]) for k in keys]), grid)
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[0][2:], alone[0])
    assert not torch.equal(once[0], later[0])


@pytest.mark.parametrize("name", OURS)
def test_nothing_happens_at_probability_0_and_at_strength_0(name):
    law(OURS[name], "identity")
    neutral = {key: s.neutral for key, s in OURS[name].settings.items() if s.neutral is not None}
    assert neutral, "an augmentation says at what strength it changes nothing, or why there is none"
    ranges = {key: [v, v] if isinstance(OURS[name].settings[key].default, tuple) else v for key, v in neutral.items()}
    before, never = applied(NONE), applied(always(name, probability=0.0))
    assert torch.equal(before[0], never[0])
    image, labels = applied(always(name, **ranges))
    torch.testing.assert_close(image, before[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, before[1])


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", OURS)
def test_it_happens_as_often_as_asked(name):
    row, samples = OURS[name], 1500
    parameters = drawn(NONE.but(**{name: {"probability": 0.3}}), samples=samples)
    if row.spatial:
        assert parameters.spatial.mean() == pytest.approx(0.3, abs=0.05)
        return
    each = row.settings["channel_probability"].default if "channel_probability" in row.settings else 1.0
    share = 1.0 if row.kind == "image" else 2 * each
    assert sum(map(len, parameters.changes)) / samples == pytest.approx(0.3 * share, abs=0.06)


@pytest.mark.parametrize("name", OURS)
def test_numbers_drawn_stay_in_their_range_and_reach_its_middle(name):
    parameters = drawn(always(name), samples=400)
    for key, setting in OURS[name].settings.items():
        values = [c.values[key] for changes in parameters.changes for c in changes if key in c.values]
        if values and isinstance(setting.default, tuple):
            low, high = setting.default
            assert low <= np.min(values) <= np.max(values) <= high or setting.default == (0.5, 1.0)
            assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.15 * (high - low))


@pytest.mark.parametrize("name", OURS)
def test_one_augmentation_moves_no_numbers_of_another_that_has_a_stream_of_its_own(name):
    alone = named_settings({"preset": "none", "support.own_augmentations.speckle": {"probability": 1.0}})
    beside = drawn(alone.but(**{f"{name}_probability": 1.0}))
    alone = drawn(alone)
    pick = [[c for c in changes if "speckle_std" in c.values] for changes in alone.changes]
    assert pick == [[c for c in changes if "speckle_std" in c.values] for changes in beside.changes]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", [name for name, row in OURS.items() if row.reach is not None])
def test_the_margin_holds_what_it_looks_at(name, grid):
    settings = always(name, **({"elastic_mm": 0.5} if name == "elastic" else {})).but(margin=10.0)
    if name == "rotation":
        settings = settings.but(rotation_deg=0.0)  # the margin is that of one axis at a time
    half = (np.array(crop_size(settings, GRIDS[grid], (500, 500, 500))) - 1) / 2
    corners = np.array(np.meshgrid(*[[-(size - 1) / 2, (size - 1) / 2] for size in PATCH])).reshape(3, -1)
    for affine in drawn(settings, grid, samples=50).affine:
        assert (np.abs(affine @ corners) <= half[:, None] + 1e-3).all()


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_described_and_refuses_what_is_out_of_its_bounds(name):
    text = inspect.getdoc(OURS[name].function)
    for key, setting in OURS[name].settings.items():
        assert key.endswith("probability") or f"{key}: " in text
        too_low = setting.bounds.low - 1
        wrong = [too_low, too_low] if isinstance(setting.default, tuple) else too_low
        if np.isfinite(too_low):
            with pytest.raises(ValueError, match=f"must be {setting.bounds}"):
                always(name, **{key: wrong})


def test_every_setting_has_one_name():
    """Two augmentations share a key only where they mean the same, as both gammas do."""
    keys = [key for row in OURS.values() for key in row.settings if not key.endswith("probability")]
    assert {key for key in keys if keys.count(key) > 1} == {"gamma"}


@pytest.mark.parametrize("name", ["speckle", "shear", "bulge"])
def test_ones_own_augmentation_is_named_by_its_path(name):
    path = f"support.own_augmentations.{name}"
    settings = named_settings({"preset": "light", path: {"probability": 1.0}})
    assert settings.noise_probability == 0.1
    assert PRESETS["light"] == named_settings("light"), "and is on only where it is named"
    image, _ = augment(*batch(), drawn(settings), GRIDS["cubes"])
    plain, _ = augment(*batch(), drawn(named_settings("light")), GRIDS["cubes"])
    assert not torch.equal(image, plain)
    once = named_settings({path: None})
    assert once.strengths[-1].row.name == name


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        ("nowhere.blur", UsageError, "data.augmentation: nowhere.blur cannot be imported"),
        (f"{__name__}.nothing", UsageError, "has no nothing"),
        (f"{__name__}.batch", ValueError, r"is no augmentation: put @augmentation\(...\)"),
    ],
)
def test_a_path_that_names_none(path, error, sentence):
    assert __name__ in sys.modules
    with pytest.raises(error, match=sentence):
        named_settings({path: {}})


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is an augmentation blur already"):

        @augmentation(probability=1.0)
        def blur(volume: Volume) -> None: ...


def test_what_is_filed_says_what_it_changes():
    with pytest.raises(TypeError, match="must change a Volume or an Image, or return a Matrix or a Field"):

        @augmentation(probability=1.0)
        def nothing(volume: int) -> None: ...
