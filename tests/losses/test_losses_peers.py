"""Against MONAI and torch where they agree, by the documented factor where they do not, and against each other."""

from __future__ import annotations

import math

import monai.losses as theirs
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias

from medseg.losses import build_loss

G = torch.Generator().manual_seed(11)
Z = torch.randn(2, 4, 7, 6, 5, generator=G, dtype=torch.float64)
Y = torch.randint(0, 4, (2, 7, 6, 5), generator=G)
Y[0][Y[0] == 3] = 0  # a class absent from one sample
ZB = torch.randn(2, 1, 7, 6, 5, generator=G, dtype=torch.float64)
YB = torch.randint(0, 2, (2, 1, 7, 6, 5), generator=G)
W = [0.5, 2.0, 10.0, 1.0]
SOFTMAX = {"softmax": True, "to_onehot_y": True}


def ours(expression, mode="multiclass", **options):
    logits, target = (Z, Y) if mode == "multiclass" else (ZB, YB)
    return build_loss(expression, mode=mode, **options)(logits, target)


MONAI = [
    ("dice", theirs.DiceLoss(**SOFTMAX), 1),
    ("dice(batch=True, include_background=False)", theirs.DiceLoss(batch=True, include_background=False, **SOFTMAX), 1),
    ("batch_dice", theirs.DiceLoss(batch=True, **SOFTMAX), 1),
    ("dice_squared", theirs.DiceLoss(squared_pred=True, **SOFTMAX), 1),
    ("dice(smooth_nr=0.3, smooth_dr=0.7)", theirs.DiceLoss(smooth_nr=0.3, smooth_dr=0.7, **SOFTMAX), 1),
    (f"dice(weight={W}, weight_mode='plain')", theirs.DiceLoss(weight=torch.tensor(W), **SOFTMAX), 1),
    ("jaccard(smooth_nr=0.5, smooth_dr=0.5)", theirs.DiceLoss(jaccard=True, smooth_nr=1, smooth_dr=1, **SOFTMAX), 1),
    ("tversky(alpha=0.3, beta=0.7)", theirs.TverskyLoss(alpha=0.3, beta=0.7, **SOFTMAX), 1),
    ("generalized_dice", theirs.GeneralizedDiceLoss(**SOFTMAX), 1),
    ("generalized_dice(w_type='simple', batch=True)",
     theirs.GeneralizedDiceLoss(w_type="simple", batch=True, **SOFTMAX), 1),
    ("generalized_dice(w_type='uniform')", theirs.GeneralizedDiceLoss(w_type="uniform", **SOFTMAX), 1),
    ("dice_ce", theirs.DiceCELoss(**SOFTMAX), 1),
    ("nacl", theirs.NACLLoss(classes=4, dim=3, kernel_size=3, alpha=0.1), 1),
    ("focal(gamma=2)", theirs.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2), 4),
    ("focal(gamma=0.5)", theirs.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=0.5), 4),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "peer", "factor"), MONAI, ids=lambda v: v if isinstance(v, str) else "")
def test_monai_over_classes(expression, peer, factor):
    target = Y if isinstance(peer, theirs.NACLLoss) else Y.unsqueeze(1)
    torch.testing.assert_close(ours(expression), factor * peer(Z, target).double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("expression", "peer"),
    [
        ("dice", theirs.DiceLoss(sigmoid=True)),
        ("dice_ce", theirs.DiceCELoss(sigmoid=True)),
        ("dice_focal", theirs.DiceFocalLoss(sigmoid=True)),
        ("focal(gamma=2, alpha=0.25)", theirs.FocalLoss(gamma=2, alpha=0.25)),
        ("generalized_dice", theirs.GeneralizedDiceLoss(sigmoid=True)),
        ("tversky(alpha=0.7, beta=0.2)", theirs.TverskyLoss(sigmoid=True, alpha=0.7, beta=0.2)),
        ("mcc", theirs.MCCLoss(sigmoid=True)),
    ],
)  # fmt: skip
def test_monai_of_one_channel(expression, peer):
    torch.testing.assert_close(ours(expression, "binary"), peer(ZB, YB.double()).double(), rtol=1e-6, atol=1e-8)


def test_monai_wasserstein_dice():
    matrix = torch.tensor([[0, 1, 1, 1], [1, 0, 0.4, 0.6], [1, 0.4, 0, 0.3], [1, 0.6, 0.3, 0]], dtype=torch.float64)
    for weighting in ("default", "GDL"):
        peer = theirs.GeneralizedWassersteinDiceLoss(matrix, weighting_mode=weighting)
        expression = f"generalized_wasserstein_dice(dist_matrix={matrix.tolist()}, weighting='{weighting}')"
        torch.testing.assert_close(ours(expression), peer(Z, Y).double(), rtol=1e-5, atol=1e-6)


