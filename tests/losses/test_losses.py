"""The numbers of the specification, the forms a target may take, and what is refused at the door."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from medseg.losses import build_loss, list_losses, statistics
from medseg.losses.table import rows

VALUES = Path(__file__).parents[3] / "shared" / "losses" / "values.json"
TABLE = json.loads(VALUES.read_text(encoding="utf-8")) if VALUES.exists() else {"cases": {}, "values": []}


@pytest.mark.sweep(3)
@pytest.mark.skipif(not VALUES.exists(), reason="the independent values lie beside the repository, not in it")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("entry", TABLE["values"], ids=lambda v: f"{v['loss']}-{v['case']}")
def test_value_of_the_specification(entry, dtype, tolerance):
    case = TABLE["cases"][entry["case"]]
    knobs = ", ".join(f"{name}={value!r}" for name, value in entry["params"].items())
    loss = build_loss(f"{entry['loss']}({knobs})", mode=entry["mode"])
    value = loss(torch.tensor(case["logits"], dtype=dtype), torch.tensor(case["target"]))
    assert value.dtype == dtype
    assert math.isclose(value.item(), entry["value"], rel_tol=tolerance, abs_tol=1e-12)


def test_all_names_of_the_specification_are_there():
    assert len(list_losses()) == 67
    assert {f: len(list_losses(f)) for f in ("distribution", "region", "boundary", "compound")} == {
        "distribution": 18,
        "region": 26,
        "boundary": 10,
        "compound": 13,
    }


# ---------------------------------------------------------------------------------------------- forms of a target


@pytest.fixture
def multiclass():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 6, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 6, 5, 4), generator=generator)
    return logits, labels


@pytest.mark.parametrize("ignore", [None, -1, 255, 2])
@pytest.mark.parametrize("name", ["dice_ce", "lovasz_softmax", "dice_squared", "topk_cross_entropy", "boundary"])
def test_labels_channel_and_one_hot_targets_agree(multiclass, name, ignore):
    logits, labels = multiclass
    if ignore is not None:
        labels[:, :2] = ignore
    loss = build_loss(name, ignore_index=ignore)
    expected = loss(logits, labels)
    known = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    maps = one_hot(torch.where(known, labels, 0), 4).movedim(-1, 1) * known.unsqueeze(1)
    for target in (labels.unsqueeze(1), labels.to(torch.int16), maps, maps.float(), maps.bool()):
        torch.testing.assert_close(loss(logits, target), expected)


def test_one_hot_columns_filled_with_the_ignored_value_are_ignored(multiclass):
    logits, labels = multiclass
    maps = one_hot(labels, 4).movedim(-1, 1)
    maps[..., 0] = 255
    labels[..., 0] = 255
    loss = build_loss("dice + focal", ignore_index=255)
    torch.testing.assert_close(loss(logits, maps), loss(logits, labels))


def test_unsigned_labels_cannot_hold_a_negative_ignored_value(multiclass):
    logits, labels = multiclass
    loss, plain = build_loss("dice", ignore_index=-1), build_loss("dice")
    torch.testing.assert_close(loss(logits, labels.to(torch.uint8)), plain(logits, labels))


@pytest.mark.parametrize(("mode", "channels"), [("binary", 1), ("multilabel", 3)])
@pytest.mark.parametrize("ignore", [-1, 255, 0, 1])
def test_ignored_elements_of_sigmoid_modes(mode, channels, ignore):
    logits = torch.randn(2, channels, 6, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (2, channels, 6, 6))
    target[:, 0, :2] = ignore
    loss = build_loss("dice + bce", mode=mode, ignore_index=ignore)(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert (logits.grad[target == ignore] == 0).all()
    assert (logits.grad[target != ignore] != 0).any()


def test_binary_targets_with_and_without_a_channel():
    logits, target = torch.randn(2, 1, 5, 5), torch.randint(0, 2, (2, 5, 5))
    loss = build_loss("dice + bce", mode="binary")
    torch.testing.assert_close(loss(logits, target), loss(logits, target.unsqueeze(1).float()))
    torch.testing.assert_close(loss(logits, target), loss(logits, target.bool()))


def test_soft_targets_have_their_minimum_at_the_target():
    target = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    for expression in ("bce", "cross_entropy", "dice_squared", "dice(soft_target=True)"):
        logits = target.logit().requires_grad_()
        build_loss(expression.replace("dice_squared", "dice_squared(smooth_nr=0, smooth_dr=0)"), mode="binary")(
            logits, target
        ).backward()
        higher, lower = (build_loss(expression, mode="binary")((target + d).logit(), target) for d in (0.2, -0.2))
        assert build_loss(expression, mode="binary")(target.logit(), target) < min(higher, lower)


def test_soft_multiclass_targets_generalise_hard_ones(multiclass):
    logits, labels = multiclass
    maps = one_hot(labels, 4).movedim(-1, 1).double()
    nearly = maps * (1 - 1e-9) + 1e-9 / 4
    for expression in (
        "cross_entropy(weight=[1, 2, 3, 4], normalize='weights')",
        "focal(gamma=1.5, alpha=[1, 2, 3, 4])",
        "bce",
        "dice_squared",
        "dice(soft_target=True)",
    ):
        loss = build_loss(expression)
        torch.testing.assert_close(loss(logits, nearly), loss(logits, labels), rtol=1e-6, atol=1e-7)


def test_soft_targets_where_they_mean_nothing_are_refused(multiclass):
    logits, _ = multiclass
    soft = torch.rand(2, 4, 6, 5, 4).softmax(1)
    with pytest.raises(ValueError, match=r"fractions.*soft_target=True"):
        build_loss("dice + cross_entropy")(logits, soft)


# ---------------------------------------------------------------------------------------------- options


def test_class_weights_mean_the_same_everywhere(multiclass):
    logits, labels = multiclass
    for expression in ("dice(weight={w})", "tversky(weight={w})", "cross_entropy(weight={w}, normalize='weights')"):
        one = build_loss(expression.format(w=[0, 0, 1, 0]))(logits, labels)
        two = build_loss(expression.format(w=[0, 0, 7, 0]))(logits, labels)
        torch.testing.assert_close(one, two)
    only_two = build_loss("dice(weight=[0, 0, 1, 0])")(logits, labels)
    p, g = logits.softmax(1)[:, 2].flatten(1), (labels == 2).double().flatten(1)
    torch.testing.assert_close(only_two, (1 - (2 * (p * g).sum(1) + 1e-5) / (p.sum(1) + g.sum(1) + 1e-5)).mean())


def test_weights_keep_their_length_without_background(multiclass):
    logits, labels = multiclass
    loss = build_loss("dice(include_background=False, weight=[9, 1, 1, 1])")
    torch.testing.assert_close(loss(logits, labels), build_loss("dice(include_background=False)")(logits, labels))
    with pytest.raises(ValueError, match=r"4 numbers.*background included.*\[3\]"):
        build_loss("dice(include_background=False, weight=[1, 1, 1])")(logits, labels)


def test_plain_weights_do_not_divide_by_their_sum(multiclass):
    logits, labels = multiclass
    plain = build_loss("dice(weight=[2, 2, 2, 2], weight_mode='plain')")(logits, labels)
    torch.testing.assert_close(plain, 2 * build_loss("dice")(logits, labels))


def test_absent_classes_can_be_left_out(multiclass):
    logits, labels = multiclass
    labels[labels == 3] = 0
    p = logits.softmax(1)
    kept = build_loss("dice(weight=[1, 1, 1, 0])")(logits, labels)
    torch.testing.assert_close(build_loss("dice(absent='ignore')")(logits, labels), kept)
    nothing = build_loss("dice(absent='ignore', include_background=False)")(logits, torch.zeros_like(labels))
    assert nothing == 0
    assert p.isfinite().all()


@pytest.mark.parametrize("expression", ["dice_ce", "focal", "batch_dice", "generalized_dice", "mcc", "lovasz_softmax"])
def test_a_voxel_of_weight_two_counts_as_two_voxels(expression):
    logits, labels = torch.randn(1, 3, 4, 6, dtype=torch.float64), torch.randint(0, 3, (1, 4, 6))
    weight = torch.ones(1, 4, 6)
    weight[:, :, 3:] = 2
    doubled = torch.cat([logits, logits[..., 3:]], -1), torch.cat([labels, labels[..., 3:]], -1)
    loss = build_loss(expression)
    torch.testing.assert_close(loss(logits, labels, voxel_weight=weight), loss(*doubled))


def test_classes_without_annotation_cost_nothing(multiclass):
    logits, labels = multiclass
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]])
    logits.requires_grad_()
    masked = build_loss("dice")(logits, labels, class_mask=mask)
    p, g = logits.softmax(1).flatten(2), one_hot(labels, 4).movedim(-1, 1).flatten(2)
    for maps in (p, g):  # what is class 2 of the second sample may as well be background
        maps[1, 0] = maps[1, 0] + maps[1, 2]
    per_class = 1 - (2 * (p * g).sum(2) + 1e-5) / (p.sum(2) + g.sum(2) + 1e-5)
    torch.testing.assert_close(masked, (per_class * mask).sum() / mask.sum())
    both = build_loss("anatomynet")(logits, labels, class_mask=mask)
    (gradient,) = torch.autograd.grad(both, logits)
    assert gradient.isfinite().all()


def test_per_sample_values_average_to_the_mean(multiclass):
    logits, labels = multiclass
    for name in ("dice_ce", "tversky", "combo", "mcc", "generalized_dice", "boundary"):
        each = build_loss(name, reduction="none")(logits, labels)
        assert each.shape == (2,)
        torch.testing.assert_close(each.mean(), build_loss(name)(logits, labels))


def test_terms_can_be_logged(multiclass):
    loss = build_loss("dice + 0.5 * focal(gamma=1) + 2 * focal")
    total = loss(*multiclass)
    assert list(loss.terms) == ["dice", "focal", "focal_2"]
    assert not any(value.requires_grad for value in loss.terms.values())
    torch.testing.assert_close(total, sum(w * loss.terms[name] for name, w in loss.weights().items()))


# ---------------------------------------------------------------------------------------------- refused

GOOD = torch.zeros(2, 3, 4, 4)
LABELS = torch.zeros(2, 4, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("logits", "target", "mode", "message"),
    [
        (GOOD, LABELS[:1], "multiclass", r"\(2, 3, 4, 4\).*got shape \(1, 4, 4\)"),
        (GOOD, LABELS[:, :3], "multiclass", r"got shape \(2, 3, 4\)"),
        (GOOD, LABELS + 3, "multiclass", r"values from 3 to 3.*classes 0 to 2"),
        (GOOD, LABELS - 1, "multiclass", r"values from -1 to -1"),
        (GOOD, LABELS.float(), "multiclass", r"integers, got torch.float32"),
        (GOOD * float("nan"), LABELS, "multiclass", r"96 of 96 logits are not finite"),
        (GOOD[:0], LABELS[:0], "multiclass", r"empty.*\(0, 3, 4, 4\)"),
        (GOOD[:, :1], LABELS, "multiclass", r"2 channels or more.*mode='binary'"),
        (GOOD, LABELS, "binary", r"1 channel"),
        (GOOD, LABELS, "multilabel", r"zeros and ones \(b, c, \*s\).*got shape \(2, 4, 4\)"),
        (GOOD[:, :1], LABELS + 2, "binary", r"values in \[0, 1\], got 2 to 2"),
        (GOOD, torch.ones(2, 3, 4, 4), "multiclass", r"add up to 1.*sums from 3 to 3"),
        (GOOD.long(), LABELS, "multiclass", r"floating type, got torch.int64"),
        (GOOD[0], LABELS[0], "multiclass", r"\(b, c, i, j\).*got shape \(3, 4, 4\)"),
    ],
)
def test_bad_input_is_refused_with_what_came(logits, target, mode, message):
    with pytest.raises(ValueError, match=message):
        build_loss("dice + bce", mode=mode)(logits, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_weight": torch.ones(2, 5, 4)}, r"voxel_weight must be .*got \(2, 5, 4\)"),
        ({"voxel_weight": -torch.ones(2, 4, 4)}, r"at least 0, got -1"),
        ({"class_mask": torch.ones(2, 2)}, r"class_mask must be \(b, c\) = \(2, 3\), got \(2, 2\)"),
        ({"class_mask": torch.full((2, 3), 0.5)}, r"class_mask must hold 1 for .* and 0 for .*got \[\[0.5"),
        ({"class_mask": torch.full((2, 3), float("nan"))}, r"class_mask must hold 1"),
        ({"voxel_weight": torch.ones(2, 3, 4, 4)}, r"one map per sample in mode 'multiclass', got \(2, 3, 4, 4\)"),
        ({"spacing_mm": (1.0, float("inf"))}, r"2 positive numbers"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, r"spacing_mm must be 2 positive numbers"),
        ({"spacing_mm": (1.0, 0.0)}, r"positive"),
        ({"instances": torch.ones(2, 4, 5)}, r"instances must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_loss("dice")(GOOD, LABELS, **options)


def test_unknown_modes_and_reductions_are_refused():
    with pytest.raises(ValueError, match="multiclass, binary, multilabel, got 'softmax'"):
        build_loss("dice", mode="softmax")
    with pytest.raises(ValueError, match="'mean' or 'none', got 'sum'"):
        build_loss("dice", reduction="sum")
    with pytest.raises(ValueError, match=r"lovasz_hinge has no meaning in mode 'multiclass'.*binary, multilabel"):
        build_loss("lovasz_hinge")
    with pytest.raises(ValueError, match="no background channel"):
        build_loss("dice(include_background=False)", mode="multilabel")


# ---------------------------------------------------------------------------------------------- learnable numbers


def test_the_tail_of_the_t_loss_reaches_optimiser_and_checkpoint():
    loss = build_loss("dice + t_loss(nu_init=1.0)", mode="binary")
    (nu,) = loss.parameters()
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(torch.randn(1, 1, 6, 6), torch.randint(0, 2, (1, 6, 6))).backward()
    optimiser.step()
    assert nu.item() != 1.0
    twin = build_loss("dice + t_loss(nu_init=1.0)", mode="binary")
    twin.load_state_dict(loss.state_dict())
    assert next(twin.parameters()).item() == nu.item()


def test_every_learnable_number_has_a_first_value():
    assert all(row.knobs[knob] is not None for row in rows().values() for knob in row.learnable.values())


# ---------------------------------------------------------------------------------------------- streamed gradients


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_streamed_gradients_are_the_derivatives(mode, weighted):
    channels = {"multiclass": 3, "binary": 1, "multilabel": 2}[mode]
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, channels, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    shape = (2, 3, 4) if mode == "multiclass" else (2, channels, 3, 4)
    target = torch.randint(0, 3 if mode == "multiclass" else 2, shape, generator=generator)
    weight = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) if weighted else None
    for expression in ("dice_ce", "dice_squared + bce", "asymmetric_unified_focal", "combo + t_loss", "mcc", "exp_log"):
        loss = build_loss(expression, mode=mode)
        assert torch.autograd.gradcheck(lambda z: loss(z, target, voxel_weight=weight), (logits,), fast_mode=True)  # noqa: B023  at once


def test_chunks_of_any_size_give_the_same(monkeypatch, multiclass):
    logits, labels = multiclass
    logits = logits.repeat(1, 1, 3, 3, 3).requires_grad_()
    labels = labels.repeat(1, 3, 3, 3)
    found = []
    for size in (1 << 20, 4096):
        monkeypatch.setitem(statistics.CHUNK_ELEMENTS, "cpu", size)
        value = build_loss("dice_ce + dice_squared + bce")(logits, labels)
        found.append((value.detach(), *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(found[0], found[1])
