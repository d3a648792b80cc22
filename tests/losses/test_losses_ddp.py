"""Two processes with half the batch each have the loss and the gradients of one process with all of it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from support.ranks import WARNS, run_ranks
from torch import nn

from medseg.losses import build_loss

EXPRESSIONS = [
    "batch_dice",
    "dice(batch=True, absent='ignore') + cross_entropy",
    "generalized_dice(batch=True)",
    "tversky(batch=True, include_background=False)",
    "focal_tversky(batch=True)",
    "mcc(batch=True)",
    "sensitivity_specificity(batch=True)",
    "dice_squared(batch=True)",
    "anatomynet",
    "asymmetric_unified_focal(batch=True)",
    "balanced_cross_entropy",
    "exp_log(batch=True)",
    "generalized_wasserstein_dice(batch=True)",
    "skeleton_recall(batch=True)",
    "noise_robust_dice(batch=True)",
    "compatible_tversky(batch=True)",
    "boundary_dou(batch=True)",
    "size_penalty(batch=True)",
    "l1_ace(batch=True)",
    "cbdice(batch=True)",
    "symmetric_cross_entropy + cc_dice_ce + region_mutual_information",
]
WHOLE = EXPRESSIONS[:1] + EXPRESSIONS[2:8]
"""Nothing but sums over the batch: every rank has the whole batch's value."""


def batch_of_four():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 2, 6, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 6, 6, 6), generator=generator)
    labels[:2][labels[:2] == 2] = 0  # class 2 is absent from the first rank's half
    return images, labels


def network():
    torch.manual_seed(7)
    return nn.Conv3d(2, 3, 3, padding=1, dtype=torch.float64)


def gradients(net, images, labels):
    found = {}
    for expression in EXPRESSIONS:
        net.zero_grad()
        value = build_loss(expression)(net(images), labels)
        value.backward()
        own = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
        found[expression] = (value.detach(), torch.cat([p.grad.flatten().clone() for p in own.parameters()]))
    return found


def work(rank, folder):
    dist.init_process_group("gloo")
    images, labels = batch_of_four()
    half = slice(2 * rank, 2 * rank + 2)
    found = gradients(nn.parallel.DistributedDataParallel(network()), images[half], labels[half])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@WARNS
@pytest.mark.ddp
def test_two_ranks_are_one(tmp_path):
    run_ranks(work, 2, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (value, gradient) in gradients(network(), *batch_of_four()).items():
        costs = [found[name][0].item() for found in results]
        assert sum(costs) / 2 == pytest.approx(value.item(), rel=1e-9), name
        if name in WHOLE:
            assert costs[0] == pytest.approx(costs[1], rel=1e-12), name
        for found in results:
            torch.testing.assert_close(found[name][1], gradient, msg=name)