def test_monai_unified_focal_halves_its_focal_part():
    p = torch.cat([1 - ZB.sigmoid(), ZB.sigmoid()], 1)
    one_hot = F.one_hot(YB[:, 0], 2).movedim(-1, 1).double()
    peer = theirs.AsymmetricUnifiedFocalLoss(num_classes=2, weight=1.0, gamma=0.5, delta=0.7)
    half = ours("0.5 * asymmetric_focal(gamma=0.5, delta=0.7)", "binary")
    tversky = theirs.unified_focal_loss.AsymmetricFocalTverskyLoss(gamma=0.5, delta=0.7)(p, one_hot)
    torch.testing.assert_close(
        theirs.unified_focal_loss.AsymmetricFocalLoss(gamma=0.5, delta=0.7)(p, one_hot), half, rtol=1e-5, atol=1e-6
    )
    assert not torch.isclose(peer(p, one_hot), ours("asymmetric_focal(gamma=0.5, delta=0.7)", "binary"))
    ours_tversky = ours("asymmetric_focal_tversky(gamma=0.5, delta=0.7)", "binary")
    torch.testing.assert_close(tversky, ours_tversky, rtol=1e-3, atol=1e-4)


def test_torch_cross_entropies():
    weight = torch.tensor(W, dtype=torch.float64)
    pairs = [
        ("cross_entropy", F.cross_entropy(Z, Y)),
        ("cross_entropy(label_smoothing=0.1)", F.cross_entropy(Z, Y, label_smoothing=0.1)),
        (f"weighted_cross_entropy(weight={W})", F.cross_entropy(Z, Y, weight=weight)),
        (f"cross_entropy(weight={W}, normalize='weights', label_smoothing=0.2)",
         F.cross_entropy(Z, Y, weight=weight, label_smoothing=0.2)),
    ]  # fmt: skip
    for expression, expected in pairs:
        torch.testing.assert_close(ours(expression), expected)
    ignored = F.cross_entropy(Z, Y, weight=weight, ignore_index=2)
    torch.testing.assert_close(ours(f"weighted_cross_entropy(weight={W})", ignore_index=2), ignored)
    positive = F.binary_cross_entropy_with_logits(ZB, YB.double(), pos_weight=torch.tensor([3.0]))
    torch.testing.assert_close(ours("bce(pos_weight=3)", "binary"), positive)


