"""The losses of shape: against peers and closed forms, and what cutting and precomputing must not change."""

from __future__ import annotations

import inspect
import math

import monai.losses
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import one_hot

from medseg.losses import build_loss
from medseg.losses.contours import surfaces
from medseg.losses.inputs import compare
from medseg.losses.instances import one_vs_rest
from medseg.losses.masks import signed_map, target_masks
from medseg.losses.table import rows
from medseg.losses.thinning import soft_skeleton
from medseg.losses.weight_maps import gap_weight

SHAPE = [
    "hausdorff_dt", "log_hausdorff_dt", "hausdorff_er", "weighted_hausdorff", "boundary", "shape_aware", "cldice",
    "dice_cldice", "skeleton_recall", "dice_ce_skeleton_recall", "blob", "unet_weighted_cross_entropy",
    "distance_penalized_ce",
]  # fmt: skip
SPACES = {"2d": (8, 9), "3d": (6, 7, 5)}


def example(mode: str, space: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Logits and a target with lumps rather than noise, so that there are shapes to compare."""
    generator = torch.Generator().manual_seed(seed)
    channels = 1 if mode == "binary" else 3
    pool = torch.nn.functional.avg_pool2d if len(space) == 2 else torch.nn.functional.avg_pool3d
    truth = pool(torch.randn(2, channels, *space, generator=generator, dtype=dtype), 3, 1, 1)
    logits = 4 * truth + torch.randn(2, channels, *space, generator=generator, dtype=dtype)
    return logits.requires_grad_(), truth.argmax(1) if mode == "multiclass" else (truth > 0.1).long()


def value_and_gradient(expression: str, mode: str, logits: torch.Tensor, target: torch.Tensor, **options):
    leaf = logits.detach().clone().requires_grad_()
    at_door = {name: options.pop(name) for name in ("ignore_index", "reduction") if name in options}
    value = build_loss(expression, mode=mode, **at_door)(leaf, target, **options)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


EVERY = [(name, mode, "2d" if mode == "binary" else "3d") for name in SHAPE for mode in rows()[name].modes]


def every(test):
    """Of each loss of shape, in each mode."""
    return pytest.mark.sweep(3)(pytest.mark.parametrize(("name", "mode", "space"), EVERY, ids=lambda part: part)(test))


# ---------------------------------------------------------------------------------------------- laws of shape


@every
def test_ignoring_a_slab_is_cutting_it_away(name, mode, space):
    logits, target = example(mode, SPACES[space])
    target[..., -2:] = 255
    value, gradient = value_and_gradient(name, mode, logits, target, ignore_index=255)
    cut_value, cut_gradient = value_and_gradient(name, mode, logits[..., :-2], target[..., :-2])
    torch.testing.assert_close(value, cut_value)
    torch.testing.assert_close(gradient[..., :-2], cut_gradient)
    assert not gradient[..., -2:].any()


@every
def test_scattered_and_complete_ignoring_leave_finite_values(name, mode, space):
    logits, target = example(mode, SPACES[space])
    target[torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
    target[1] = 255
    value, gradient = value_and_gradient(name, mode, logits, target, ignore_index=255)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    value, gradient = value_and_gradient(name, mode, logits, torch.full_like(target, 255), ignore_index=255)
    assert value == 0
    assert not gradient.any()


@every
def test_extreme_targets_and_logits_are_finite(name, mode, space):
    logits, target = example(mode, SPACES[space])
    corner = (Ellipsis, *[slice(0, 1)] * len(SPACES[space]))
    large = (logits.detach() * 3000).clamp(-1e4, 1e4).half()
    for z, t in [(logits, target * 0), (logits, target * 0 + 1), (logits[corner], target[corner]), (large, target)]:
        value, gradient = value_and_gradient(name, mode, z, t)
        assert value.isfinite()
        assert gradient.isfinite().all()
    torch.testing.assert_close(value, value_and_gradient(name, mode, large.float(), target)[0], rtol=1e-2, atol=1e-6)


@every
def test_ones_as_voxel_weights_change_nothing_and_zeros_ignore(name, mode, space):
    logits, target = example(mode, SPACES[space])
    plain, _ = value_and_gradient(name, mode, logits, target)
    ones = torch.ones(2, *SPACES[space])
    torch.testing.assert_close(value_and_gradient(name, mode, logits, target, voxel_weight=ones)[0], plain)
    ones[..., -2:] = 0
    unseen = target.clone()
    unseen[..., -2:] = 255
    weighted, _ = value_and_gradient(name, mode, logits, target, voxel_weight=ones)
    if name in ("log_hausdorff_dt", "hausdorff_dt", "boundary", "weighted_hausdorff", "shape_aware"):
        torch.testing.assert_close(weighted, value_and_gradient(name, mode, logits, unseen, ignore_index=255)[0])
    assert weighted.isfinite()


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", [name for name in SHAPE if "include_background" in rows()[name].knobs])
def test_background_enters_only_when_asked_for(name):
    logits, target = example("multiclass", SPACES["2d"])
    without, _ = value_and_gradient(name, "multiclass", logits, target)
    with_it, _ = value_and_gradient(f"{name}(include_background=True)", "multiclass", logits, target)
    assert name == "hausdorff_er" or not torch.isclose(without, with_it)
    if "weight" in rows()[name].knobs and name != "dice_ce_skeleton_recall":
        zero, _ = value_and_gradient(f"{name}(include_background=True, weight=[0, 2, 2])", "multiclass", logits, target)
        torch.testing.assert_close(zero, without)


# ---------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 2.5])
def test_hausdorff_agrees_with_monai(space, alpha):
    logits, target = example("multiclass", SPACES[space], dtype=torch.float32)
    options = {"include_background": False, "softmax": True, "to_onehot_y": True, "alpha": alpha}
    ours = value_and_gradient(f"hausdorff_dt(alpha={alpha})", "multiclass", logits, target)
    leaf = logits.detach().requires_grad_()
    theirs = monai.losses.HausdorffDTLoss(**options)(leaf, target[:, None])
    torch.testing.assert_close(ours[0], theirs.detach())
    torch.testing.assert_close(ours[1], torch.autograd.grad(theirs, leaf)[0])
    ours = value_and_gradient(f"log_hausdorff_dt(alpha={alpha})", "multiclass", logits, target)[0]
    torch.testing.assert_close(ours, monai.losses.LogHausdorffDTLoss(**options)(leaf, target[:, None]).detach())


@pytest.mark.skipif(not hasattr(monai.losses, "BoundaryLoss"), reason="this MONAI has no boundary loss yet")
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("background", [True, False])
def test_boundary_agrees_with_monai(space, background):
    logits, target = example("multiclass", SPACES[space], dtype=torch.float32)
    peer = monai.losses.BoundaryLoss(softmax=True, to_onehot_y=True, include_background=background)
    ours, _ = value_and_gradient(f"boundary(include_background={background})", "multiclass", logits, target)
    torch.testing.assert_close(ours, peer(logits.detach(), target[:, None]))


@pytest.mark.skipif(
    "sigmoid" not in inspect.signature(monai.losses.SoftclDiceLoss).parameters, reason="this MONAI has no activation"
)
def test_centre_lines_of_one_channel_agree_with_monai():
    logits, target = example("binary", SPACES["3d"])
    peer = monai.losses.SoftclDiceLoss(iter_=3, sigmoid=True, smooth=1e-15)
    torch.testing.assert_close(build_loss("cldice", mode="binary")(logits, target), peer(logits, target.double()))


# ---------------------------------------------------------------------------------------------- closed forms


def plate(low: int, high: int, length: int = 12) -> torch.Tensor:
    """A strip of ones on a 3-wide plane, from column low to high."""
    target = torch.zeros(1, 3, length, dtype=torch.long)
    target[..., low:high] = 1
    return target


def surely(target: torch.Tensor, sureness: float = 200.0) -> torch.Tensor:
    """Binary logits that say the target without a doubt."""
    return ((2.0 * target - 1) * sureness).double().unsqueeze(1)


@pytest.mark.parametrize("spacing", [None, (1.0, 2.5), (0.5, 0.3)])
def test_boundary_of_a_strip_counts_its_signed_columns(spacing):
    h, step = (1.0, 1.0) if spacing is None else (min(spacing), spacing[1])
    target, predicted = plate(4, 8), plate(3, 8)
    value = build_loss("boundary", mode="binary")(surely(predicted), target, spacing)
    inside = [h - step, h - 2 * step, h - 2 * step, h - step]
    assert value.item() == pytest.approx((step + sum(inside)) / 12)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_hausdorff_of_two_strips_counts_the_wrong_column(alpha):
    target, predicted = plate(4, 8), plate(2, 8)  # columns 2 and 3 are wrong, 2 and 1 from the target's border
    expected = ((2**alpha + 1) + (1 + 2**alpha)) / 12  # and 1 and 2 from the prediction's
    for expression, part in [("hausdorff_dt", 1.0), ("hausdorff_dt(one_sided=True)", 0.5)]:
        knob = f"alpha={alpha}" if "(" not in expression else f", alpha={alpha}"
        text = f"{expression}({knob})" if "(" not in expression else expression[:-1] + knob + ")"
        assert build_loss(text, mode="binary")(surely(predicted), target).item() == pytest.approx(part * expected)


def test_right_predictions_cost_nothing():
    _, target = example("multiclass", SPACES["3d"])
    sure = one_hot(target, 3).movedim(-1, 1).double() * 400
    ce = build_loss("cross_entropy")(sure, target)
    for name in ("hausdorff_dt", "log_hausdorff_dt", "hausdorff_er", "cldice", "skeleton_recall"):
        assert build_loss(name)(sure, target).item() == pytest.approx(0, abs=1e-9)
    for name in ("shape_aware", "distance_penalized_ce"):
        torch.testing.assert_close(build_loss(name)(sure, target), ce)


def test_the_blind_spot_of_hausdorff_is_there_as_documented():
    logits = torch.full((1, 1, 6, 6), -0.1, dtype=torch.float64)
    value, gradient = value_and_gradient("hausdorff_dt", "binary", logits, torch.zeros(1, 6, 6, dtype=torch.long))
    assert value == 0
    assert not gradient.any()


def test_erosion_without_stretching_dies_after_one_step_and_has_a_gradient():
    target, predicted = plate(0, 0, 12), plate(2, 11, 12)
    one = build_loss("hausdorff_er(erosions=1, renormalize=False)", mode="binary")(surely(predicted), target)
    many = build_loss("hausdorff_er(erosions=5, renormalize=False)", mode="binary")(surely(predicted), target)
    torch.testing.assert_close(one, many)
    inner = 7  # full crosses in the middle row keep 1/2, its two ends 4/5 - 1/2, both outer rows 4/5 - 1/2 or 3/5 - 1/2
    assert one.item() == pytest.approx((inner * 0.5 + 2 * 0.3 + 2 * (inner * 0.3 + 2 * 0.1)) / 36)
    value, gradient = value_and_gradient("hausdorff_er", "binary", surely(predicted, 1.5), target)
    assert value > 0
    assert gradient.any()


def test_a_sharp_exponent_makes_weighted_hausdorff_the_average_hausdorff_distance():
    target, predicted = plate(4, 8), plate(6, 11)
    value = build_loss("weighted_hausdorff(p_exponent=-400)", mode="binary")(surely(predicted), target)
    there, here = np.argwhere(target[0].numpy()), np.argwhere(predicted[0].numpy())
    pairs = np.linalg.norm(there[:, None] - here, axis=2)
    assert value.item() == pytest.approx(pairs.min(0).mean() + pairs.min(1).mean(), rel=0.02)


@pytest.mark.parametrize("exponent", [-1.0, -3.0])
def test_weighted_hausdorff_is_its_formula(exponent):
    logits, target = example("binary", SPACES["3d"])
    spacing = (3.0, 1.0, 0.5)
    p = logits.detach().sigmoid()[:, 0]
    grid = np.argwhere(np.ones(SPACES["3d"])) * spacing
    room = np.linalg.norm(np.multiply(SPACES["3d"], spacing))
    expected = []
    for n in range(2):
        distance = np.linalg.norm(grid[:, None] - np.argwhere(target[n, 0].numpy()) * spacing, axis=2)
        q = p[n].flatten().numpy()
        f = q[:, None] * distance + (1 - q[:, None]) * room + 1e-6
        first = (q * distance.min(1)).sum() / (q.sum() + 1e-6)
        expected.append(first + ((f**exponent).mean(0) ** (1 / exponent)).mean())
    loss = build_loss(f"weighted_hausdorff(p_exponent={exponent})", mode="binary")
    assert loss(logits, target, spacing).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_weighted_hausdorff_survives_the_authors_exponent_in_single_precision():
    target = plate(4, 8)
    value, gradient = value_and_gradient("weighted_hausdorff(p_exponent=-9)", "binary", surely(target).float(), target)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_points_can_be_thinned(monkeypatch):
    monkeypatch.setattr("medseg.losses.contours.PAIRS", {"cpu": 100})
    logits, target = example("binary", SPACES["2d"])
    loss = {knob: build_loss(f"weighted_hausdorff({knob})", mode="binary") for knob in ("", "max_points=500")}
    torch.testing.assert_close(*[term(logits, target) for term in loss.values()])
    few = build_loss("weighted_hausdorff(max_points=3, points='boundary')", mode="binary")(logits, target)
    assert few.isfinite()
    assert few != loss[""](logits, target)


def test_an_absent_class_is_left_out_of_weighted_hausdorff_or_costs_the_diagonal():
    logits, target = example("binary", (3, 4))
    target[0, 0, 1], target[1] = 1, 0
    first = build_loss("weighted_hausdorff", mode="binary")(logits[:1], target[:1])
    torch.testing.assert_close(build_loss("weighted_hausdorff", mode="binary")(logits, target), first)
    kept = build_loss("weighted_hausdorff(absent='keep')", mode="binary")(logits, target)
    torch.testing.assert_close(kept, (first + 5) / 2)


def test_shape_aware_is_cross_entropy_times_one_plus_the_contours_distance():
    target, predicted = plate(0, 6), plate(0, 8)  # strips reach three edges: contours are their rims
    logits = surely(predicted, 2.0)
    ce = build_loss("cross_entropy", mode="binary")(logits, target)
    rim = [np.argwhere(surfaces(strip[None].bool())[0, 0].numpy()) for strip in (predicted, target)]
    error = np.linalg.norm(rim[0][:, None] - rim[1], axis=2).min(1).mean()
    wrong = 2 / 12 * math.log1p(math.exp(2))
    value = build_loss("shape_aware", mode="binary")(logits, target)
    assert value.item() == pytest.approx(ce.item() + error * wrong)
    everywhere = build_loss("shape_aware(region='all')", mode="binary")(logits, target)
    assert everywhere.item() == pytest.approx(ce.item() * (1 + error))


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
def test_distance_penalty_lies_between_one_and_two_cross_entropies(mode):
    logits, target = example(mode, SPACES["3d"])
    ce, penalised = (build_loss(name, mode=mode)(logits, target) for name in ("cross_entropy", "distance_penalized_ce"))
    assert ce < penalised < 2 * ce
    target[:] = 0
    ce, penalised = (build_loss(name, mode=mode)(logits, target) for name in ("cross_entropy", "distance_penalized_ce"))
    torch.testing.assert_close(ce, penalised)


def test_a_strip_thin_enough_to_be_all_border_counts_double():
    target, logits = plate(5, 6, 11), torch.zeros(1, 2, 3, 11, dtype=torch.float64)
    sides = [1 - step / 4 for step in (4, 3, 2, 1, 0)]  # five columns on each side, 1 at the strip, 0 at the edge
    expected = math.log(2) * (1 + (1 + 2 * sum(sides)) / 11)
    assert build_loss("distance_penalized_ce")(logits, target).item() == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------- instances


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_one_instance_makes_unet_weights_ones_and_blob_a_multiple(mode):
    logits = example(mode, (6, 12))[0][:1]
    target = plate(3, 9).repeat(1, 2, 1)
    ce = build_loss("cross_entropy", mode=mode)(logits, target)
    torch.testing.assert_close(build_loss("unet_weighted_cross_entropy", mode=mode)(logits, target), ce)
    torch.testing.assert_close(
        build_loss("unet_weighted_cross_entropy(w0=3)", mode=mode)(logits, target * 0),
        (build_loss("cross_entropy", mode=mode)(logits, target * 0)),
    )
    binary = example("binary", (6, 12))[0][:1]
    for criterion, whole in [("dice", "dice"), ("bce", "bce"), ("dice_bce", "dice + bce"), ("tversky", "tversky")]:
        blob = build_loss(f"blob(criterion={criterion!r}, alpha=1.5, beta=0.7)", mode="binary")(binary, target)
        torch.testing.assert_close(blob, 2.2 * build_loss(whole, mode="binary")(binary, target))


def test_gap_weights_are_the_paper_s_between_two_bars():
    instances = np.zeros((3, 9), dtype=np.int64)
    instances[:, :2], instances[:, 6:] = 7, 2
    column = np.arange(9)
    first = np.where(column < 2, 0, column - 1)
    second = np.where(column >= 6, np.minimum(column - 6, 8 - column), 6 - column)
    # the rims: the left bar is all rim; of the right one only the middle voxel is not, one away from its rim
    expected = np.exp(-((first + second) ** 2) / (2 * 4.0))
    np.testing.assert_allclose(gap_weight(instances, (1.0, 1.0), 2.0)[1], expected, rtol=1e-12)
    assert not gap_weight(instances // 7, (1.0, 1.0), 2.0).any()


def test_far_instances_are_measured_only_as_far_as_they_reach():
    rng = np.random.default_rng(0)
    instances, _ = ndimage.label(rng.random((40, 60)) > 0.97)
    near = np.stack([ndimage.distance_transform_edt(instances != name) for name in range(1, instances.max() + 1)])
    d1, d2 = np.sort(near, axis=0)[:2]  # single voxels and pairs: every voxel is border
    np.testing.assert_allclose(gap_weight(instances, (1.0, 1.0), 0.8), np.exp(-((d1 + d2) ** 2) / 1.28), atol=1e-18)


def test_unet_knobs():
    logits, target = example("multiclass", SPACES["2d"])
    objects = target > 0
    plain = build_loss("unet_weighted_cross_entropy(w0=0, class_weight=[1, 2, 3], normalize='weights')")
    peer = torch.nn.functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 2, 3], dtype=torch.float64))
    torch.testing.assert_close(plain(logits, target), peer)
    pair = build_loss("unet_weighted_cross_entropy(w0=0, class_weight=[1, 4])", mode="binary")
    bce = build_loss("bce(pos_weight=4)", mode="binary")
    torch.testing.assert_close(pair(logits[:, :1], objects), bce(logits[:, :1], objects))
    instances = ndimage.label(objects.numpy(), np.pad(np.ones((1, 3, 3)), ((1, 1), (0, 0), (0, 0))))[0]
    given = {"instances": torch.from_numpy(instances).long()}
    loss = build_loss("unet_weighted_cross_entropy(background_only=True)")
    torch.testing.assert_close(loss(logits, target, **given), loss(logits, target))
    assert loss(logits, target) < build_loss("unet_weighted_cross_entropy")(logits, target)
    per_sample = build_loss("unet_weighted_cross_entropy", reduction="none")(logits, target)
    torch.testing.assert_close(per_sample.mean(), build_loss("unet_weighted_cross_entropy")(logits, target))


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("ignore", [False, True])
def test_blobs_in_one_pass_are_blobs_one_by_one(monkeypatch, mode, ignore):
    logits, target = example(mode, SPACES["3d"], seed=4)
    if ignore:
        target[:, ..., :2] = 255
    for criterion in ("dice", "bce"):
        loss = build_loss(f"blob(criterion={criterion!r})", mode=mode, ignore_index=255)
        quick = loss(logits, target)
        monkeypatch.setattr("medseg.losses.instances.FAST", ())
        torch.testing.assert_close(loss(logits, target), quick)
        monkeypatch.undo()


def test_one_against_the_rest_is_exact_in_both_tails():
    logits = torch.tensor([[1000.0, 0.0, -3.0], [-1000.0, 0.0, 0.0]], dtype=torch.float64).reshape(2, 3, 1, 1)
    x = compare(logits, torch.zeros(2, 1, 1, dtype=torch.long), mode="multiclass")
    rest = one_vs_rest(x, 0).flatten(1)
    torch.testing.assert_close(rest[0, 0].item(), 1000 - math.log(1 + math.exp(-3)))
    torch.testing.assert_close(rest[1, 0].item(), -1000 - math.log(2))
    torch.testing.assert_close(rest[1, 1].item(), 0.0)


# ---------------------------------------------------------------------------------------------- maps made beforehand


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["boundary", "hausdorff_dt", "log_hausdorff_dt", "distance_penalized_ce"])
def test_distance_maps_given_are_those_computed(name, mode, space):
    logits, target = example(mode, SPACES[space])
    target[1] = 1  # full, and for the other classes absent
    spacing = (2.0, 1.0, 0.5)[: len(SPACES[space])]
    x = compare(logits, target, mode=mode, spacing_mm=spacing)
    phi = signed_map(x, target_masks(x, 0), 0)
    loss = build_loss(name, mode=mode)
    torch.testing.assert_close(loss(logits, target, spacing, distance_map=phi), loss(logits, target, spacing))
    assert name.endswith("hausdorff_dt") or torch.equal(  # nothing else is measured
        loss(logits, target, distance_map=phi), loss(logits, target, spacing, distance_map=phi)
    )


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
def test_instances_given_are_those_computed(mode):
    logits, target = example(mode, SPACES["2d"])
    maps = one_hot(target, 3).movedim(-1, 1)[:, 1:] if mode == "multiclass" else target
    numbered = torch.zeros(2, logits.shape[1], *SPACES["2d"], dtype=torch.long)
    for n, c in np.ndindex(*maps.shape[:2]):
        names, _ = ndimage.label(maps[n, c].numpy(), np.ones((3, 3)))
        numbered[n, c + (mode == "multiclass")] = torch.from_numpy(names * 5).long()  # any numbers will do
    loss = build_loss("blob", mode=mode)
    torch.testing.assert_close(loss(logits, target, instances=numbered), loss(logits, target))
    if mode == "multiclass":
        torch.testing.assert_close(loss(logits, target, instances=numbered.sum(1)), loss(logits, target))


def test_touching_instances_are_told_apart_only_when_given():
    logits, target = example("binary", (3, 12))[0][:1], plate(2, 10)
    instances = plate(2, 10)
    instances[..., 6:10] = 2
    loss = build_loss("blob", mode="binary")
    p = logits.detach().sigmoid()[0, 0]
    halves = []
    for name, other in [(1, 2), (2, 1)]:
        q, g = p * (instances[0] != other), (instances[0] == name).double()
        halves.append(1 - (2 * (q * g).sum() + 1e-5) / (q.sum() + g.sum() + 1e-5))
    whole = build_loss("dice", mode="binary")(logits, target)
    torch.testing.assert_close(loss(logits, target, instances=instances), 2 * whole + sum(halves) / 2)
    assert not torch.isclose(loss(logits, target), 2 * whole + sum(halves) / 2)


@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_skeletons_given_per_channel_or_as_class_indices(mode):
    logits, target = example(mode, SPACES["3d"])
    indices = torch.zeros(2, *SPACES["3d"], dtype=torch.long)
    indices[:, 2, 2:5, 1:3] = 1
    if mode == "multiclass":
        indices[:, 4, 2:5, 1:3] = 2
        maps = one_hot(indices, 3).movedim(-1, 1)
    else:
        maps = indices.unsqueeze(1)
    p = logits.sigmoid() if mode == "binary" else logits.softmax(1)[:, 1:]
    tubes = maps if mode == "binary" else maps[:, 1:]
    expected = 1 - ((p * tubes).flatten(2).sum(2) / tubes.flatten(2).sum(2)).mean()
    loss = build_loss("skeleton_recall(smooth=0)", mode=mode)
    for skeleton in (maps, maps.bool(), indices):
        torch.testing.assert_close(loss(logits, target, skeleton=skeleton), expected)
    pooled = build_loss("skeleton_recall(smooth=0, batch=True)", mode=mode)(logits, target, skeleton=maps)
    sums = (p * tubes).flatten(2).sum((0, 2)) / tubes.flatten(2).sum((0, 2))
    torch.testing.assert_close(pooled, 1 - sums.mean())


def test_classes_that_touch_keep_their_own_skeletons():
    target = torch.zeros(1, 9, 12, dtype=torch.long)
    target[:, 1:4, 1:11], target[:, 4:7, 1:11] = 1, 2
    sure = one_hot(target, 3).movedim(-1, 1).double() * 200
    union_line = torch.zeros(1, 9, 12, dtype=torch.long)
    union_line[:, 3:5, 1:11] = 1
    apart = build_loss("skeleton_recall")(sure.roll(1, 2), target)
    assert 0 < apart < 1
    assert build_loss("skeleton_recall")(sure * 0, target).item() == pytest.approx(2 / 3, abs=1e-5)


def test_soft_skeletons_are_recomputed_in_the_backward_pass_without_a_difference():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 1, 5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: soft_skeleton(m, 2).sum(), (maps,))
    assert not soft_skeleton(maps.detach(), 2).requires_grad
    torch.testing.assert_close(soft_skeleton(maps, 2), soft_skeleton(maps.detach(), 2))


@pytest.mark.parametrize("space", [(5, 4), (4, 3, 5), (1, 1, 2)])
def test_soft_skeletons_are_those_of_pooling(space):
    """The authors' recursion, written with the pooling that everybody uses."""
    axes, pool = len(space), torch.nn.functional.max_pool2d if len(space) == 2 else torch.nn.functional.max_pool3d

    def erode(m):
        windows = [[3 if a == b else 1 for b in range(axes)] for a in range(axes)]
        return torch.stack([-pool(-m, w, 1, [k // 2 for k in w]) for w in windows]).amin(0)

    maps = torch.rand(2, 3, *space, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    m, lines = maps, torch.zeros_like(maps)
    for _ in range(4):
        ridge = (m - pool(erode(m), 3, 1, 1)).relu()
        lines, m = lines + (ridge - lines * ridge).relu(), erode(m)
    ours = soft_skeleton(maps, 3)
    torch.testing.assert_close(ours, lines)
    weights = torch.rand(ours.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((s * weights).sum(), maps)[0] for s in (ours, lines)]
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("expression", "mode", "given", "message"),
    [
        ("hausdorff_dt(alpha=0)", "binary", {}, "alpha above 0"),
        ("hausdorff_dt(threshold='argmax')", "binary", {}, "needs mode 'multiclass'"),
        ("hausdorff_er(erosions=0)", "binary", {}, "at least 1"),
        ("cldice(iterations=-1)", "binary", {}, "at least 0"),
        ("weighted_hausdorff(p_exponent=1)", "binary", {}, "below 0"),
        ("weighted_hausdorff(max_points=0)", "binary", {}, "at least 1 or None"),
        ("unet_weighted_cross_entropy(sigma=0)", "binary", {}, "sigma must be above 0"),
        ("unet_weighted_cross_entropy(class_weight=[1])", "binary", {}, "two numbers, background first"),
        ("unet_weighted_cross_entropy", "binary", {"instances": torch.zeros(2, 8, 9)}, "one integer map per sample"),
        ("blob(criterion='dcie')", "binary", {}, "criterion must be one of dice, bce"),
        ("blob", "binary", {"instances": torch.zeros(2, 8, 9, dtype=torch.long)}, "unnumbered"),
        ("boundary", "multiclass", {"distance_map": torch.zeros(2, 8, 9)}, "a map for each of the 3 channels"),
        ("skeleton_recall", "multilabel", {"skeleton": torch.zeros(2, 8, 9)}, "a map per channel"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(expression, mode, given, message):
    logits, target = example(mode, SPACES["2d"])
    with pytest.raises(ValueError, match=message):
        build_loss(expression, mode=mode)(logits, target, **given)


def test_the_likeliest_class_can_be_the_prediction():
    logits, target = example("multiclass", SPACES["2d"])
    sure = logits.detach() * 1000
    half, likeliest = (build_loss(f"hausdorff_dt(threshold={t!r})")(sure, target) for t in (0.5, "argmax"))
    torch.testing.assert_close(half, likeliest)
    assert build_loss("hausdorff_dt(threshold='argmax')")(logits, target) != build_loss("hausdorff_dt")(logits, target)
