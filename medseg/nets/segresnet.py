"""SegResNet: a residual encoder that doubles its channels, and additive skip connections."""

from __future__ import annotations

from torch import nn

from medseg.nets.norm import with_fast_norms
from medseg.nets.padding import PadToMultiple
from medseg.nets.supervision import supervised_levels
from medseg.nets.table import NetSpec, Triple, net

_BLOCKS = (1, 2, 2, 4, 4)


@net
def segresnet(
    spec: NetSpec, *, width: int | None = None, blocks: list[int] | None = None, deep_supervision: bool = False
) -> nn.Module:
    """Residual U-Net with additive skip connections, a winner of the brain tumour challenge (MONAI `SegResNetDS`).

    A second opinion to the `unet` at a similar cost. It starts to halve an axis as late as the plan does, and from then
    on halves all of them; the stages are the plan's, but at most as many as there are blocks.

    Args:
        spec: The plan's numbers.
        width: Channels of the first stage instead of the plan's; each further stage doubles them.
        blocks: Residual blocks per stage of the encoder; by default 1, 2, 2, 4, 4.
        deep_supervision: Return coarser levels too, in training.

    Paper: Myronenko 2018, arXiv:1810.11654; with deep supervision 2022, arXiv:2209.09546.
    """
    from monai.networks.nets import SegResNetDS  # only here: importing MONAI takes seconds

    counts = tuple(blocks or _BLOCKS)[: max(2, len(spec.strides))]
    delays = [_delay(spec, axis, len(counts) - 1) for axis in range(3)]
    network = SegResNetDS(
        spatial_dims=3,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        init_filters=width or spec.features[0],
        norm="instance",
        blocks_down=counts,
        dsdepth=1 + supervised_levels(len(counts)) if deep_supervision else 1,
        resolution=tuple(2**delay for delay in delays) if any(delays) else None,
    )
    i, j, k = (int(factor) for factor in network.shape_factor())
    multiple: Triple = (i, j, k)
    spec.require_context("segresnet", multiple)
    return PadToMultiple(with_fast_norms(network), multiple)


def _delay(spec: NetSpec, axis: int, halvings: int) -> int:
    """Count the down-samplings that pass before the plan first touches an axis."""
    delay = 0
    while delay < halvings and (delay + 1 >= len(spec.strides) or spec.strides[delay + 1][axis] == 1):
        delay += 1
    return delay if len(spec.strides) > 1 else 0