IDENTITIES = [
    ("focal(gamma=0)", "cross_entropy"),
    ("topk_cross_entropy(k=100)", "cross_entropy"),
    ("poly1_cross_entropy(epsilon=0)", "cross_entropy"),
    ("logit_margin(margin=inf)", "cross_entropy"),
    ("poly1_focal(epsilon=0)", "focal"),
    ("poly1_focal(gamma=0)", "poly1_cross_entropy"),
    ("symmetric_focal(delta=0.5, gamma=2)", "0.5 * focal(gamma=2)"),
    ("symmetric_focal(delta=0.5, gamma=0)", "0.5 * cross_entropy"),
    ("asymmetric_focal(gamma=0)", "symmetric_focal(gamma=0)"),
    ("tversky(alpha=0.5, beta=0.5, smooth=0.1)", "dice(smooth_nr=0.2, smooth_dr=0.2)"),
    ("tversky(alpha=1, beta=1, smooth=0.1)", "jaccard(smooth_nr=0.1, smooth_dr=0.1)"),
    ("asymmetric_similarity(beta=1, smooth=0.1)", "dice(smooth_nr=0.2, smooth_dr=0.2)"),
    ("asymmetric_similarity(beta=2)", "tversky(alpha=0.2, beta=0.8)"),
    ("focal_tversky(gamma=1)", "tversky"),
    ("symmetric_focal_tversky(gamma=0.25, delta=0.7, smooth=1e-5)", "focal_tversky"),
    ("asymmetric_focal_tversky(gamma=0)", "symmetric_focal_tversky(gamma=0)"),
    ("symmetric_unified_focal(lam=0, gamma=0, delta=0.5, smooth=5e-6)", "dice"),
    ("symmetric_unified_focal(lam=1, gamma=0, delta=0.5)", "0.5 * cross_entropy"),
    ("asymmetric_unified_focal(gamma=0)", "symmetric_unified_focal(gamma=0)"),
    ("hybrid_focal(focal_gamma=0, alpha=0.5, beta=0.5, gamma=1, smooth=5e-6)", "0.5 * cross_entropy + 0.5 * dice"),
    ("combo(alpha=1, beta=0.5)", "0.5 * bce"),
    ("exp_log(w_dice=0, w_ce=1, gamma_ce=1, class_weight=[1, 1, 1, 1])", "cross_entropy"),
    ("anatomynet(lam=0)", "4 * batch_dice(smooth_nr=2e-5, smooth_dr=2e-5)"),
    ("penalty_generalized_dice(k=0)", "generalized_dice"),
    ("blob(alpha=1, beta=0, criterion='dice')", "dice(include_background=False)"),
    ("dice_squared", "dice(squared=True)"),
    ("dice(soft_target=True)", "dice"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_identities(one, other):
    torch.testing.assert_close(ours(one), ours(other), rtol=1e-9, atol=1e-10)


def test_focal_of_one_is_not_cross_entropy():
    assert not torch.isclose(ours("focal(gamma=1)"), ours("cross_entropy"))


def test_combo_without_cross_entropy_is_a_score():
    torch.testing.assert_close(ours("combo(alpha=0)"), ours("dice(smooth_nr=1, smooth_dr=1)") - 1)


def test_log_cosh():
    torch.testing.assert_close(ours("log_cosh_dice"), ours("dice").cosh().log())
    assert ours("log_cosh_dice(per_class=True)") > ours("log_cosh_dice")  # it is convex


def test_jaccard_is_a_function_of_dice():
    target, logits = torch.zeros(1, 6, 6, dtype=torch.long), torch.randn(1, 1, 6, 6, dtype=torch.float64)
    target[0, :3] = 1
    j, d = (build_loss(f"{n}(smooth_nr=0, smooth_dr=0)", mode="binary")(logits, target) for n in ("jaccard", "dice"))
    torch.testing.assert_close(1 - j, (1 - d) / (2 - (1 - d)))


def test_two_class_softmax_is_a_sigmoid():
    pair = torch.cat([torch.zeros_like(ZB), ZB], 1)
    for expression in ("cross_entropy", "focal", "poly1_focal", "symmetric_unified_focal", "asymmetric_unified_focal"):
        torch.testing.assert_close(build_loss(expression)(pair, YB), ours(expression, "binary"))


def test_balanced_cross_entropy_is_a_mean_of_class_means():
    error = F.cross_entropy(Z, Y, reduction="none")
    torch.testing.assert_close(
        ours("balanced_cross_entropy"), torch.stack([error[c == Y].mean() for c in range(4)]).mean()
    )
    error = F.binary_cross_entropy_with_logits(ZB, YB.double(), reduction="none")
    share = YB.double().mean()
    macro = (error[YB == 1].mean() + error[YB == 0].mean()) / 2
    torch.testing.assert_close(ours("balanced_cross_entropy", "binary"), 2 * share * (1 - share) * macro)


def test_wasserstein_dice_of_two_classes_is_foreground_dice():
    two, target = Z[:, :2], Y.clamp_max(1)
    dice = build_loss("dice(include_background=False, smooth_nr=0, smooth_dr=0)")(two, target)
    torch.testing.assert_close(build_loss("generalized_wasserstein_dice(smooth=0)")(two, target), dice)
    binary = build_loss("generalized_wasserstein_dice", mode="binary")(two[:, 1:] - two[:, :1], target)
    torch.testing.assert_close(binary, build_loss("generalized_wasserstein_dice")(two, target))


def test_lovasz_of_hard_predictions_is_the_iou():
    hard = F.one_hot(Z.argmax(1), 4).movedim(-1, 1) * 1e4
    ious = [((hard.argmax(1) == c) & (c == Y)).sum() / ((hard.argmax(1) == c) | (c == Y)).sum() for c in range(4)]
    value = build_loss("lovasz_softmax")(hard.double(), Y)
    torch.testing.assert_close(value, (1 - torch.stack(ious)).mean().double(), rtol=1e-6, atol=1e-7)


def test_the_t_loss_tends_to_a_gaussian():
    d = 42
    logits, target = torch.randn(1, 1, 6, 7, dtype=torch.float64), torch.randint(0, 2, (1, 6, 7))
    value = build_loss("t_loss(nu_init=25)", mode="binary")(logits, target)
    gaussian = d / 2 * math.log(2 * math.pi) + ((logits.sigmoid() - target.unsqueeze(1)) ** 2).sum() / 2
    torch.testing.assert_close(value, gaussian, rtol=1e-4, atol=1e-3)


def test_shares_of_top_k_follow_ignored_voxels():
    logits, target = torch.randn(1, 2, 4, 5, dtype=torch.float64), torch.randint(0, 2, (1, 4, 5))
    target[0, :2] = 9
    errors = F.cross_entropy(logits[:, :, 2:], target[:, 2:], reduction="none").flatten()
    value = build_loss("topk_cross_entropy(k=25)", ignore_index=9)(logits, target)
    torch.testing.assert_close(value, errors.topk(2).values.mean())


def test_bce_of_a_softmax_is_exact_where_p_rounds_to_one():
    logits = torch.tensor([80.0, 0.0, -40.0]).reshape(1, 3, 1, 1).requires_grad_()
    value = build_loss("bce")(logits, torch.tensor([[[1]]]))
    value.backward()
    assert value.item() == pytest.approx((80 + 80) / 3, rel=1e-5)
    assert logits.grad.flatten().tolist() == pytest.approx([2 / 3, -2 / 3, 0], abs=1e-4)
