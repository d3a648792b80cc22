"""The language of losses: what it reads, what it refuses, and how it answers; the pages made from the table."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pytest
import torch

from medseg.errors import UsageError
from medseg.losses import build_loss, list_losses
from medseg.losses.catalogue import describe, overview, rows
from medseg.losses.expression import parse

LOGITS, LABELS = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.randint(0, 3, (1, 6, 6))


def value(expression):
    return build_loss(expression)(LOGITS, LABELS)


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("dice + focal", "focal + dice"),
        ("0.5 * (dice + focal)", "0.5 * dice + focal * 0.5"),
        ("2 * 0.25 * dice", "dice * (1 / 2)"),
        ("dice(batch=true)", "batch_dice"),
        ("tversky(alpha=1, beta=1)", "tversky(alpha=1.0, beta=1.0)"),
        ("cross_entropy(weight=[1, 2, 3])", "cross_entropy(weight=(1, 2.0, 3))"),
        ("cross_entropy(weight=None)", "cross_entropy"),
        ("logit_margin(margin=inf)", "cross_entropy"),
        ("poly1_cross_entropy(epsilon=-1)", "poly1_cross_entropy(epsilon=-1.0)"),
        ("\n  dice\n", "dice"),
    ],
)
def test_expressions_that_mean_the_same(expression, same):
    torch.testing.assert_close(value(expression), value(same))


def test_nested_lists_are_literals():
    expression = "generalized_wasserstein_dice(dist_matrix=[[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]])"
    assert value(expression) < value("generalized_wasserstein_dice")


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("dcie", "no loss 'dcie'. Did you mean 'dice'"),
        ("dice + cross_entrop", "Did you mean 'cross_entropy'"),
        (
            "focal(gama=2)",
            "focal has no knob 'gama', did you mean 'gamma'; its knobs are: gamma, alpha, weight, normalize",
        ),
        ("focal(gamma='2')", r"focal\(gamma='2'\): expected a number"),
        ("dice(batch=1)", r"batch=1\): expected True or False"),
        ("dice(absent='drop')", "expected one of 'keep', 'ignore'"),
        ("cross_entropy(weight=3)", r"expected a list \(each a number of at least 0\) or None"),
        ("focal(2)", r"the knobs of focal need their names, such as focal\(gamma=2.0"),
        ("focal(gamma=-1)", r"focal\(gamma=-1\): expected a number of at least 0"),
        ("cross_entropy(label_smoothing=2)", r"expected a number in \[0, 1\]"),
        ("cross_entropy(label_smoothing=-0.1)", r"expected a number in \[0, 1\]"),
        ("dice(weight=[1, -1, 1])", r"each a number of at least 0"),
        ("cross_entropy(weight=[1, 1e999, 1])", r"each a number of at least 0"),
        ("tversky(alpha=-1)", "expected a number of at least 0"),
        ("dice_ce(lambda_ce=-1)", "expected a number of at least 0"),
        ("focal_tversky(gamma=inf)", "expected a number of at least 0"),
        ("combo(alpha=1.1)", r"expected a number in \[0, 1\]"),
        ("asymmetric_unified_focal(delta=1.5)", r"expected a number in \[0, 1\]"),
        ("generalized_wasserstein_dice(dist_matrix=[[0, -1], [1, 0]])", "each a number of at least 0"),
        ("dice - focal", "subtracts a loss"),
        ("-dice", "subtracts a loss"),
        ("-1 * dice", "the weight of dice is -1 at epoch 0"),
        ("(1 - increase(0.5, 0.5, limit=3)) * dice", "the weight of dice is -0.5 at epoch 2"),
        ("increase(0.5, -0.001) * dice", "the weight of dice is -0.001 at epoch 501"),
        ("1e400 * dice", "too large to be a finite number"),
        ("1" + 400 * "0" + " * dice", "too large to be a finite number"),
        ("1 / 0 * dice", "the weight of dice is nan"),
        ("linear(0, 1e999) * dice", "end is inf .expected a finite number"),
        ("dice * focal", "multiplies two losses"),
        ("0.5", "names no loss|not a loss"),
        ("dice +", "cannot be read"),
        ("", "cannot be read"),
        ("__import__('os').system('true')", "is not a loss"),
        ("dice(batch=open('x'))", "is not a literal"),
        ("dice(**{'batch': True})", "not a literal"),
        ("linear(0, 1) * ", "cannot be read"),
        ("linear(0, 1, steps=3) * dice", "is not a schedule"),
        ("linear(0, 1, epochs=0) * dice", "epochs of at least 1, got 0"),
        ("dice[0]", "is not a loss"),
    ],
)
def test_a_mistake_is_answered(expression, answer):
    with pytest.raises(ValueError, match=answer):
        parse(expression)


def test_weights_follow_the_epoch():
    loss = build_loss(
        "(1 - increase(0.01, 0.01)) * dice + increase(0.01, 0.01) * boundary + linear(1, 0, epochs=4) * focal"
    )
    assert loss.weights() == pytest.approx({"dice": 0.99, "boundary": 0.01, "focal": 1})
    loss.set_epoch(2)
    assert loss.weights() == pytest.approx({"dice": 0.97, "boundary": 0.03, "focal": 0.5})
    total = loss(LOGITS, LABELS)
    torch.testing.assert_close(total, sum(w * loss.terms[name] for name, w in loss.weights().items()))
    loss.set_epoch(500)
    assert loss.weights() == pytest.approx({"dice": 0, "boundary": 1, "focal": 0})


@pytest.mark.parametrize(
    ("expression", "mode", "answer"),
    [
        ("focal_tversky(gamma=0)", "multiclass", "gamma must be above 0"),
        ("generalized_wasserstein_dice(background=7)", "multiclass", r"background must be a class from 0 to 2, got 7"),
        ("generalized_wasserstein_dice(background=-1)", "multiclass", r"background must be a class from 0 to 2"),
        ("focal(alpha=1.5)", "binary", r"alpha must be at most 1"),
        ("poly1_focal(alpha=[1.5])", "binary", r"alpha must be at most 1"),
    ],
)
def test_a_value_that_means_nothing_is_answered(expression, mode, answer):
    logits = LOGITS if mode == "multiclass" else LOGITS[:, :1]
    with pytest.raises(ValueError, match=answer):
        build_loss(expression, mode=mode)(logits, LABELS.clamp_max(1))


OWN = """
from medseg.losses.comparison import Comparison
from medseg.losses.table import loss
from medseg.types import PerClass

