"""Laws that every loss of the table keeps, in every mode it has; an exception is declared in its row, and must fail."""

from __future__ import annotations

import functools
from typing import Literal, get_args, get_origin

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from medseg.losses import build_loss
from medseg.losses.knobs import checked_knobs, knob_type
from medseg.losses.table import Row, rows

pytestmark = pytest.mark.sweep(14)

CELLS = [(row, mode) for row in rows().values() for mode in row.modes]
DISTANCES = [(row, mode) for row, mode in CELLS if row.cost == "distance"]


def named(value):
    return value.name if isinstance(value, Row) else value


EVERY_CELL = pytest.mark.parametrize(("row", "mode"), CELLS, ids=named)
CHANNELS = {"multiclass": 3, "binary": 1, "multilabel": 2}
LAWS = {"crop", "mirror", "half", "rank", "correct", "scale"}


def law(cells):
    """Run a test over cells; where the row declares an exception, the test must fail."""

    def over_cells(test):
        name = test.__name__.removeprefix("test_").split("_")[0]
        assert name in LAWS

        @pytest.mark.parametrize(("row", "mode"), cells, ids=named)
        @functools.wraps(test)
        def run(row, mode):
            if name not in row.excepts and f"{name} {mode}" not in row.excepts:
                return test(row, mode)
            with pytest.raises(AssertionError):
                test(row, mode)
            return None

        return run

    return over_cells


def example(mode, space=(8, 7, 6), batch=2, seed=0, dtype=torch.float32):
    """Logits and a target with blobs of every class in every sample, so that distances and skeletons exist."""
    generator = torch.Generator().manual_seed(seed)
    channels = CHANNELS[mode]
    logits = torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64).to(dtype)
    maps = torch.zeros(batch, max(channels, 3), *space, dtype=torch.long)
    for n in range(batch):
        maps[n, 0, 1:4, 1:4] = 1
        maps[n, 0, 6:, :2] = 1
        maps[n, 1, 4:7, 3 - n : 6] = 1
    if mode == "multiclass":
        return logits, maps[:, 0] + 2 * maps[:, 1]
    return logits, maps[:, :channels]


def value_and_gradient(loss, logits, target, **options):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target, **options)
    value.backward()
    return value.detach(), logits.grad


@EVERY_CELL
@pytest.mark.parametrize("space", [(8, 7), (8, 7, 6)], ids=["2d", "3d"])
def test_value_and_gradient_are_finite(row, mode, space):
    logits, target = example(mode, space)
    value, gradient = value_and_gradient(build_loss(row.name, mode=mode), 5 * logits, target)
    assert value.shape == ()
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@EVERY_CELL
def test_absent_and_full_classes_are_finite(row, mode):
    for fill in (0, 1):
        logits, target = example(mode)
        target = torch.full_like(target, fill)
        value, gradient = value_and_gradient(build_loss(row.name, mode=mode), logits, target)
        assert value.isfinite()
        assert gradient.isfinite().all()


@EVERY_CELL
def test_no_smoothing_is_finite(row, mode):
    """Whatever is added to a quotient may be 0: nothing over nothing is a number."""
    for name in (k for k, v in row.knobs.items() if k.startswith(("smooth", "eps")) and takes(row, k, 0) and v):
        for target in (example(mode)[1], 0 * example(mode)[1], 0 * example(mode)[1] + 1):
            try:
                value, gradient = value_and_gradient(
                    build_loss(f"{row.name}({name}=0)", mode=mode), example(mode)[0], target
                )
            except ValueError as error:
                assert name in str(error)  # noqa: PT017  it may be refused in a sentence
                continue
            assert value.isfinite()
            assert gradient.isfinite().all()


@EVERY_CELL
def test_one_voxel_volumes_are_finite(row, mode):
    logits, target = example(mode)
    one = (slice(None), slice(None), *[slice(2, 3)] * 3)
    target = target[:, 2:3, 2:3, 2:3] if mode == "multiclass" else target[one]
    value, gradient = value_and_gradient(build_loss(row.name, mode=mode), logits[one], target)
    assert value.isfinite()
    assert gradient.isfinite().all()


