"""Two processes with half the batch each have the loss and the gradients of one process with all of it."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def work(rank, port, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    images, labels = batch_of_four()
    half = slice(2 * rank, 2 * rank + 2)
    found = gradients(nn.parallel.DistributedDataParallel(network()), images[half], labels[half])
    queue.put((rank, {name: (value.item(), gradient.tolist()) for name, (value, gradient) in found.items()}))
    dist.destroy_process_group()


@pytest.mark.ddp
def test_two_ranks_are_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name, (value, gradient) in gradients(network(), *batch_of_four()).items():
        mean = sum(results[rank][name][0] for rank in results) / 2
        assert mean == pytest.approx(value.item(), rel=1e-9), name
        if name in WHOLE:
            assert results[0][name][0] == pytest.approx(results[1][name][0], rel=1e-12), name
        for rank in results:
            torch.testing.assert_close(torch.tensor(results[rank][name][1], dtype=torch.float64), gradient, msg=name)