def plain(x: Comparison, *, k: float = 1.0) -> PerClass:
    return k * (1 - x.tp / (x.tp + 2 * (x.fp + x.fn) + 1e-5))

@loss(family="region", paper="none", soft=True, batch=False)
def {name}(x: Comparison) -> PerClass:
    return plain(x)

def silent(x, *, k=1.0):
    return x.tp

def bare(x: Comparison, k: float) -> PerClass:
    return x.tp

value = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file of one's own losses in the working directory."""
    (tmp_path / "my_own_losses.py").write_text(OWN.format(name="decorated_of_my_own"), encoding="utf-8")
    (tmp_path / "my_second_dice.py").write_text(OWN.format(name="dice"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("my_own_losses", "my_second_dice"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own")
def test_a_loss_of_ones_own_is_named_by_its_path():
    built = build_loss("0.5 * my_own_losses.plain(k=2, include_background=False) + my_own_losses.decorated_of_my_own")
    p = LOGITS.softmax(1)
    g = torch.nn.functional.one_hot(LABELS, 3).movedim(-1, 1).float()
    tp, p, g = (v.flatten(2).sum(2) for v in (p * g, p, g))
    each = 1 - tp / (2 * (p + g) - 3 * tp + 1e-5)
    torch.testing.assert_close(built(LOGITS, LABELS), each[:, 1:].mean() + each.mean())
    assert list(built.terms) == ["my_own_losses_plain", "my_own_losses_decorated_of_my_own"]
    twin = pickle.loads(pickle.dumps(built))
    torch.testing.assert_close(twin(LOGITS, LABELS), built(LOGITS, LABELS))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("my_own_losses.plain(q=2)", r"my_own_losses.plain has no knob 'q'.*its knobs are: k, include_background"),
        ("my_own_losses.plain(2)", "need their names"),
        ("my_own_losses.silent", "must be annotated to return PerClass"),
        ("my_own_losses.bare", r"its knob k must stand after a \*"),
        ("my_own_losses.value", "cannot be called"),
        ("my_own_losses.Comparison", "is no function"),
        ("my_own_losses.missing", "has no missing"),
        ("my_absent_file.plain", "cannot be imported"),
        ("my_second_dice.dice", "there is a loss 'dice' already"),
        ("(dice + focal).plain", "is not a loss"),
    ],
)
def test_what_is_no_loss_of_ones_own_is_refused(expression, answer):
    with pytest.raises((ValueError, UsageError), match=answer):
        build_loss(expression)


EVERYTHING = "(1 - increase(0.1, 0.2)) * dice + linear(0, 1, epochs=3) / 2 * t_loss(nu_init=0.5) + -(-1) * blob"


def test_a_criterion_can_be_pickled_saved_copied_and_sent(tmp_path):
    loss = build_loss(EVERYTHING, ignore_index=3)
    loss.set_epoch(2)
    with torch.no_grad():
        next(loss.parameters()).fill_(0.7)
    expected = loss(LOGITS, LABELS)
    torch.save(loss, tmp_path / "loss.pt")
    for twin in (
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        torch.load(tmp_path / "loss.pt", weights_only=False),
    ):
        torch.testing.assert_close(twin(LOGITS, LABELS), expected)
        assert twin.weights() == loss.weights()


def test_a_criterion_shows_what_it_was_built_from():
    assert "dice + focal" in repr(build_loss("dice + focal"))


# ---------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("name", list_losses())
def test_every_page_says_what_one_must_know(name):
    text = describe(name)
    for heading in ("Use", "Known trouble", "ublic code", "Knobs:", "Paper:", "Range:", "Cost:"):
        assert heading in text
    assert text.splitlines()[2].strip()  # the equation


def test_knobs_have_meanings():
    silent = [f"{row['name']}: {line}" for row in rows() for line in describe(row["name"]).splitlines()
              if line.startswith("  ") and " = " in line and line.endswith(")") and line[2].isalpha()]  # fmt: skip
    assert silent == []


def test_an_unknown_page_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'dice'"):
        describe("dcie")


def test_the_list_is_data_and_text():
    assert [row["name"] for row in rows()] == list_losses()
    assert json.loads(json.dumps(rows("compound")))[0]["family"] == "compound"
    assert all(f"  {name}(" in overview() for name in list_losses())
