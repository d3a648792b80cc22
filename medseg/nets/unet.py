"""U-Nets whose depth, strides and kernels the plan decides."""

from __future__ import annotations

from monai.networks.nets import DynUNet
from torch import nn

from medseg.nets.norm import with_fast_norms
from medseg.nets.padding import PadToMultiple
from medseg.nets.table import NetSpec, net

_FEWEST_STAGES = 3  # MONAI's DynUNet wants an input block, a bottleneck and a stage between


@net
def unet(
    spec: NetSpec, *, features: list[int] | None = None, residual: bool = False, dropout: float = 0.0
) -> nn.Module:
    """3D U-Net with strided convolutions, instance normalisation and leaky ReLU (MONAI `DynUNet`).

    Args:
        spec: The plan's numbers.
        features: Channels per stage instead of the plan's.
        residual: Residual blocks instead of plain ones.
        dropout: Probability of dropping a channel after each convolution.

    Paper: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z, after Cicek et al. 2016, arXiv:1606.06650.
    """
    missing = max(0, _FEWEST_STAGES - len(spec.strides))  # tiny volumes: deeper, not coarser
    strides = [*spec.strides, *[(1, 1, 1)] * missing]
    widths = features or list(spec.features)
    network = DynUNet(
        spatial_dims=3,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        kernel_size=[*spec.kernels, *[(3, 3, 3)] * missing],
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[*widths, *widths[-1:] * (len(strides) - len(widths))],
        dropout=("dropout", {"p": dropout, "inplace": True}) if dropout else None,
        norm_name=("instance", {"affine": True}),
        act_name=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        res_block=residual,
    )
    return PadToMultiple(with_fast_norms(network), spec.multiple)
