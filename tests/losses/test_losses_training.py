"""Every loss teaches a small network to find a large disc and a tiny square; some only with their companion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.losses import build_loss
from medseg.losses.table import rows

COMPANIONS = {
    "hausdorff_dt": "dice + 0.1 * hausdorff_dt",
    "log_hausdorff_dt": "dice + 0.1 * log_hausdorff_dt",
    "hausdorff_er": "dice + hausdorff_er",
    "boundary": "dice + increase(0.01, 0.01) * boundary",
    "skeleton_recall": "dice + cross_entropy + skeleton_recall",
    "weighted_hausdorff": "dice + 0.1 * weighted_hausdorff",
    "cbdice": "dice + cross_entropy + cbdice",
    "exclusion": "dice + cross_entropy + exclusion",
    "l1_ace": "dice + cross_entropy + l1_ace",
    "generalized_cross_entropy": "dice + generalized_cross_entropy",
    "symmetric_cross_entropy": "dice + symmetric_cross_entropy",
    "region_mutual_information": "bce + linear(0, 1, epochs=4) * region_mutual_information(pool=1)",
    "size_barrier": "dice + cross_entropy + 0.01 * size_barrier",
    "size_penalty": "dice + cross_entropy + 0.01 * size_penalty",
}
"""What the papers add to a loss that cannot train alone."""

ONE_STRUCTURE = {
    "generalized_wasserstein_dice": "without a matrix it tells structures from background only",
    "blob": "its default criterion does not look at the background",
    "cldice": "it compares centre lines, and the square has hardly one",
}
"""Losses that are shown the union of disc and square, and why."""


def phantom(samples=2, size=28):
    """Noisy images of a disc and of a square of nine voxels, brighter than the disc."""
    generator = torch.Generator().manual_seed(1)
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(samples, size, size, dtype=torch.long)
    for n in range(samples):
        labels[n][(i - 10 - n) ** 2 + (j - 11) ** 2 < 49] = 1
        labels[n, 20 + n : 23 + n, 21:24] = 2
    images = labels.float() + 0.15 * torch.randn(labels.shape, generator=generator)
    return images.unsqueeze(1), labels


def target_of(labels, mode):
    if mode == "multiclass":
        return labels, 3
    if mode == "binary":
        return (labels > 0).long(), 1
    return torch.stack([labels == 1, labels == 2], 1).long(), 2


def worst_dice(logits, target, mode):
    """The hard Dice of the worst structure."""
    if mode == "multiclass":
        pairs = [(logits.argmax(1) == c, target == c) for c in (1, 2)]
    else:
        hits = (logits > 0).flatten(2) if mode == "multilabel" else (logits > 0)
        truth = target.flatten(2) if mode == "multilabel" else target.unsqueeze(1)
        pairs = [(hits[:, c], truth[:, c] > 0) for c in range(hits.shape[1])]
    return min(2.0 * (a & b).sum().item() / max(1, (a.sum() + b.sum()).item()) for a, b in pairs)


def train(expression, mode, steps=80):
    images, labels = phantom()
    target, channels = target_of(labels, mode)
    torch.manual_seed(2)
    layers = [
        layer for c in (1, 16) for layer in (nn.Conv2d(c, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.LeakyReLU())
    ]
    net = nn.Sequential(*layers, nn.Conv2d(16, channels, 1))
    loss = build_loss(expression, mode=mode)
    optimiser = torch.optim.Adam([*net.parameters(), *loss.parameters()], lr=0.03)
    before = worst_dice(net(images), target, mode)
    for step in range(steps):
        loss.set_epoch(step // 10)
        optimiser.zero_grad()
        loss(net(images), target).backward()
        optimiser.step()
    return before, worst_dice(net(images), target, mode)


@pytest.mark.sweep(30)
@pytest.mark.parametrize("row", rows().values(), ids=lambda row: row.name)
def test_the_network_learns(row):
    assert row.alone == (row.name not in COMPANIONS)
    mode = "binary" if row.name in ONE_STRUCTURE else row.modes[0]
    before, after = train(COMPANIONS.get(row.name, row.name), mode)
    assert before < 0.4
    assert after > 0.6


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["boundary", "hausdorff_er", "skeleton_recall"])
def test_what_needs_a_companion_does_not_learn_alone(name):
    assert train(name, "multiclass")[1] < 0.6
