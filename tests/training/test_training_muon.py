"""Muon beside torch's own for plain matrices, and beside AdamW for what is none."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg.nets import NetSpec, build_net, list_nets
from medseg.training.muon import Muon, mark_outputs, orthogonalized
from medseg.training.optimise import build_optimizer

LINE = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}


def walked(optimizer, weight, steps=4):
    """Where an optimizer takes a weight along given gradients."""
    chance = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=chance)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(16, 16), (12, 200), (96, 24)])
def test_a_matrix_goes_where_torch_takes_it(shape):
    """Torch's takes its Newton-Schulz steps in bfloat16, which is what remains between them."""
    first = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    found = walked(Muon([ours], **LINE), ours) - first
    expected = walked(torch.optim.Muon([theirs], **LINE, adjust_lr_fn="match_rms_adamw"), theirs) - first
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("shape", [(32, 16, 3, 3, 3), (48, 16, 2, 2, 2)])
def test_a_kernel_is_a_matrix_however_it_lies_in_memory(shape):
    first = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat, apart = nn.Parameter(first.flatten(1)), nn.Parameter(first.to(memory_format=torch.channels_last_3d))
    expected, chance = flat, torch.Generator().manual_seed(1)
    two = Muon([flat], **LINE), Muon([apart], **LINE)
    for _ in range(3):
        gradient = torch.randn(shape, generator=chance)
        flat.grad, apart.grad = gradient.flatten(1), gradient.to(memory_format=torch.channels_last_3d)
        for one in two:
            one.step()
    torch.testing.assert_close(apart.flatten(1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(24,), (3, 16, 1, 1, 1), (16, 1, 2, 2, 1)])
def test_what_is_no_matrix_is_adamws(shape):
    ours, theirs = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    found = walked(Muon([ours], lr=0.01, weight_decay=0.1), ours)
    assert torch.equal(found, walked(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), theirs))


@pytest.mark.parametrize("shape", [(8, 64), (8, 4000), (300, 20), (64, 500)])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_every_direction_is_as_long_as_another(shape, size):
    values = np.linalg.svd(orthogonalized(size * torch.randn(shape, generator=torch.Generator().manual_seed(3))))[1]
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_no_gradient_is_no_step():
    assert not orthogonalized(torch.zeros(16, 32)).any()


def test_state_makes_a_round_trip_and_goes_on_to_the_same_bits():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv3d(2, 16, 3), nn.Conv3d(16, 2, 1))

    def train(net, optimizer, steps):
        for seed in steps:
            image = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            net(image).square().mean().backward()
            optimizer.step()

    def optimizer(net):
        return build_optimizer("muon", net.parameters(), lr=0.01, weight_decay=1e-4, options={"momentum": 0.8})

    whole, begun, resumed = net(), net(), net()
    train(whole, optimizer(whole), range(6))
    first, second = optimizer(begun), optimizer(resumed)
    train(begun, first, range(3))
    resumed.load_state_dict(begun.state_dict())
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(3, 6))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_impossible_momentum_is_refused():
    with pytest.raises(ValueError, match="momentum is 1"):
        Muon([nn.Parameter(torch.ones(8, 8))], momentum=1)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", sorted(set(list_nets()) - {"swin_unetr", "unetr"}))
def test_layers_that_give_logits_are_adamws_however_many_classes(name):
    spec = NetSpec(1, 11, (32, 32, 32), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (8, 16, 32))
    net = build_net(name, spec, {})
    mark_outputs(net, 11)
    optimizer = build_optimizer("muon", net.parameters(), lr=0.01, weight_decay=0.0, options={})
    net(torch.randn(2, 1, 32, 32, 32)).sum().backward()
    optimizer.step()
    kept = {key: set(optimizer.state[weight]) for key, weight in net.named_parameters() if weight in optimizer.state}
    weights = [key for key in kept if key.endswith("weight")]
    assert "exp_avg" in kept["net.out_0.conv_out.weight" if name == "mednext" else weights[-1]]
    assert sum("momentum" in state for state in kept.values()) > 3
