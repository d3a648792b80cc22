"""Values of the newer losses by implementations that are not ours; where there is none, by the paper's equations.

Each entry of ``values_new.json`` names the repository, commit and file that computed it, in double precision, and what
was changed there to do so. Inputs are drawn anew from the case's seed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.losses import build_loss
from medseg.losses.voronoi import nearest_number

TABLE = json.loads(Path(__file__).with_name("values_new.json").read_text(encoding="utf-8"))


def inputs(case):
    """Logits that half know the target, and its maps: balls of the first classes, one of them in two pieces."""
    mode, shape, channels = case["mode"], case["shape"], case["channels"]
    rng = np.random.RandomState(case["seed"])
    grid = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    labels = np.zeros((2, *shape), dtype=np.int64)
    for n in range(2):
        for number, centre, radius in ((1, 0.32, 0.24), (1, 0.8, 0.13), (2, (0.25, 0.75 - 0.1 * n), 0.19)):
            labels[n][((grid - np.resize(centre, len(shape))) ** 2).sum(-1) <= radius**2] = number
    maps = np.moveaxis(np.eye(3)[labels], -1, 1)
    if mode == "multiclass":
        maps[:, 0] += maps[:, channels:].sum(1)
        maps = maps[:, :channels]
    else:
        maps = maps[:, 1 : 1 + channels]
    logits = rng.randn(2, channels, *shape) + 3 * np.roll(maps, 1, axis=-1) - 1.5 * (mode != "multiclass")
    return logits, maps


def changed(maps, target):
    """The target as the entry has it: with fractions, or with its second sample emptied."""
    if target == "soft":
        blurred = maps + 0.15 * np.roll(maps, 1, axis=1) + 0.1
        return blurred / blurred.sum(1, keepdims=True)
    maps = maps.copy()
    if target == "empty":
        maps[1] = np.eye(maps.shape[1])[0].reshape(-1, *[1] * (maps.ndim - 2))
    return maps


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("entry", TABLE["values"], ids=lambda entry: f"{entry['loss']}-{entry['case']}")
def test_value_of_a_public_implementation(entry, dtype, tolerance):
    case = TABLE["cases"][entry["case"]]
    logits, maps = inputs(case)
    target, expression = changed(maps, entry.get("target", "hard")), entry["loss"]
    if entry.get("note") == "divides by Σp + Σg":
        expression = expression[:-1] + f", weight={sizes_for_squares(logits, maps)}, weight_mode='plain')"
    mask = torch.tensor([[c in (0, entry["drawn"]) for c in range(3)]] * 2) if "drawn" in entry else None
    loss = build_loss(expression, mode=case["mode"])
    value = loss(torch.tensor(logits, dtype=dtype), torch.tensor(target), class_mask=mask)
    assert value.dtype == dtype
    assert math.isclose(value.item(), entry["value"], rel_tol=tolerance, abs_tol=1e-12)


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def sizes_for_squares(logits, maps):
    """What turns the paper's denominator of each class, Σp² + Σg² + s, into Σp + Σg + s."""
    p, axes = softmax(logits), (0, *range(2, logits.ndim))
    return (((p**2 + maps**2).sum(axes) + 1e-5) / ((p + maps).sum(axes) + 1e-5)).tolist()


