"""Transformers that encode, with a convolutional decoder."""

from __future__ import annotations

from torch import nn

from medseg.errors import UsageError
from medseg.nets.norm import with_fast_norms
from medseg.nets.padding import PadToMultiple, PadToSize
from medseg.nets.supervision import Supervised
from medseg.nets.table import NetSpec, Triple, net

_TOKEN = 16  # voxels along the edge of UNETR's tokens
_SWIN_MULTIPLE: Triple = (32, 32, 32)  # five halvings
_HEADS = (3, 6, 12, 24)


@net
def swin_unetr(
    spec: NetSpec,
    *,
    width: int = 48,
    depths: list[int] | None = None,
    window: int = 7,
    dropout: float = 0.0,
    version_2: bool = False,
    deep_supervision: bool = False,
) -> nn.Module:
    """U-Net with a hierarchical transformer of shifted windows as its encoder (MONAI `SwinUNETR`).

    Where there is much data or a pre-trained encoder, and a GPU. It halves all axes five times, so thin patches are
    padded to 32 voxels.

    Args:
        spec: The plan's numbers; of these only the channels are used.
        width: Channels of the first stage, a multiple of 12.
        depths: Transformer blocks in each of the four stages; by default 2 each.
        window: Edge of the attention window, in tokens.
        dropout: Probability of dropping a value after each projection.
        version_2: A residual convolution before each stage.
        deep_supervision: Return the half, quarter and eighth resolution too, in training.

    Raises:
        UsageError: The width or the depths do not fit, or the patch is too small.

    Paper: Hatamizadeh et al. 2022, arXiv:2201.01266; version 2: He et al. 2023.
    """
    from monai.networks.nets import SwinUNETR  # only here: importing MONAI takes seconds

    if width % 12:
        raise UsageError(
            f"swin_unetr needs a width that 12 divides, got {width}", f"Choose {max(12, width // 12 * 12)}"
        )
    stages = depths or [2, 2, 2, 2]
    if len(stages) != len(_HEADS):
        raise UsageError(f"swin_unetr has 4 stages, got {len(stages)} depths", "Give 4 numbers such as [2, 2, 2, 2]")
    spec.require_context("swin_unetr", _SWIN_MULTIPLE)
    backbone = SwinUNETR(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        feature_size=width,
        depths=stages,
        num_heads=_HEADS,
        window_size=window,
        drop_rate=dropout,
        use_v2=version_2,
    )
    network: nn.Module = backbone
    if deep_supervision:
        levels = [backbone.decoder2, backbone.decoder3, backbone.decoder4]
        channels = [width, 2 * width, 4 * width]
        network = Supervised(backbone, levels=levels, channels=channels, out_channels=spec.out_channels)
    return PadToMultiple(with_fast_norms(network), _SWIN_MULTIPLE)


@net
def unetr(
    spec: NetSpec,
    *,
    width: int = 16,
    hidden: int = 768,
    mlp: int = 3072,
    heads: int = 12,
    dropout: float = 0.0,
    deep_supervision: bool = False,
) -> nn.Module:
    """U-Net whose encoder is a plain vision transformer over tokens of 16 x 16 x 16 voxels (MONAI `UNETR`).

    Where there is much data; of historical interest otherwise. Its position embedding is made for the plan's patch
    size, rounded up to a multiple of 16: smaller inputs are padded, larger ones refused.

    Args:
        spec: The plan's numbers; of these the channels and the patch size.
        width: Channels of the finest decoder stage; each coarser one doubles them.
        hidden: Length of a token's vector, a multiple of ``heads``.
        mlp: Hidden units of each transformer block.
        heads: Attention heads.
        dropout: Probability of dropping a value after each projection.
        deep_supervision: Return the half and quarter resolution too, in training.

    Raises:
        UsageError: The heads do not divide the hidden length.

    Paper: Hatamizadeh et al. 2022, arXiv:2103.10504.
    """
    from monai.networks.nets import UNETR  # only here: importing MONAI takes seconds

    if hidden % heads:
        problem = f"unetr cannot divide {hidden} hidden values by {heads} heads"
        raise UsageError(problem, f"Choose a multiple such as {heads * max(1, hidden // heads)}")
    i, j, k = (n + -n % _TOKEN for n in spec.patch_size)
    backbone = UNETR(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        img_size=(i, j, k),
        feature_size=width,
        hidden_size=hidden,
        mlp_dim=mlp,
        num_heads=heads,
        dropout_rate=dropout,
    )
    for block in backbone.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # its weights are never used, which DistributedDataParallel refuses
    network: nn.Module = backbone
    if deep_supervision:
        levels = [backbone.decoder3, backbone.decoder4]
        network = Supervised(backbone, levels=levels, channels=[2 * width, 4 * width], out_channels=spec.out_channels)
    return PadToSize(with_fast_norms(network), (i, j, k), name="unetr")
