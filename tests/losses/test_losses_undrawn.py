"""Organs that some annotations lack: background there means "background or one of those", for every loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.losses import build_loss
from medseg.losses.table import rows

MULTICLASS = [row for row in rows().values() if "multiclass" in row.modes]
MERGED = [row for row in MULTICLASS if row.name != "exclusion"]  # which looks at each of the merged channels
CLASSES = 5
DRAWN = (0, 1, 3)
MASK = torch.tensor([[1, 1, 0, 1, 0]])


def example(space=(8, 7, 6), seed=0):
    """Logits of five classes, a target with blobs of the three that are drawn, and the same in a world of three."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, CLASSES, *space, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(2, *space, dtype=torch.long)
    for n in range(2):
        labels[n, 1:4, 1:4] = 1
        labels[n, 6:, :2] = 1
        labels[n, 4:7, 3 - n : 6] = 3
    merged = torch.cat([logits[:, [0, 2, 4]].logsumexp(1, keepdim=True), logits[:, [1, 3]]], 1)
    return logits, labels, merged, torch.where(labels == 3, 2, labels)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("row", MERGED, ids=lambda row: row.name)
def test_it_is_the_loss_of_a_network_without_the_undrawn_channels(row):
    logits, labels, merged, merged_labels = example()
    loss = build_loss(row.name)
    value = loss(logits, labels, class_mask=MASK.expand(2, -1))
    expected = loss(merged, merged_labels)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    slopes = [torch.autograd.grad(v, logits)[0] for v in (value, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-12)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("row", MULTICLASS, ids=lambda row: row.name)
def test_each_sample_has_its_own_undrawn_classes(row):
    if row.knobs.get("batch") or row.name in ("balanced_cross_entropy", "exp_log"):
        pytest.skip("what a sample costs depends on the batch")
    logits, labels, *_ = example()
    loss = build_loss(row.name, reduction="none")
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 0]])
    alone = [loss(logits[n : n + 1], labels[n : n + 1], class_mask=mask[n : n + 1])[0] for n in range(2)]
    torch.testing.assert_close(loss(logits, labels, class_mask=mask), torch.stack(alone))


SOFT = ["cross_entropy(label_smoothing=0.1)", "bce", "focal", "dice_squared", "dice(soft_target=True)", "nacl"]


@pytest.mark.parametrize("expression", SOFT)
def test_labels_of_undrawn_classes_are_background_whatever_the_form(expression):
    logits, labels, merged, merged_labels = example()
    labels[:, :, 6] = 2  # undrawn, yet there
    mask, loss = MASK.expand(2, -1), build_loss(expression)
    expected = loss(merged, merged_labels)
    torch.testing.assert_close(loss(logits, labels, class_mask=mask), expected)
    maps = nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).double()
    torch.testing.assert_close(loss(logits, maps, class_mask=mask), expected)
    if expression != "nacl":
        soft = maps * (1 - 1e-10) + 1e-10 / CLASSES
        torch.testing.assert_close(loss(logits, soft, class_mask=mask), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("row", MULTICLASS, ids=lambda row: row.name)
def test_nothing_pushes_an_undrawn_organ_out_of_the_background(row):
    """A network that is right but for undrawn organs, which it finds in the background, has nothing to learn."""
    _, labels, *_ = example()
    sure = 30 * nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).double()
    found = sure.clone()
    organ = (labels == 0) & (torch.arange(6) > 3)
    found[:, 2][organ], found[:, 0][organ] = 30.0, 0.0
    loss, mask = build_loss(row.name), MASK.expand(2, -1)
    torch.testing.assert_close(
        loss(found, labels, class_mask=mask), loss(sure, labels, class_mask=mask), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("form", ["dice", "cross_entropy"])
def test_exclusion_looks_where_a_class_cannot_be(form):
    """The paper's equations over its exclusion labels, of all classes: the complement, or all that was drawn."""
    logits, labels, *_ = example()
    labels[:, :, :, 0], p = 255, logits.softmax(1)
    here = (labels != 255).double()
    terms = []
    for n, c in ((n, c) for n in range(2) for c in range(CLASSES)):
        e = here[n] * (labels[n] != c if MASK[0, c] else labels[n] != 0)
        if form == "dice":
            terms.append(2 * (p[n, c] * e).sum() / ((p[n, c] * here[n]).sum() + e.sum() + 1e-5))
        else:
            terms.append(((p[n, c] + 1).log() * e).sum() / here[n].sum())
    loss = build_loss(f"exclusion(form={form!r})", ignore_index=255)
    torch.testing.assert_close(loss(logits, labels, class_mask=MASK.expand(2, -1)), torch.stack(terms).mean())


def test_exclusion_lets_an_undrawn_organ_be_in_the_background_only():
    _, labels, *_ = example()
    loss, mask, costs = build_loss("exclusion"), MASK.expand(2, -1), []
    for place in (labels < 0, (labels == 0) & (torch.arange(6) > 3), labels == 1):
        maps = nn.functional.one_hot(labels.masked_fill(place, 2), CLASSES).movedim(-1, 1)
        costs.append(loss(40 * maps.double(), labels, class_mask=mask).item())
    assert costs[0] < 1e-12
    assert costs[1] < 1e-12
    assert costs[2] > 0.1


# ---------------------------------------------------------------------------------------------- it is learnt


def toy(count, size=20):
    """Noisy images of a disc that is always drawn, and of a brighter square that is drawn in the first image only."""
    generator = torch.Generator().manual_seed(3)
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.long)
    for n in range(count):
        a, b = (int(v) for v in torch.randint(5, 8, (2,), generator=generator))
        labels[n][(i - a) ** 2 + (j - b) ** 2 < 16] = 1
        labels[n, 13 : 16 + n % 3, 10 + n % 4 : 15 + n % 3] = 2
    images = labels.float() + 0.15 * torch.randn(labels.shape, generator=generator)
    drawn = labels.clone()
    drawn[1:][drawn[1:] == 2] = 0
    mask = torch.ones(count, 3)
    mask[1:, 2] = 0
    return images.unsqueeze(1), labels, drawn, mask


def dice_of_the_square(expression, count, *, masked=True, steps=120):
    images, labels, drawn, mask = toy(count)
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(12, 3, 1),
    )
    loss = build_loss(expression)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(net(images), drawn, class_mask=mask if masked else None).backward()
        optimiser.step()
    found = net(images).argmax(1) == 2
    return (2 * (found & (labels == 2)).sum() / (found.sum() + (labels == 2).sum())).item()


@pytest.mark.sweep(4)
@pytest.mark.parametrize("count", [12, 24])
@pytest.mark.parametrize(
    "expression",
    ["cross_entropy", "dice + cross_entropy", "focal", "tversky + cross_entropy", "asymmetric_unified_focal"],
)
def test_an_organ_that_one_image_shows_is_learnt(expression, count):
    assert dice_of_the_square(expression, count) > 0.9


def test_it_would_not_be_if_undrawn_meant_absent():
    assert dice_of_the_square("cross_entropy", 12, masked=False) < 0.1
