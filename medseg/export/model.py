"""What is exported: the trained network without its training, the sizes it takes, and everything known about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import medseg
from medseg.checkpoints.checkpoint import Checkpoint
from medseg.machine.dotted import Trust
from medseg.nets.padding import PadToMultiple, PadToSize
from medseg.nets.supervision import Supervised
from medseg.patches.stitch import tile_starts
from medseg.plan.grid import to_plan_grid
from medseg.plan.plan import Plan
from medseg.segmenter import Segmenter, lay_out
from medseg.space.volume import Shape, Volume

FIXED_SIZE = ("swin_unetr", "unetr")
"""Networks whose attention windows or position embedding are laid out for one size."""

_PATCHES = 4


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network ready to be written down.

    Attributes:
        net: Maps ``(b, m, i, j, k)`` to logits ``(b, c, i, j, k)``; on the CPU, in float32, in evaluation mode.
        checkpoint: What it was taken out of.
        window: Voxels of a tile of the sliding window: the plan's patch, rounded up to what the network takes.
        multiple: Per axis, what any input size must be a multiple of.
        overlap: Share by which neighbouring tiles overlap.
        flips: The axes along which training flipped patches; None where nobody knows.
        fixed: Whether it takes the window's size only.
    """

    net: nn.Module
    checkpoint: Checkpoint
    window: Shape
    multiple: Shape
    overlap: float
    flips: tuple[int, ...] | None = None
    fixed: bool = False

    @property
    def plan(self) -> Plan:
        """What it was trained on."""
        return self.checkpoint.plan

    @property
    def resizable(self) -> tuple[bool, bool, bool]:
        """Per axis, whether other sizes than the window's may be tried."""
        i, j, k = (
            not self.fixed and size >= 2 * step  # one step is nothing to normalise over
            for size, step in zip(self.window, self.multiple, strict=True)
        )
        return i, j, k


def model_of(checkpoint: Checkpoint, trust: Trust | None = None) -> Model:
    """Take the network out of a checkpoint.

    Raises:
        CheckpointError: Its network is not trusted, or of another version.
    """
    segmenter = Segmenter.from_checkpoint(checkpoint, trust)
    net = segmenter.net.float()
    lay_out(net, channels_last=False)
    multiple = _multiple(net)
    i, j, k = (size + -size % step for size, step in zip(checkpoint.plan.patch_size, multiple, strict=True))
    return Model(
        net=_without_heads(net).requires_grad_(False),
        checkpoint=checkpoint,
        window=(i, j, k),
        multiple=multiple,
        overlap=segmenter.overlap,
        flips=segmenter.flips,
        fixed=checkpoint.net in FIXED_SIZE,
    )


def facts(model: Model) -> dict[str, Any]:
    """All that a program without medseg must know to use the network, as plain data for JSON."""
    plan, kept = model.plan, model.checkpoint
    return {
        "medseg": medseg.__version__,
        "network": kept.net,
        "input": {
            "name": "image",
            "axes": ["batch", "modality", "i", "j", "k"],
            "dtype": "float32",
            "modalities": list(plan.modalities),
            "window": list(model.window),
            "multiple_of": list(model.multiple),
            "resizable": list(model.resizable),
        },
        "output": {
            "name": "logits",
            "axes": ["batch", "class", "i", "j", "k"],
            "classes": [*(["background"] if plan.exclusive else []), *plan.organs],
            "values": list(plan.painted_classes),
            **({} if plan.exclusive else {"sets": _sets(plan)}),
            "activation": "softmax" if plan.exclusive else "sigmoid",
        },
        "sliding_window": {"overlap": model.overlap, "weights": "gaussian", "sigma": 0.125, "padding": "zeros"}
        | {"centre": "n // 2" if kept.as_nnunet else "(n - 1) / 2"},
        "averages_of_flips": "logits" if kept.as_nnunet else "probabilities",
        "flips_in_training": None if model.flips is None else list(model.flips),
        "plan": plan.to_dict(),
        "cleaning": kept.cleaning,
        "scores": kept.scores,
    }


def _sets(plan: Plan) -> list[dict[str, Any]]:
    """What a voxel of several regions is called; of sets that are not here, it is painted in the order of classes."""
    named = plan.painting.sets.items()
    return [{"classes": [plan.organs[index] for index in members], "value": value} for members, value in named]


def patches_of(model: Model, image: Volume | None = None) -> Float[Tensor, "b m i j k"]:
    """A few tiles to try the exported network on: cut from an image as for prediction, or noise."""
    channels = len(model.plan.modalities)
    if image is None:
        return torch.randn(2, channels, *model.window, generator=torch.Generator().manual_seed(0))
    voxels = torch.from_numpy(to_plan_grid(image, model.plan)[0])
    short = [max(edge - extent, 0) for edge, extent in zip(model.window, voxels.shape[1:], strict=True)]
    voxels = nn.functional.pad(voxels, [side for missing in reversed(short) for side in (0, missing)])
    starts = [tile_starts(n, edge) for n, edge in zip(voxels.shape[1:], model.window, strict=True)]
    corners = torch.cartesian_prod(*[torch.tensor(line) for line in starts]).tolist()
    chosen = corners[:: -(-len(corners) // _PATCHES)]
    cut = [voxels[:, i:, j:, k:][:, : model.window[0], : model.window[1], : model.window[2]] for i, j, k in chosen]
    return torch.stack(cut)


def innermost(net: nn.Module) -> nn.Module:
    """The network itself, without the wrappers that pad its input and supervise its levels."""
    while isinstance(net, (PadToMultiple, PadToSize, Supervised)):
        net = net.net
    return net


def _multiple(net: nn.Module) -> Shape:
    i, j, k = net.size if isinstance(net, PadToSize) else net.multiple if isinstance(net, PadToMultiple) else (1, 1, 1)
    return i, j, k


def _without_heads(net: nn.Module) -> nn.Module:
    """The network without the heads of deep supervision, which are silent outside of training."""
    if isinstance(net, (PadToMultiple, PadToSize)):
        net.net = innermost(net)
    return net