@EVERY_CELL
def test_perfect_and_reversed_predictions_are_finite(row, mode):
    _, target = example(mode)
    maps = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) if mode == "multiclass" else target
    sure = (maps.float() * 2 - 1) * 200
    loss = build_loss(row.name, mode=mode)
    right, at_right = value_and_gradient(loss, sure, target)
    wrong, at_wrong = value_and_gradient(loss, -sure, target)
    assert right.isfinite()
    assert wrong.isfinite()
    assert at_right.isfinite().all()
    assert at_wrong.isfinite().all()
    if row.alone:
        assert right <= wrong


@EVERY_CELL
def test_everything_ignored_costs_nothing(row, mode):
    logits, target = example(mode)
    loss = build_loss(row.name, mode=mode, ignore_index=255)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(target, 255))
    assert value == 0
    assert (gradient == 0).all()


@EVERY_CELL
def test_an_ignored_sample_is_finite_and_still(row, mode):
    logits, target = example(mode)
    target[1] = 255
    value, gradient = value_and_gradient(build_loss(row.name, mode=mode, ignore_index=255), logits, target)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


@EVERY_CELL
def test_ignored_voxels_have_no_gradient_and_no_say(row, mode):
    logits, target = example(mode)
    target[..., :2] = -1
    loss = build_loss(row.name, mode=mode, ignore_index=-1)
    value, gradient = value_and_gradient(loss, logits, target)
    assert (gradient[..., :2] == 0).all()
    logits[..., :2] = torch.randn_like(logits[..., :2])
    torch.testing.assert_close(loss(logits, target), value)


@law(CELLS)
def test_crop_equals_ignoring(row, mode):
    logits, target = example(mode, dtype=torch.float64)
    loss, plain = build_loss(row.name, mode=mode, ignore_index=7), build_loss(row.name, mode=mode)
    expected = plain(logits[..., 2:], target[..., 2:])
    target[..., :2] = 7
    torch.testing.assert_close(loss(logits, target), expected)


@EVERY_CELL
def test_sample_order_does_not_matter(row, mode):
    logits, target = example(mode, dtype=torch.float64)
    loss = build_loss(row.name, mode=mode)
    torch.testing.assert_close(loss(logits.flip(0), target.flip(0)), loss(logits, target))


@law(CELLS)
def test_mirror_images_cost_the_same(row, mode):
    logits, target = example(mode, dtype=torch.float64)
    loss = build_loss(row.name, mode=mode)
    for axis in (-1, -2, -3):
        torch.testing.assert_close(loss(logits.flip(axis), target.flip(axis)), loss(logits, target))


