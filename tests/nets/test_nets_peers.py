"""Networks held against their authors' own: nnU-Net's residual encoder, MONAI's MedNeXt, AnatomyNet's paper."""

import pytest
import torch
from monai.networks.nets import mednext
from torch import nn

from medseg.nets import NetSpec, build_net

SPEC = NetSpec(2, 3, (16, 16, 8), ((1, 1, 1), (2, 2, 1), (2, 2, 2)), ((3, 3, 1), (3, 3, 3), (3, 3, 3)), (4, 8, 12))


def test_the_residual_encoder_unet_computes_what_nnunets_does():
    peer = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason="nnU-Net's nets are absent")
    theirs = peer.ResidualEncoderUNet(
        input_channels=2,
        n_stages=3,
        features_per_stage=SPEC.features,
        conv_op=nn.Conv3d,
        kernel_sizes=SPEC.kernels,
        strides=SPEC.strides,
        n_blocks_per_stage=[1, 3, 4],
        num_classes=3,
        n_conv_per_stage_decoder=[1, 1],
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
    )
    ours = build_net("residual_encoder_unet", SPEC)
    coarse_head = "decoder.seg_layers.0"  # of deep supervision, which is off
    sources = [p for name, p in theirs.named_parameters() if not name.startswith(coarse_head)]
    for target, source in zip(ours.parameters(), sources, strict=True):
        nn.init.normal_(source, std=0.3)
        target.data.copy_(source.data)
    image = torch.randn(2, 2, 16, 16, 8)
    torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize("size", ["s", "b", "m", "l"])
def test_the_sizes_of_mednext_are_monais(size):
    spec = NetSpec(2, 3, (32, 32, 32), SPEC.strides, SPEC.kernels, SPEC.features)
    with torch.device("meta"):
        theirs = mednext.create_mednext(size, in_channels=2, out_channels=3)
        ours = build_net("mednext", spec, {"size": size})
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_anatomynet_is_the_published_one():
    """Widths of 28 to 34 at half resolution, one down-sampling, the input again at full resolution (section 2.C)."""
    net = build_net("anatomynet", SPEC)
    convolutions = [m for m in net.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))]
    strided = [m for m in convolutions if tuple(m.stride) != (1, 1, 1)]
    assert [type(m) for m in strided] == [nn.Conv3d, nn.ConvTranspose3d]
    assert {m.out_channels for m in convolutions} == {28, 30, 32, 34, 14, 3}
    joined = [m.in_channels for m in convolutions if m.in_channels in (34 + 32, 32 + 30, 30 + 28, 14 + 2)]
    assert joined == [66, 66, 62, 62, 58, 58, 16, 16]  # each with its short cut
    gates = [m for m in net.modules() if isinstance(m, nn.Sigmoid)]
    assert len(gates) == 6 * 2


def weights_of_a_block(before, after, reduction, short_cut=1):
    """Of the authors' residual block: two convolutions, their norms, the gate, the short cut."""
    total = 27 * before * after + 27 * after * after + 4 * after
    if reduction:
        hidden = after // reduction
        total += (after * hidden + hidden) + (hidden * after + after)
    return total + (short_cut**3 * before * after + 2 * after if before != after else 0)


def test_anatomynet_has_the_parameters_of_the_authors_program():
    """Counted from the layers of wentaozhu/AnatomyNet-for-anatomical-segmentation, src/AnatomyNet.py, 10 classes."""
    theirs = 27 * 28 + 2 * 28
    theirs += sum(
        weights_of_a_block(a, b, 15) + weights_of_a_block(b, b, 15) for a, b in [(28, 30), (30, 32), (32, 34)]
    )
    theirs += sum(
        weights_of_a_block(a + b, b, 16) + weights_of_a_block(b, b, 15) for a, b in [(34, 32), (32, 30), (30, 28)]
    )
    theirs += (8 * 28 * 14 + 14) + weights_of_a_block(14 + 1, 14, 0, short_cut=3) + (27 * 14 * 10 + 10)
    assert theirs == 734_417
    ours = build_net("anatomynet", NetSpec(1, 10, (16, 16, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (4, 8)))
    one_hidden_unit = (30 + 1) + 30  # of the gate of 30 channels behind 62, which they reduce 16 times and we 15
    assert sum(p.numel() for p in ours.parameters()) == theirs + one_hidden_unit
