"""U-Nets whose depth, strides and kernels the plan decides."""

from __future__ import annotations

from torch import nn

from medseg.nets.norm import with_fast_norms
from medseg.nets.padding import PadToMultiple
from medseg.nets.supervision import supervised
from medseg.nets.table import NetSpec, net

_FEWEST_STAGES = 3  # MONAI's DynUNet wants an input block, a bottleneck and a stage between


@net
def unet(
    spec: NetSpec,
    *,
    features: list[int] | None = None,
    residual: bool = False,
    dropout: float = 0.0,
    upsampling_bias: bool = False,
    level_kernels: bool = False,
    deep_supervision: bool = False,
) -> nn.Module:
    """3D U-Net with strided convolutions, instance normalisation and leaky ReLU (MONAI `DynUNet`).

    The first network to try: it follows the plan in everything and is the fastest of those that do.

    Args:
        spec: The plan's numbers.
        features: Channels per stage instead of the plan's.
        residual: Residual blocks instead of plain ones.
        dropout: Probability of dropping a channel after each convolution.
        upsampling_bias: Give the transposed convolutions a bias, as nnU-Net does.
        level_kernels: On the way up take the kernel that each level has on the way down, as nnU-Net does, rather than
            that of the level below; the same unless some are 1 along an axis.
        deep_supervision: Return coarser levels too, in training.

    Paper: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z, after Cicek et al. 2016, arXiv:1606.06650.
    """
    from medseg.nets.dynunet import DynUNet, LevelKernels  # only here: importing MONAI takes seconds

    spec = spec.reshaped(_FEWEST_STAGES, features)
    spec.require_context("unet", spec.multiple)
    network = (LevelKernels if level_kernels else DynUNet)(
        spatial_dims=3,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        kernel_size=spec.kernels,
        strides=spec.strides,
        upsample_kernel_size=spec.strides[1:],
        filters=spec.features,
        dropout=("dropout", {"p": dropout, "inplace": True}) if dropout else None,
        norm_name=("instance", {"affine": True}),
        act_name=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        res_block=residual,
        trans_bias=upsampling_bias,
    )
    if deep_supervision:
        network = supervised(network, list(network.upsamples)[::-1], spec)
    return PadToMultiple(with_fast_norms(network), spec.multiple)
