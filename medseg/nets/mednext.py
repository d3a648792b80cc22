"""MedNeXt: a U-Net of ConvNeXt blocks with large depthwise kernels."""

from __future__ import annotations

from torch import nn

from medseg.errors import UsageError
from medseg.nets.padding import PadToMultiple
from medseg.nets.table import NetSpec, Triple, net

_MULTIPLE: Triple = (16, 16, 16)  # four halvings
_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # blocks and expansion per stage, bottleneck last
    "s": ((2, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
    "b": ((2, 2, 2, 2, 2), (2, 3, 4, 4, 4)),
    "m": ((3, 4, 4, 4, 4), (2, 3, 4, 4, 4)),
    "l": ((3, 4, 8, 8, 8), (3, 4, 8, 8, 8)),
}


@net
def mednext(
    spec: NetSpec, *, size: str = "s", kernel: int = 3, width: int = 32, deep_supervision: bool = False
) -> nn.Module:
    """U-Net of ConvNeXt blocks, compound-scaled in four sizes (MONAI `MedNeXt`).

    Where accuracy counts more than time: depthwise convolutions need few parameters but are slow on the CPU. It halves
    all axes four times and cannot follow anisotropic strides.

    Args:
        spec: The plan's numbers; of these only the channels are used.
        size: ``s``, ``b``, ``m`` or ``l``.
        kernel: Edge of the depthwise kernels; 3 or 5 in the paper.
        width: Channels of the first stage; each further stage doubles them.
        deep_supervision: Return coarser levels too, in training.

    Raises:
        UsageError: There is no such size, or the kernel is even.

    Paper: Roy et al. 2023, arXiv:2303.09975.
    """
    from monai.networks.nets import MedNeXt  # only here: importing MONAI takes seconds

    if size not in _SIZES:
        raise UsageError(f"mednext has no size {size!r}", f"Choose one of {', '.join(_SIZES)}")
    if kernel % 2 == 0:
        raise UsageError(f"mednext cannot centre a kernel of {kernel} voxels", "Choose an odd number such as 3 or 5")
    spec.require_context("mednext", _MULTIPLE)
    blocks, expansion = _SIZES[size]
    network = MedNeXt(
        spatial_dims=3,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        init_filters=width,
        kernel_size=kernel,
        deep_supervision=deep_supervision,
        use_residual_connection=True,
        encoder_expansion_ratio=expansion[:-1],
        bottleneck_expansion_ratio=expansion[-1],
        decoder_expansion_ratio=expansion[-2::-1],
        blocks_down=blocks[:-1],
        blocks_bottleneck=blocks[-1],
        blocks_up=blocks[-2::-1],
    )
    return PadToMultiple(network, _MULTIPLE)
