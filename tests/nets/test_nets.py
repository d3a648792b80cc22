"""Networks: every name builds, runs forward and backward on any size, and says no in a sentence."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.nets import TINY
from torch import nn

from medseg.errors import UsageError
from medseg.nets import NetSpec, build_net, deeply_supervised_nets, list_nets
from medseg.nets.norm import InstanceNorm3d, with_fast_norms
from medseg.nets.residual_encoder import block_mean

SPEC = NetSpec(1, 3, (32, 16, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (4, 8, 8))
FLAT = NetSpec(1, 2, (16, 16, 4), ((1, 1, 1), (2, 2, 1), (2, 2, 1)), ((3, 3, 1), (3, 3, 3), (3, 3, 3)), (4, 8, 8))
SIZES = {"swin_unetr": (33, 9, 8)}  # its halvings leave one voxel of smaller ones


def tiny(name, channels=1, spec=SPEC, **knobs):
    """A network as narrow as it goes, and an image of a size that its strides do not divide."""
    torch.manual_seed(0)
    patch = (64, 32, 32) if name == "swin_unetr" else spec.patch_size
    spec = NetSpec(channels, spec.out_channels, patch, spec.strides, spec.kernels, spec.features)
    return build_net(name, spec, {**TINY.get(name, {}), **knobs}), torch.randn(
        2, channels, *SIZES.get(name, (31, 15, 13))
    )


def untrained(net):
    """The parameters that a backward pass left without a finite gradient."""
    return [key for key, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


def test_the_table_holds_the_networks_of_the_field():
    wanted = "anatomynet attention_unet mednext residual_encoder_unet segresnet swin_unetr unet unetr vnet"
    assert list_nets() == wanted.split()


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list_nets())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_net_trains_on_sizes_that_its_strides_do_not_divide(name, channels):
    net, image = tiny(name, channels)
    logits = net(image)
    assert logits.shape == (2, 3, *image.shape[2:])
    logits.square().mean().backward()
    assert not untrained(net)


@pytest.mark.parametrize("block", [(2, 2, 2), (1, 2, 3)])
def test_the_mean_of_blocks_that_repeats_itself_on_cuda_is_the_pooled_one(block):
    x = torch.randn(2, 3, 4, 6, 6, requires_grad=True)
    means = [block_mean(x, block), nn.AvgPool3d(block, block)(x)]
    torch.testing.assert_close(*means)
    weights = torch.randn_like(means[0])
    torch.testing.assert_close(*(torch.autograd.grad((mean * weights).sum(), x)[0] for mean in means))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", deeply_supervised_nets())
def test_deep_supervision_gives_every_level_on_its_own_grid_in_training_alone(name):
    net, image = tiny(name, channels=4, deep_supervision=True)
    levels = net(image)
    assert isinstance(levels, tuple)
    assert len(levels) >= 2
    labels = torch.zeros(2, *image.shape[2:])
    for depth, level in enumerate(levels):
        stride = 2**depth
        assert level.shape == (2, 3, *labels[:, ::stride, ::stride, ::stride].shape[1:])
    sum(level.square().mean() for level in levels).backward()
    assert not untrained(net)
    with torch.no_grad():
        assert net.eval()(image).shape == levels[0].shape


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["unet", "attention_unet", "mednext"])
def test_a_copy_of_a_deeply_supervised_net_stands_on_its_own(name):
    net, image = tiny(name, deep_supervision=True)
    expected = net(image)
    twin = copy.deepcopy(net)  # as the averaged weights are
    for p in net.parameters():
        nn.init.zeros_(p)
    for level, wanted in zip(twin(image), expected, strict=True):
        torch.testing.assert_close(level, wanted)


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["unet", "swin_unetr", "unetr", "anatomynet"])
def test_nets_with_instance_norm_train_in_16_bits_on_channels_last_memory(name):
    net, image = tiny(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(image.contiguous(memory_format=torch.channels_last_3d))
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    assert not untrained(net)


@pytest.mark.parametrize("name", ["anatomynet", "attention_unet", "residual_encoder_unet", "segresnet", "unet"])
def test_anisotropic_strides_are_followed(name):
    net, _ = tiny(name, spec=FLAT)
    assert net.multiple[2] == 1
    assert net.multiple[0] == net.multiple[1] > 1
    assert net(torch.randn(2, 1, 18, 18, 5)).shape == (2, 2, 18, 18, 5)


@pytest.mark.parametrize("name", ["residual_encoder_unet", "segresnet", "unet"])
def test_flat_kernels_are_followed_where_the_grid_is_still_flat(name):
    net, _ = tiny(name, spec=FLAT)
    first = next(m for m in net.modules() if isinstance(m, nn.Conv3d))
    assert tuple(first.kernel_size) == (3, 3, 1)


def test_a_single_stage_is_deepened_without_coarsening():
    shallow = NetSpec(1, 2, (6, 6, 6), ((1, 1, 1),), ((3, 3, 3),), (4,))
    for name in ("unet", "residual_encoder_unet", "attention_unet"):
        assert build_net(name, shallow)(torch.randn(2, 1, 5, 6, 7)).shape == (2, 2, 5, 6, 7)


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("anatomynet", {"deep_supervision": True}, "no deep supervision. Those that have are attention_unet, mednext"),
        ("mednext", {"size": "xl"}, "no size 'xl'. Choose one of s, b, m, l"),
        ("mednext", {"kernel": 4}, "kernel of 4 voxels"),
        ("swin_unetr", {"width": 50}, "12 divides, got 50. Choose 48"),
        ("swin_unetr", {"depths": [2, 2]}, "4 stages, got 2"),
        ("unetr", {"hidden": 100, "heads": 12}, "100 hidden values by 12 heads. Choose a multiple such as 96"),
    ],
)
def test_knobs_that_cannot_work_are_refused_with_numbers(name, knobs, words):
    with pytest.raises(UsageError, match=words):
        build_net(name, NetSpec(1, 3, (64, 64, 64), SPEC.strides, SPEC.kernels, SPEC.features), knobs)


@pytest.mark.parametrize("name", ["mednext", "residual_encoder_unet", "swin_unetr", "unet", "vnet"])
def test_a_patch_of_which_one_voxel_would_be_left_is_refused_with_numbers(name):
    small = NetSpec(1, 3, (4, 4, 4), SPEC.strides, SPEC.kernels, SPEC.features)
    with pytest.raises(UsageError, match=r"leaves one voxel of the patch of 4 x 4 x 4. Plan patches of more than"):
        build_net(name, small)


def test_unetr_refuses_what_is_larger_than_its_position_embedding():
    net, _ = tiny("unetr")
    with pytest.raises(UsageError, match="at most 32 x 16 x 16 voxels, got 33 x 16 x 16"):
        net(torch.randn(1, 1, 33, 16, 16))


def test_a_foreign_module_by_its_path():
    net = build_net("monai.networks.nets.SegResNet", SPEC, {"spatial_dims": 3, "init_filters": 8})
    assert net(torch.randn(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("unte", {}, "did you mean 'unet'"),
        ("unet", {"residul": True}, "did you mean 'residual'"),
        ("monai.networks.nets.NoNet", {}, "has no NoNet"),
        ("monai.networks.nets.SegResNet", {"spatial": 3}, "cannot be built with"),
        ("fractions.Fraction", {"in_channels": 1, "out_channels": 1}, "no subclass of torch"),
    ],
)
def test_a_misspelt_net_or_knob_is_answered_with_a_sentence(name, knobs, words):
    with pytest.raises(UsageError, match=words):
        build_net(name, SPEC, knobs)


@examples(20)
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
