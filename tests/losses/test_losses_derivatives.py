"""Derivatives as torch offers them: second ones, functional ones, inside autocast and without any."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.losses import build_loss
from medseg.losses.table import Row, rows

pytestmark = pytest.mark.sweep(8)

CELLS = [(row, mode) for row in rows().values() for mode in row.modes]
EVERY_CELL = pytest.mark.parametrize(("row", "mode"), CELLS, ids=lambda v: v.name if isinstance(v, Row) else v)


def example(mode, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = {"multiclass": 3, "binary": 1, "multilabel": 2}[mode]
    logits = torch.randn(2, channels, 8, 7, generator=generator, dtype=torch.float64).to(dtype)
    maps = torch.zeros(2, 3, 8, 7, dtype=torch.long)
    for n in range(2):
        maps[n, 0, 1:4, 1:4], maps[n, 0, 6:, :2], maps[n, 1, 4:7, 3 - n : 6] = 1, 1, 1
    return logits, (maps[:, 0] + 2 * maps[:, 1] if mode == "multiclass" else maps[:, :channels])


@EVERY_CELL
def test_second_derivatives_are_those_of_the_gradient(row, mode):
    """The gradient of half the squared gradient is the Hessian times the gradient, here by differences of gradients."""
    logits, target = example(mode)
    loss = build_loss(row.name, mode=mode)

    def gradient(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z, target), z)[0]

    leaf = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
    torch.testing.assert_close(slope, gradient(logits))
    direction = slope.detach() / slope.detach().norm().clamp_min(1e-12)
    curved = torch.autograd.grad((slope * direction).sum(), leaf, allow_unused=True)[0] if slope.requires_grad else None
    curved = torch.zeros_like(leaf) if curved is None else curved
    step = 1e-6
    expected = (gradient(logits + step * direction) - gradient(logits - step * direction)) / (2 * step)
    scale = max(expected.abs().max().item(), 1e-6)
    torch.testing.assert_close(curved, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("expression", ["cross_entropy", "dice", "dice_squared + bce", "lovasz_softmax"])
def test_a_penalty_on_gradients_reaches_the_weights(expression):
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 1).double()
    image = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (1, 6, 6))

    def penalty():
        (slope,) = torch.autograd.grad(build_loss(expression)(net(image), labels), image, create_graph=True)
        return slope.square().sum() * 100

    penalty().backward()
    found = net.weight.grad[0].item()
    with torch.no_grad():
        net.weight[0] += 1e-5
        net.bias.requires_grad_()
    above = penalty().item()
    with torch.no_grad():
        net.weight[0] -= 2e-5
    assert (above - penalty().item()) / 2e-5 == pytest.approx(found, rel=1e-4, abs=1e-9)


ON_THE_CPU = {
    *("cbdice", "weighted_hausdorff", "shape_aware", "blob", "cldice", "dice_cldice", "skeleton_recall"),
    *("dice_ce_skeleton_recall", "cc_dice_ce"),
}
"""Losses that hand maps to NumPy, or recompute by checkpoints, which torch.func does not allow."""


@EVERY_CELL
def test_functional_gradients_agree(row, mode):
    logits, target = example(mode)
    loss = build_loss(row.name, mode=mode)
    leaf = logits.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf, target), leaf)[0]
    functional = torch.func.grad(lambda z: loss(z, target))
    if row.name in ON_THE_CPU:
        with pytest.raises(NotImplementedError, match=r"measures shapes on the CPU.*take gradients with backward"):
            functional(logits)
    else:
        torch.testing.assert_close(functional(logits), expected)


@pytest.mark.parametrize("expression", ["dice", "boundary + mcc", "bce + focal"])
def test_what_cannot_be_had_is_refused_in_a_sentence(expression):
    logits, target = example("multiclass")
    loss = build_loss(expression)
    with pytest.raises(NotImplementedError, match=r"cannot run under torch.vmap.*give it one batch"):
        torch.vmap(lambda z, y: loss(z[None], y[None]))(logits, target)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda z: loss(z, target), (logits,), (logits,))


@EVERY_CELL
def test_backward_inside_autocast_is_in_single_precision(row, mode):
    logits, target = example(mode, torch.float32)
    loss, slopes = build_loss(row.name, mode=mode), []
    for enabled in (False, True):
        leaf = logits.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss(leaf, target).backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-9)


@EVERY_CELL
def test_inference_mode_gives_the_same_value(row, mode):
    logits, target = example(mode, torch.float32)
    loss = build_loss(row.name, mode=mode)
    with torch.inference_mode():
        value = loss(logits * 1, target * 1, (0.8, 1.5))
    torch.testing.assert_close(value, loss(logits, target, (0.8, 1.5)).detach())


SOFT = [
    ("bce", "binary"), ("cross_entropy(label_smoothing=0.1)", "multiclass"), ("focal", "multilabel"),
    ("dice_squared", "multiclass"), ("dice(soft_target=True)", "binary"), ("dice_ce(soft_target=True)", "multiclass"),
    ("cross_entropy(weight=[1, 2, 3], normalize='weights')", "multiclass"), ("compatible_tversky", "multilabel"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "mode"), SOFT)
def test_a_target_that_learns_gets_its_gradient(expression, mode):
    """Mutual learning and distillation train both sides."""
    logits, _ = example(mode)
    taught, _ = example(mode, seed=1)
    loss = build_loss(expression, mode=mode)

    def cost(other):
        return loss(logits, other.softmax(1) if mode == "multiclass" else other.sigmoid())

    assert torch.autograd.gradcheck(cost, (taught.requires_grad_(),), fast_mode=True)


def test_a_voxel_weight_that_would_learn_is_refused():
    logits, target = example("multiclass")
    with pytest.raises(ValueError, match=r"voxel_weight is a constant.*voxel_weight.detach\(\)"):
        build_loss("cross_entropy")(logits, target, voxel_weight=torch.ones(2, 8, 7, requires_grad=True))
