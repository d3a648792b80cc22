"""Networks: every name builds, runs forward and backward on any size, and says no in a sentence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.errors import UsageError
from medseg.nets import NetSpec, build_net, list_nets
from medseg.nets.norm import InstanceNorm3d, with_fast_norms

SPEC = NetSpec(1, 3, (16, 16, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (4, 8))


@pytest.mark.parametrize("name", list_nets())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_net_trains_on_sizes_that_its_strides_do_not_divide(name, channels):
    spec = NetSpec(channels, 3, (16, 16, 16), SPEC.strides, SPEC.kernels, SPEC.features)
    net = build_net(name, spec)
    logits = net(torch.randn(2, channels, 17, 21, 15))
    assert logits.shape == (2, 3, 17, 21, 15)
    logits.square().mean().backward()
    missing = [key for key, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing


def test_anisotropic_strides_and_kernels_are_followed():
    spec = NetSpec(1, 2, (16, 16, 4), ((1, 1, 1), (2, 2, 1)), ((3, 3, 1), (3, 3, 3)), (4, 8))
    net = build_net("unet", spec)
    assert spec.multiple == (2, 2, 1)
    kernels = {tuple(m.kernel_size) for m in net.modules() if isinstance(m, nn.Conv3d)}
    assert (3, 3, 1) in kernels
    assert net(torch.randn(1, 1, 16, 16, 5)).shape == (1, 2, 16, 16, 5)


def test_a_foreign_module_by_its_path():
    net = build_net("monai.networks.nets.SegResNet", SPEC, {"spatial_dims": 3, "init_filters": 8})
    assert net(torch.randn(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("unte", {}, "did you mean 'unet'"),
        ("unet", {"residul": True}, "did you mean 'residual'"),
        ("monai.networks.nets.NoNet", {}, "cannot be imported"),
        ("monai.networks.nets.SegResNet", {"spatial": 3}, "refuses its arguments"),
        ("fractions.Fraction", {"in_channels": 1, "out_channels": 1}, "refuses its arguments"),
    ],
)
def test_a_misspelt_net_or_knob_is_answered_with_a_sentence(name, knobs, words):
    with pytest.raises(UsageError, match=words):
        build_net(name, SPEC, knobs)


@settings(deadline=None, max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(2, 5)),
    affine=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_fast_norm_is_torchs_instance_norm_and_so_are_its_gradients(shape, affine, seed):
    torch.manual_seed(seed)
    theirs = nn.InstanceNorm3d(shape[1], affine=affine)
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours = with_fast_norms(nn.Sequential(theirs))[0]
    assert type(ours) is InstanceNorm3d
    x = torch.randn(shape, dtype=torch.float32)
    x_ours = x.clone(memory_format=torch.channels_last_3d).requires_grad_()
    x_theirs = x.clone().requires_grad_()
    weights = torch.randn(shape)
    ours.zero_grad()
    (ours(x_ours) * weights).sum().backward()
    gradients = [p.grad for p in ours.parameters()]
    theirs = nn.InstanceNorm3d(shape[1], affine=affine)
    theirs.load_state_dict(ours.state_dict())
    (theirs(x_theirs) * weights).sum().backward()
    torch.testing.assert_close(ours(x_ours), theirs(x_theirs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=1e-3, atol=1e-3)
    for mine, p in zip(gradients, theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-3)