@pytest.mark.parametrize(("pool", "radius"), [(2, 3), (3, 2)])
def test_neighbourhoods_of_blocks_in_three_dimensions(pool, radius):
    """The paper's lower bound, a window after the other; no public code has three dimensions."""
    logits, maps = inputs(TABLE["cases"]["volume"])
    p, values = softmax(logits), []
    for n, c in np.ndindex(*maps.shape[:2]):
        points = []
        for volume in (maps[n, c], p[n, c]):
            trimmed = volume[tuple(slice(length // pool * pool) for length in volume.shape)]
            pairs = [part for length in trimmed.shape for part in (length // pool, pool)]
            blocks = trimmed.reshape(pairs).mean((1, 3, 5))
            corners = np.ndindex(*(length - radius + 1 for length in blocks.shape))
            points.append([blocks[tuple(slice(i, i + radius) for i in at)].ravel() for at in corners])
        y, q = (np.array(rows) - np.mean(rows, 0) for rows in points)
        ridge = 5e-4 * np.eye(radius**3)
        rest = y.T @ y - y.T @ q @ np.linalg.inv(q.T @ q + ridge) @ q.T @ y
        values.append(np.linalg.slogdet(rest + ridge)[1] / 2 / radius**3)
    loss = build_loss(f"region_mutual_information(pool={pool}, radius={radius})")
    assert loss(torch.tensor(logits), torch.tensor(maps)).item() == pytest.approx(np.mean(values), rel=1e-8)


IDENTITIES = [
    ("generalized_cross_entropy(q=1e-9)", "cross_entropy", 1e-7),
    ("symmetric_cross_entropy(alpha=1, beta=0)", "cross_entropy", 1e-12),
    ("symmetric_cross_entropy(alpha=0, beta=0.25)", "generalized_cross_entropy(q=1)", 1e-12),
    ("noise_robust_dice(gamma=2, smooth=0)", "dice_squared(smooth_nr=0, smooth_dr=0)", 1e-12),
    ("compatible_tversky", "tversky", 1e-10),
    ("compatible_tversky(alpha=0.5, beta=0.5)", "dice(smooth_nr=2e-5, smooth_dr=2e-5)", 1e-10),
    ("jaccard_metric", "jaccard", 1e-10),
    ("ohem_cross_entropy(threshold=1)", "cross_entropy", 1e-12),
    ("ohem_cross_entropy(threshold=1e-30, min_kept=218)", "topk_cross_entropy(k=10)", 1e-12),
    ("l1_ace(bins=1, binning='soft')", "l1_ace(bins=1)", 1e-12),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "tolerance"), IDENTITIES)
def test_identities_of_new_losses(one, other, tolerance):
    logits, maps = (torch.tensor(values) for values in inputs(TABLE["cases"]["volume"]))
    torch.testing.assert_close(build_loss(one)(logits, maps), build_loss(other)(logits, maps), rtol=tolerance, atol=0)


SUMS = [
    "generalized_cross_entropy",
    "symmetric_cross_entropy",
    "ohem_cross_entropy(threshold=0.4, min_kept=0)",
    "noise_robust_dice",
    "compatible_tversky",
    "jaccard_metric",
    "size_penalty",
    "size_barrier",
    "l1_ace",
    "l1_ace(binning='soft')",
]


@pytest.mark.parametrize("expression", SUMS)
def test_a_voxel_of_weight_two_counts_as_two_in_new_sums(expression):
    logits, maps = (torch.tensor(values) for values in inputs(TABLE["cases"]["plane"]))
    weight = torch.ones(2, *maps.shape[2:])
    weight[..., 9:] = 2
    loss = build_loss(expression)
    doubled = loss(*(torch.cat([values, values[..., 9:]], -1) for values in (logits, maps)))
    torch.testing.assert_close(loss(logits, maps, voxel_weight=weight), doubled)


def test_soft_labels_cost_nothing_where_they_are_met():
    target = torch.tensor(changed(inputs(TABLE["cases"]["plane"])[1], "soft"))
    for name in ("jaccard_metric", "compatible_tversky", "noise_robust_dice"):
        loss = build_loss(name)
        assert loss(target.log(), target).item() == pytest.approx(0, abs=1e-12)
        assert loss(1.5 * target.log(), target) > 0.01


def test_the_difference_over_union_of_large_structures_looks_at_their_outline():
    """α = 1 - 2 C / S of a square of side 10 is 1 - 2 · 36 / 100; a missed voxel then costs more than in jaccard."""
    target = torch.zeros(1, 14, 14, dtype=torch.long)
    target[0, 2:12, 2:12] = 1
    logits = (200.0 * target - 100).double().unsqueeze(1)
    logits[0, 0, 2, 2] = -100
    value = build_loss("boundary_dou(smooth=0)", mode="binary")(logits, target)
    assert value.item() == pytest.approx(1 / (100 - 0.28 * 99))
    assert build_loss("boundary_dou(limit=0, smooth=0)", mode="binary")(logits, target).item() == pytest.approx(0.01)


def test_a_lesion_missed_costs_its_share_of_components():
    """Of three components one is missed: one Dice of three is lost, however small it is."""
    target = torch.zeros(1, 20, 20, dtype=torch.long)
    for at in ((slice(1, 9), slice(1, 9)), (slice(15, 17), slice(3, 5)), (slice(17, 18), slice(17, 18))):
        target[(0, *at)] = 1
    found = target.clone()
    found[0, 17, 17] = 0
    loss = build_loss("cc_dice_ce(lambda_ce=0)", mode="binary")
    assert loss((200.0 * found - 100).unsqueeze(1), target).item() == pytest.approx(1 / 3)


def test_touching_lesions_are_told_apart_by_their_numbers():
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[0, 2:4, 2:8] = 1
    instances = target.clone()
    instances[0, 2:4, 5:] *= 2
    logits = torch.full((1, 1, 12, 12), -100.0)
    logits[0, 0, 2:4, 2:5] = 100
    loss = build_loss("cc_dice_ce(lambda_ce=0)", mode="binary")
    assert loss(logits, target).item() == pytest.approx(1 / 3)
    assert loss(logits, target, instances=instances).item() == pytest.approx(1 / 2)


def test_what_is_nearest_is_measured_in_millimetres():
    numbered = np.zeros((3, 2), dtype=int)
    numbered[0, 0], numbered[2, 1] = 1, 2
    assert nearest_number(numbered, (1.0, 1.0))[0, 1] == 1
    assert nearest_number(numbered, (0.1, 1.0))[0, 1] == 2


def test_sizes_within_their_bounds_cost_nothing():
    logits, maps = (torch.tensor(values) for values in inputs(TABLE["cases"]["plane"]))
    size = logits.softmax(1).sum((2, 3))
    low, high = (size.amin(0) - 1).tolist(), (size.amax(0) + 1).tolist()
    assert build_loss(f"size_penalty(low={low}, high={high})")(logits, maps) == 0
    assert build_loss(f"size_penalty(high={high})")(logits, maps) == 0
    assert build_loss(f"size_penalty(high={low})")(logits, maps) > 0
    assert build_loss(f"size_barrier(low={low}, high=[1e12, 1e12, 1e12])")(logits, maps).isfinite()


def test_sizes_may_be_those_of_ignored_voxels():
    logits, maps = (torch.tensor(values) for values in inputs(TABLE["cases"]["plane"]))
    labels = maps.argmax(1)
    drawn = torch.where(torch.arange(labels.numel()).reshape(labels.shape) % 17 == 0, labels, 255)
    bounds = "low=[0, 300, 300], high=[500, 400, 350]"
    value = build_loss(f"size_penalty({bounds}, include_ignored=True)", ignore_index=255)(logits, drawn)
    torch.testing.assert_close(value, build_loss(f"size_penalty({bounds})")(logits, labels))


def test_a_disc_is_learnt_from_three_voxels_and_its_size():
    """As in the paper: without the bounds, what is drawn of the disc alone makes everything disc."""
    i, j = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    disc = (((i - 11) ** 2 + (j - 12) ** 2) < 36).long()
    image = (disc + 0.15 * torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))[None, None]
    drawn = torch.full((1, 24, 24), 255)
    drawn[0, 10:13, 12] = 1

    def learnt(expression):
        torch.manual_seed(2)
        first, last = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 8), (8, 2)))
        net = torch.nn.Sequential(first, torch.nn.InstanceNorm2d(8), torch.nn.LeakyReLU(), last)
        loss = build_loss(expression, ignore_index=255)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
        for _ in range(80):
            optimiser.zero_grad()
            loss(net(image), drawn).backward()
            optimiser.step()
        found = net(image).argmax(1)[0]
        return 2 * (found * disc).sum() / (found.sum() + disc.sum())

    bounds = f"low=[0, {0.9 * disc.sum()}], high=[1e9, {1.1 * disc.sum()}], include_ignored=True"
    assert learnt("cross_entropy") < 0.5
    assert learnt(f"cross_entropy + 0.01 * size_penalty({bounds})") > 0.9


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("generalized_cross_entropy(q=0)", "q"),
        ("generalized_cross_entropy(truncation=1)", "truncation"),
        ("noise_robust_dice(gamma=3)", "gamma"),
        ("boundary_dou(limit=-1)", "limit"),
        ("ohem_cross_entropy(threshold=0)", "threshold"),
        ("l1_ace(bins=0)", "bins"),
        ("region_mutual_information(radius=0)", "radius"),
        ("size_penalty(low=[1, 2])", "must hold 3 numbers"),
        ("size_penalty(low=[9, 9, 9], high=[1, 1, 1])", "low must be at most high"),
        ("size_penalty(include_ignored=True)", "needs low or high"),
        ("size_penalty(margin=-1)", "margin"),
        ("size_barrier(t=0)", "t"),
        ("cbdice(iterations=-1)", "iterations"),
        ("cc_dice_ce(connectivity=7)", "connectivity"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(expression, message):
    logits, maps = (torch.tensor(values) for values in inputs(TABLE["cases"]["plane"]))
    with pytest.raises(ValueError, match=message):
        build_loss(expression)(logits, maps)
