"""Laws that every loss of the table keeps, in every mode it has; an exception is declared in its row, and must fail."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from medseg.losses import build_loss
from medseg.losses.knobs import checked_knobs
from medseg.losses.table import Row, rows

pytestmark = pytest.mark.sweep(5)

CELLS = [(row, mode) for row in rows().values() for mode in row.modes]
EVERY_CELL = pytest.mark.parametrize(("row", "mode"), CELLS, ids=lambda v: v.name if isinstance(v, Row) else v)
CHANNELS = {"multiclass": 3, "binary": 1, "multilabel": 2}
LAWS = {"crop", "mirror", "half", "rank"}


def law(test):
    """Run a test over every cell; where the row declares an exception, the test must fail."""
    name = test.__name__.removeprefix("test_").split("_")[0]
    assert name in LAWS

    @EVERY_CELL
    @functools.wraps(test)
    def run(row, mode):
        if name not in row.excepts and f"{name} {mode}" not in row.excepts:
            return test(row, mode)
        with pytest.raises(AssertionError):
            test(row, mode)
        return None

    return run


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


@law
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


@law
def test_mirror_images_cost_the_same(row, mode):
    logits, target = example(mode, dtype=torch.float64)
    loss = build_loss(row.name, mode=mode)
    for axis in (-1, -2, -3):
        torch.testing.assert_close(loss(logits.flip(axis), target.flip(axis)), loss(logits, target))


@law
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


@law
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