@law(CELLS)
def test_half_precision_logits_agree(row, mode):
    loss = build_loss(row.name, mode=mode)
    for scale in (1.0, 30.0, 1e4):
        logits, target = example(mode)
        logits = logits / logits.abs().max() * scale
        for dtype in (torch.float16, torch.bfloat16):
            rounded = logits.to(dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value, gradient = value_and_gradient(loss, rounded, target)
            expected, _ = value_and_gradient(loss, rounded.float(), target)
            assert gradient.dtype == dtype
            assert gradient.isfinite().all()
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(value, value_and_gradient(loss, logits, target)[0], rtol=1e-2, atol=1e-4)


@law(CELLS)
def test_rank_of_the_knobs_is_full(row, mode):
    """No two numeric knobs are one: the derivatives by the knobs, over random inputs, are linearly independent."""
    knobs = {k: v for k, v in row.knobs.items() if isinstance(v, float) and not k.startswith(("smooth", "eps"))}
    pairs = (example(mode, (8, 7), seed=seed, dtype=torch.float64) for seed in range(len(knobs) + 2))
    examples = [(8 * logits, target) for logits, target in pairs]

    def values(**changed):
        text = ", ".join(f"{k}={v!r}" for k, v in {**knobs, **changed}.items())
        loss = build_loss(f"{row.name}({text})", mode=mode)
        return torch.stack([loss(*pair).detach() for pair in examples])

    changes = [values(**{k: v * 1.2 + 0.1 * (v == 0)}) - values(**{k: v * 0.8}) for k, v in knobs.items()]
    if knobs:
        directions = torch.stack([change / change.norm().clamp_min(1e-9) for change in changes], 1)
        assert torch.linalg.svdvals(directions).min() > 1e-6


STREAMED = [row for row in rows().values() if row.cost == "streamed" and "multiclass" in row.modes]


@pytest.mark.parametrize("row", STREAMED, ids=lambda row: row.name)
def test_streamed_losses_keep_no_map_per_class(row):
    """Beside the logits themselves, the graph holds maps of single voxels only."""
    classes, space = 40, (12, 12, 12)
    logits = torch.randn(1, classes, *space, requires_grad=True)
    target = torch.randint(0, classes, (1, *space))
    kept = {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(remember, lambda tensor: tensor):
        value = build_loss(row.name)(logits, target)
    kept.pop(logits.untyped_storage().data_ptr(), None)
    assert value.requires_grad
    assert sum(kept.values()) < logits.nbytes / 2


@pytest.mark.parametrize("row", rows().values(), ids=lambda r: r.name)
def test_rows_are_complete(row):
    assert {key.split()[0] for key in row.excepts} <= LAWS
    assert checked_knobs(row, dict(row.knobs)) == row.knobs
    text = row.function.__doc__
    assert "Equation:" in text
    assert row.paper
    assert set(row.handles) <= {"imbalance", "small", "boundary", "missing"}
    assert row.cost in ("streamed", "maps", "distance", "sort")


# ---------------------------------------------------------------------------------------------- millimetres

SPACINGS = (None, (0.03, 0.03), (0.3, 0.12), (1.0, 5.0), (3.0, 3.0), (30.0, 12.0))


def shapes(mode):
    """A target in the plane, and what may be predicted of it: itself, less, more, elsewhere, nothing, all, noise."""
    target = example(mode, (14, 13), batch=1)[1]
    maps = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) if mode == "multiclass" else target
    organs = maps[:, 1:].double() if mode == "multiclass" else maps.double()
    pool = functools.partial(torch.nn.functional.max_pool2d, kernel_size=3, stride=1, padding=1)
    noise = torch.rand(organs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    found = [organs, 1 - pool(1 - organs), pool(organs), organs.roll(2, -1), 0 * organs, 0 * organs + 1, noise]
    if mode == "multiclass":
        found = [torch.cat([0.5 + 0 * organs[:, :1], organs], 1) for organs in found]
    return target, maps, [(2 * organs - 1) * 12 for organs in found]


@law(DISTANCES)
def test_scale_of_millimetres_moves_no_minimum(row, mode):
    """Whatever the unit and the shape of voxels, no other prediction is the best: of a distance-based loss, too."""
    target, _, predictions = shapes(mode)
    loss = build_loss(row.name, mode=mode)
    for spacing in SPACINGS:
        right, *others = (loss(prediction, target, spacing) for prediction in predictions)
        assert right <= min(others) + 1e-4 * max(others).abs()


@law(DISTANCES)
def test_correct_voxels_cost_nothing_at_any_spacing(row, mode):
    """A voxel that is right and becomes surer never raises a distance-based loss."""
    target, maps, _ = shapes(mode)
    loss = build_loss(row.name, mode=mode)
    generator = torch.Generator().manual_seed(1)
    for spacing in SPACINGS:
        right = (2.0 * maps - 1) * (0.5 + 3 * torch.rand(maps.shape, generator=generator, dtype=torch.float64))
        _, gradient = value_and_gradient(loss, right, target, spacing_mm=spacing)
        assert (gradient * maps).max() <= 1e-9
        assert mode == "multiclass" or (gradient * (maps - 1)).max() <= 1e-9


# ---------------------------------------------------------------------------------------------- knobs and precision

OTHER_LISTS = {
    "weight": [5.0, 1.0, 2.0],
    "class_weight": [1.0, 2.0, 5.0],
    "low": [1e3, 1e3, 1e3],
    "high": [1.0, 1.0, 1.0],
    "dist_matrix": [[0, 1, 1], [1, 0, 0.2], [1, 0.2, 0]],
}
OTHER_NUMBERS = {"max_points": 2, "connectivity": 1, "pos_weight": 3.0, "beta": 0.3, "alpha": [0.3, 0.6, 0.8]}
OTHERS = {
    ("topk_cross_entropy", "k"): 50.0,
    ("dice_topk", "k"): 50.0,
    ("weighted_hausdorff", "p_exponent"): -3.0,
    ("cldice", "iterations"): 0,
    ("dice_cldice", "iterations"): 0,
    ("cbdice", "iterations"): 0,
    ("blob", "criterion"): "bce",
    ("generalized_wasserstein_dice", "background"): 1,
    ("nacl", "kernel_size"): 5,
    ("ohem_cross_entropy", "min_kept"): 3,
    ("l1_ace", "bins"): 3,
    ("logit_margin", "margin"): 0.5,
    ("hausdorff_er", "erosions"): 1,
    ("hybrid_focal", "focal_alpha"): [0.3, 0.6, 0.8],
    ("cc_dice_ce", "smooth"): 500.0,
}


def others(row, name, default, channels):
    """Other values of a knob than its default."""
    if (row.name, name) in OTHERS:
        return [OTHERS[row.name, name]]
    kind = knob_type(row, name)
    literals = [v for form in (kind, *get_args(kind)) if get_origin(form) is Literal for v in get_args(form)]
    values = [not default] if isinstance(default, bool) else [v for v in literals if v != default]
    if default is None or (name in ("alpha", "w_type", "dist_matrix") and not isinstance(default, float)):
        if name in OTHER_LISTS:
            values.append(OTHER_LISTS[name] if name == "dist_matrix" else OTHER_LISTS[name][:channels])
        elif name in OTHER_NUMBERS:
            found = OTHER_NUMBERS[name]
            values.append(found[:channels] if isinstance(found, list) else found)
    elif isinstance(default, float) and not isinstance(default, bool):
        values += [v for v in (default * 0.7, default * 1.4 + 0.05, default - 0.5) if takes(row, name, v)]
    elif isinstance(default, int) and not isinstance(default, bool):
        values += [default + 1]
    return values


def takes(row, name, value):
    try:
        return bool(checked_knobs(row, {name: value}))
    except ValueError:
        return False


SEEN_ELSEWHERE = {
    "soft_target": "it is the same for hard targets",
    "connectivity": "no blob of these examples touches another over a corner only",
    "ohem_cross_entropy.threshold": "the examples have fewer voxels than are kept in any case",
    "hausdorff_er.erosions": "no error of these examples survives the first erosion",
    "pool": "the examples are too small to be averaged",
    "limit": "no structure of these examples is large for its outline",
    "include_ignored": "nothing is ignored in these examples, and it asks for bounds",
}
"""Knobs that need other inputs, and the reason."""


@pytest.mark.parametrize("row", rows().values(), ids=lambda row: row.name)
def test_every_knob_changes_something(row):
    """Whatever a knob's type: there is a mode and an input on which another value of it gives another result."""
    inert = {name for name in row.knobs if not {name, f"{row.name}.{name}"} & set(SEEN_ELSEWHERE)}
    for mode in row.modes:
        some = {"weight": [1.0, 2.0, 5.0][: CHANNELS[mode]]} if "weight" in row.knobs else {}
        for seed, scale in ((0, 1.0), (1, 8.0)):
            logits, target = example(mode, (8, 7), seed=seed, dtype=torch.float64)
            for ask in (target, _without_the_last_class(target, mode)):
                call = functools.partial(_called, row, mode, scale * logits, ask)
                plain = call(**some)
                for name in sorted(inert):
                    for value in others(row, name, row.knobs[name], CHANNELS[mode]):
                        changed = call(**{**some, name: value})
                        if changed is not None and not torch.equal(changed, plain):
                            inert.discard(name)
    assert not inert


def _without_the_last_class(target, mode):
    """An input with absent classes."""
    if mode == "multiclass":
        return target.masked_fill(target == 2, 0)
    target = target.clone()
    target[0, -1] = 0
    return target


def _called(row, mode, logits, target, **knobs):
    text = ", ".join(f"{name}={value!r}" for name, value in knobs.items())
    try:
        return build_loss(f"{row.name}({text})", mode=mode)(logits, target)
    except ValueError:
        return None  # a knob of other modes


@EVERY_CELL
def test_a_class_that_fills_a_patch_costs_the_same_in_single_precision(row, mode):
    side = 48 if row.cost == "streamed" else 12
    generator = torch.Generator().manual_seed(0)
    channels = CHANNELS[mode]
    logits = torch.randn(1, channels, side, side, side, generator=generator, dtype=torch.float64)
    for fill in (0, 1):
        target = torch.full((1, side, side, side) if mode == "multiclass" else tuple(logits.shape), fill)
        loss = build_loss(row.name, mode=mode)
        exact, rough = (value_and_gradient(loss, logits.to(kind), target) for kind in (torch.float64, torch.float32))
        torch.testing.assert_close(rough[0].double(), exact[0], rtol=2e-4, atol=1e-6)
        torch.testing.assert_close(rough[1].double(), exact[1], rtol=2e-3, atol=1e-4 * exact[1].abs().max().item())
