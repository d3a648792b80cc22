"""A trained network and its plan, deciding whole volumes: what validation, prediction and export share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.reading import require_numbers
from medseg.errors import CheckpointError, UsageError
from medseg.machine.dotted import Trust
from medseg.nets import NetSpec, build_net, list_nets
from medseg.patches.settings import PRESETS
from medseg.patches.stitch import Predict, stitched_slabs, sweep_axis
from medseg.plan.plan import Plan
from medseg.space.labels import Painting
from medseg.space.volume import Shape
from medseg.types import Image, Logits

HALF_BEYOND_BYTES = 2**31
"""Sums of a slab that would be larger in float32 are kept in float16, in which nnU-Net always adds."""

DECIDED_AT_ONCE = 2**30
"""Scores that are compared in one operation; more than 2^31 are beyond what a kernel may count in 32 bits."""

_VOXELS_PER_CALL = {"cpu": 2**20, "cuda": 2**22}
_WINDOWS_PER_CALL = 8


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network, and what it takes to decide volumes with it; no loss, no optimizer, no trainer.

    Attributes:
        net: Maps normalised intensities ``(b, m, i, j, k)`` to logits ``(b, c, i, j, k)``.
        plan: What it was trained for.
        overlap: Share by which neighbouring windows overlap.
        channels_last: Lay out activations with the channels innermost, which matrix units prefer.
        flips: The axes along which patches were flipped in training; None where nobody knows.
        as_nnunet: Whether windows are weighted, and flips and several networks averaged, as nnU-Net does it.
    """

    net: nn.Module
    plan: Plan
    overlap: float = 0.5
    channels_last: bool = True
    flips: tuple[int, ...] | None = None
    as_nnunet: bool = False

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, trust: Trust | None = None) -> Segmenter:
        """The network of a checkpoint in evaluation mode, with its weights; nothing else is needed.

        Args:
            checkpoint: As `medseg.checkpoints.reading.read_checkpoint` found it.
            trust: The classes beyond medseg's own networks that it may name.

        Raises:
            CheckpointError: It names a class that is not trusted, or its weights do not fit its network.
        """
        name, path = checkpoint.net, checkpoint.path
        if name not in list_nets() and "." in name:
            (trust or Trust()).require(name, path)
        require_numbers(path, checkpoint.weights)
        try:
            net = build_net(name, net_spec(checkpoint.plan), checkpoint.knobs)
            require_same_kinds(net.state_dict(), checkpoint.weights)
            net.load_state_dict(checkpoint.weights)
        except (TypeError, ValueError, RuntimeError, LookupError, MemoryError, UsageError) as error:
            version = checkpoint.signature["version"]
            raise CheckpointError(
                path,
                f"does not fit this version of medseg ({str(error).rstrip('.')})",
                f"Train again, or use the version that wrote it ({version})",
            ) from None
        channels_last = checkpoint.options["channels_last"] is not False
        lay_out(net, channels_last=channels_last)
        overlap = float(checkpoint.options["overlap"])
        flips, as_nnunet = _flips(checkpoint), checkpoint.as_nnunet
        return cls(net.eval(), checkpoint.plan, overlap, channels_last, flips, as_nnunet)

    @property
    def tiling(self) -> str:
        """How windows lie and count, see `medseg.patches.stitch.tile_starts`."""
        return "nnunet" if self.as_nnunet else "even"

    def on(self, device: torch.device) -> Segmenter:
        """The same on a device, in evaluation mode."""
        return replace(self, net=self.net.to(device).eval())

    def __call__(self, image: Image) -> Logits:
        """The logits of windows.

        Raises:
            UsageError: The network is a user's own and returns something else.
        """
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        logits = self.net(image)
        if not isinstance(logits, Tensor):
            problem = f"the network returns a {type(logits).__name__} where it is not trained"
            raise UsageError(problem, "Return the logits alone while self.training is false")
        return logits

    def decide(self, logits: Logits) -> Integer[Tensor, "b *space"] | Bool[Tensor, "b c *space"]:
        """The class of each voxel, or for overlapping regions a mask per organ, as a label file would tell them."""
        if self.plan.exclusive:
            return logits.argmax(dim=1)
        canvas = Canvas(self.plan.painting, logits.new_zeros((len(logits), *logits.shape[2:]), dtype=torch.int32))
        for index in range(logits.shape[1]):
            canvas.add(index, ..., logits[:, index] > 0)
        values = canvas.finished()
        return torch.stack([torch.isin(values, values.new_tensor(own)) for own in self.plan.values], dim=1)

    def segment(self, image: Image) -> Integer[Tensor, "1 i j k"] | Bool[Tensor, "1 c i j k"]:
        """Decide every voxel of one whole prepared volume ``(1, m, i, j, k)``, by overlapping windows.

        Logits are held for one window's depth of the volume only, so memory does not grow with classes times voxels.
        The network decides in evaluation mode, without gradients, and is left in the mode that it was in.

        Raises:
            UsageError: The volume has another shape than this, or other channels than the plan's modalities.
        """
        if image.ndim != 5 or tuple(image.shape[:2]) != (1, len(self.plan.modalities)):
            raise UsageError(
                f"expected a volume of the shape (1, {len(self.plan.modalities)}, i, j, k) with the channels "
                f"{', '.join(self.plan.modalities)}, got {tuple(image.shape)}",
                "Give one prepared volume at a time",
            )
        with _evaluating(self.net):
            return self._segment(image)

    def _segment(self, image: Image) -> Integer[Tensor, "1 i j k"] | Bool[Tensor, "1 c i j k"]:
        shape = tuple(image.shape[2:])
        exclusive, organs = self.plan.exclusive, self.plan.num_classes
        kind, leading = (torch.int16, (1,)) if exclusive else (torch.bool, (1, organs))
        whole = torch.empty((*leading, *shape), dtype=kind, device=image.device)
        axis, slabs = slabs_of(image, self.plan, self, overlap=self.overlap, tiling=self.tiling)
        for where, slab in slabs:
            planes = max(1, DECIDED_AT_ONCE * slab.shape[axis + 1] // slab.numel())
            for first in range(0, where.stop - where.start, planes):
                part = slab.narrow(axis + 1, first, min(planes, where.stop - where.start - first))
                target = whole.narrow(axis - 3, where.start + first, part.shape[axis + 1])
                target.copy_(self.decide(part[None]))
        return whole


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """No dropout, no statistics of batches, no gradients; afterwards each part is in its own mode: some are frozen."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def slabs_of(
    image: Image, plan: Plan, predict: Predict, *, overlap: float, tiling: str
) -> tuple[int, Iterator[tuple[slice, Float[Tensor, "c i j k"]]]]:
    """One prepared volume ``(1, m, i, j, k)`` swept along the axis that takes least memory, windows in batches.

    Returns:
        That axis, and what `medseg.patches.stitch.stitched_slabs` gives.
    """
    axis, dtype = sweep_of((image.shape[2], image.shape[3], image.shape[4]), plan)
    axis = 0 if tiling == "nnunet" else axis  # the order of its sums
    voxels = _VOXELS_PER_CALL.get(image.device.type, _VOXELS_PER_CALL["cpu"])
    together = max(1, min(_WINDOWS_PER_CALL, voxels // math.prod(plan.patch_size)))
    slabs = stitched_slabs(
        *(image, plan.patch_size, predict),
        overlap=overlap,
        tiling=tiling,
        batch_size=together,
        axis=axis,
        dtype=dtype,
    )
    return axis, slabs


def sweep_of(shape: Shape, plan: Plan) -> tuple[int, torch.dtype]:
    """The axis along which a volume is swept, and in which precision the sums of a slab are kept."""
    axis = sweep_axis(shape, plan.patch_size)
    extents = [max(edge, extent) for edge, extent in zip(plan.patch_size, shape, strict=True)]
    extents[axis] = plan.patch_size[axis]
    return axis, torch.float16 if 4 * plan.num_classes * math.prod(extents) > HALF_BEYOND_BYTES else torch.float32


class Canvas:
    """Values of voxels, painted region by region in the order of the classes.

    Args:
        painting: What sets of regions are called.
        values: Zeros, ``(*space)``; become the values.
    """

    def __init__(self, painting: Painting, values: Integer[Tensor, "*space"]) -> None:
        self._painting, self._values = painting, values
        self._hits = {members: torch.zeros_like(values, dtype=torch.int16) for members in painting.exact}

    def add(self, index: int, place: Any, inside: Bool[Tensor, "*part"]) -> None:
        """Paint one region, of which ``inside`` tells the voxels at a place."""
        self._values[place].masked_fill_(inside, self._painting.order[index])
        for members, hits in self._hits.items():  # a region that is no member puts them out of reach
            hits[place] += inside * (1 if index in members else -len(self._painting.order))

    def finished(self) -> Integer[Tensor, "*space"]:
        """The values."""
        for members, hits in self._hits.items():
            self._values.masked_fill_(hits == len(members), self._painting.exact[members])
        return self._values


def require_same_kinds(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Refuse weights that would be converted without a word, such as whole numbers for fractions.

    Raises:
        ValueError: Some would.
    """
    for name in ours.keys() & theirs.keys():
        kinds = [(kept.is_floating_point(), kept.is_complex()) for kept in (ours[name], theirs[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{name} is made of {theirs[name].dtype}")


def _flips(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """What a checkpoint says of the flips in its training, or its config where it is of 0.1.0."""
    allowed, told = checkpoint.plan.mirror_axes, checkpoint.flips
    if told is not None:
        return tuple(axis for axis in allowed if axis in told)
    group = "data.augmentation"
    settings = {key.removeprefix(group): value for key, value in checkpoint.config.items() if key.startswith(group)}
    preset = str(settings.get("", settings.get(".preset", "full")))  # which bare settings were those of, in 0.1.0
    if not settings or preset not in PRESETS:
        return None
    return allowed if settings.get(".mirror_probability", PRESETS[preset].mirror_probability) else ()


def net_spec(plan: Plan) -> NetSpec:
    """The plan's numbers that shape a network."""
    return NetSpec(
        in_channels=len(plan.modalities),
        out_channels=plan.num_classes,
        patch_size=plan.patch_size,
        strides=plan.strides,
        kernels=plan.kernels,
        features=plan.features,
    )


def class_values(plan: Plan) -> dict[str, int | tuple[int, ...]]:
    """Organ name -> its value, or values of a region, in the vocabulary of the store."""
    if plan.exclusive:
        return {organ: index for index, organ in enumerate(plan.organs, start=1)}
    return {
        organ: tuple(plan.atom_of_value[value] for value in values)
        for organ, values in zip(plan.organs, plan.values, strict=True)
    }


def lay_out(net: nn.Module, *, channels_last: bool) -> None:
    """Put the weights of convolutions into the layout of the activations."""
    net.to(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)  # type: ignore[call-overload]  # absent from stubs
