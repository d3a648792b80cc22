"""Weights from the counts of a training set: the sources' formulas written out, and words in place of numbers."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from medseg.losses import build_loss, class_weights, list_losses
from medseg.losses.class_weights import KNOBS, RULES
from medseg.losses.table import rows

COUNTS = [9000, 900, 100]


def test_balanced_is_sklearn_of_every_voxel():
    """n_samples / (n_classes * bincount(y)), of the voxels one by one."""
    voxels = np.repeat([0, 1, 2], COUNTS)
    expected = voxels.size / (len(np.unique(voxels)) * np.bincount(voxels))
    np.testing.assert_allclose(class_weights(COUNTS, "balanced"), expected)


def test_formulas_of_the_other_rules():
    shares = [count / sum(COUNTS) for count in COUNTS]
    np.testing.assert_allclose(class_weights(COUNTS, "inverse"), [1 / share for share in shares])
    np.testing.assert_allclose(class_weights(COUNTS, "sqrt_inverse"), [share**-0.5 for share in shares])
    beta = 0.99
    raw = [(1 - beta) / (1 - beta**count) for count in COUNTS]
    expected = [weight * len(COUNTS) / sum(raw) for weight in raw]
    np.testing.assert_allclose(class_weights(COUNTS, "effective_number(beta=0.99)"), expected)
    assert class_weights(COUNTS, "effective_number(beta=0)") == [1.0] * 3


def test_median_frequency_counts_only_the_images_that_have_the_class():
    frequency = [80 / 100, (20 + 90) / 200, 10 / 100]  # the first class is in one image only, as is the third
    expected = [statistics.median(frequency) / one for one in frequency]
    np.testing.assert_allclose(class_weights([[80, 20, 0], [0, 90, 10]], "median_frequency"), expected)


@pytest.mark.parametrize("rule", RULES)
def test_laws_of_every_rule(rule):
    whole = class_weights(COUNTS, rule)
    assert whole == sorted(whole), "the rarer, the heavier"
    assert class_weights([*COUNTS, 0], rule) == [*whole, 0.0], "an absent class weighs nothing and moves nothing"
    assert class_weights(COUNTS[::-1], rule) == pytest.approx(whole[::-1]), "classes have no order"
    cases = [[4500, 500, 50], [4500, 400, 50]]
    assert class_weights(cases, rule) == pytest.approx(whole), "cases add up where each has every class"
    unknown = [[9000, 900, 100], [9000, 900, math.nan]]
    assert class_weights(unknown, rule) == pytest.approx(class_weights([COUNTS, COUNTS], rule)), "as in the others"
    numbers = build_loss("cross_entropy(weight=" + str(whole) + ")")
    worded = build_loss(f"cross_entropy(weight={rule})", counts=COUNTS)
    logits, target = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.randint(3, (2, 4, 4))
    assert torch.equal(worded(logits, target), numbers(logits, target))
    assert torch.equal(
        build_loss(f"cross_entropy(weight='{rule}')", counts=COUNTS)(logits, target), worded(logits, target)
    )


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list_losses())
def test_every_loss_with_class_weights_takes_a_word(name):
    for knob in set(KNOBS) & set(rows()[name].knobs):
        assert build_loss(f"{name}({knob}=balanced)", counts=COUNTS).weights()


@pytest.mark.parametrize(
    ("expression", "counts", "answer"),
    [
        ("cross_entropy(weight=balanced)", None, r"weight=balanced stands for numbers.*build_loss\(\.\.\., counts="),
        ("cross_entropy(weight=balancd)", COUNTS, "Did you mean 'balanced'"),
        ("cross_entropy(weight=balancd)", None, "Did you mean 'balanced'"),
        ("cross_entropy(weight=balanced(x=1))", COUNTS, "unexpected keyword"),
        ("cross_entropy(weight=effective_number(beta=1))", COUNTS, "beta from 0 to below 1"),
        ("cross_entropy(weight=effective_number(beta=b))", COUNTS, "no rule for class weights"),
        ("cross_entropy(weight=balanced)", [0, 0, 0], "voxels per class"),
        ("cross_entropy(weight=balanced)", [-1, 1, 0], "voxels per class"),
        ("cross_entropy(weight=balanced)", [math.inf, 1, 0], "voxels per class"),
        ("cross_entropy(weight=balanced)", [[[1]]], "voxels per class"),
        ("cross_entropy(weight=balanced)", "many", "voxels per class"),
    ],
)
def test_words_and_counts_that_mean_nothing(expression, counts, answer):
    with pytest.raises(ValueError, match=answer):
        build_loss(expression, counts=counts)
