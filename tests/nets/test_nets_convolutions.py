"""Convolutions over next to nothing: trained in float32 on the CPU, whatever the others are trained in."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from medseg.machine.hardware import cpu_multiplies_bf16
from medseg.nets import NetSpec, build_net, keep_short_ones_whole, list_nets

LAYERS = {
    "bottom of a V-Net": (nn.Conv3d(16, 16, 5, padding=2), (2, 3, 2), True),
    "two voxels along the first axis": (nn.Conv3d(16, 16, 3, padding=1), (2, 8, 8), True),
    "depthwise": (nn.Conv3d(16, 16, 7, padding=3, groups=16), (4, 8, 8), True),
    "strided, one voxel along the second axis": (nn.Conv3d(16, 16, 3, 2, padding=1), (8, 1, 8), True),
    "dilated": (nn.Conv3d(16, 16, 3, padding=2, dilation=2), (4, 8, 8), True),
    "transposed": (nn.ConvTranspose3d(16, 16, 4, 2, padding=1), (4, 1, 4), True),
    "as long as the kernel": (nn.Conv3d(16, 16, 3, padding=1), (3, 8, 8), False),
    "across thick slices": (nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1)), (1, 8, 8), False),
    "transposed, longer": (nn.ConvTranspose3d(16, 16, 2, 2), (2, 4, 4), False),
    "a picture": (nn.Conv2d(16, 16, 3, padding=1), (2, 8), True),
}


def spoil_memory(value):
    """Leave numbers in the memory that is handed out next, where whoever does not write before reading finds them."""
    for size in (2**8, 2**10, 2**12, 2**14, 2**16, 2**18):
        del [torch.full((size,), value) for _ in range(6)][:]


def gradients(net, image, *, bf16):
    net.zero_grad()
    spoil_memory(1e3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = net(image)
    output = output[0] if isinstance(output, tuple) else output
    spoil_memory(float("nan"))
    output.float().square().mean().backward()
    return output, [weight.grad.clone() for weight in net.parameters()]


@pytest.mark.parametrize(("layer", "extent", "short"), LAYERS.values(), ids=[*LAYERS])
def test_short_ones_alone_leave_autocast_and_have_the_gradient_of_float32(layer, extent, short):
    torch.manual_seed(0)
    layer, image = copy.deepcopy(layer), torch.randn(2, 16, *extent)
    _, expected = gradients(layer, image, bf16=False)
    keep_short_ones_whole(layer)
    output, found = gradients(layer, image, bf16=True)
    assert output.dtype == (torch.float32 if short else torch.bfloat16)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * float(theirs.abs().max()))
    assert not torch.is_autocast_enabled("cpu")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(image).dtype is torch.bfloat16
    assert gradients(layer, image, bf16=False)[0].dtype is torch.float32


def test_a_layer_that_fails_leaves_autocast_as_it_was():
    layer = nn.Conv3d(2, 2, 3, padding=1)
    keep_short_ones_whole(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="channels"):
            layer(torch.zeros(1, 5, 2, 8, 8))
        assert torch.is_autocast_enabled("cpu")


def test_it_is_done_once_and_travels_with_the_network():
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
    for _ in range(2):
        keep_short_ones_whole(net)
    image = torch.randn(1, 1, 2, 8, 8)
    for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert gradients(one, image, bf16=True)[0].dtype is torch.float32
    assert list(net.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="this processor does not multiply bf16")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("unetr")) for name in list_nets()]
)
def test_a_network_has_the_same_gradient_twice_whatever_was_in_memory(name):
    edge = 64 if name == "swin_unetr" else 32
    spec = NetSpec(1, 3, (edge,) * 3, ((1,) * 3, *((2,) * 3,) * 3), ((3,) * 3,) * 4, (4, 8, 16, 16))
    torch.manual_seed(0)
    net = build_net(name, spec).train()
    keep_short_ones_whole(net)
    image = torch.randn(2, 1, *spec.patch_size)
    (_, first), (_, second) = (gradients(net, image, bf16=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):  # Swin's table of positions is added up in any order
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(one.abs().max()))
