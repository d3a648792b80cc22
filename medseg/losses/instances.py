"""Instance losses: every lesion counts alike, however small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from medseg.losses.beforehand import of_target
from medseg.losses.comparison import Comparison
from medseg.losses.knobs import Weights
from medseg.losses.masks import all_channels, counted, first_channel, sum_over_space, target_masks
from medseg.losses.reduction import mean_over_classes, ratio, reduced
from medseg.losses.table import Reduced, loss, rows
from medseg.machine.threads import in_threads
from medseg.space.components import connected_components

FAST = ("dice", "bce", "dice_bce")
"""The criteria whose sums over all blobs are formed in one pass."""


@loss(
    family="compound",
    paper="Kofler et al. 2023, blob loss: instance imbalance aware loss functions, arXiv 2205.08209",
    handles=("imbalance", "small"),
    cost="maps",
)
def blob(
    x: Comparison,
    *,
    criterion: str = "dice",
    alpha: float = 2.0,
    beta: float = 1.0,
    connectivity: int | None = None,
    smooth: float = 1e-5,
    include_background: bool = False,
    weight: Weights = None,
) -> Reduced:
    """A loss of the whole, plus the same loss of each connected component with the other ones cut away.

    Equation:
        α L(p, g) + β mean_{n,c} mean_{blobs k of (n,c)} L(p, k) over the voxels outside all other blobs of (n,c)

    Use: Where many small lesions stand beside a few large ones, which own the Dice of the whole (metastases, MS
    lesions). Over exclusive classes each foreground class is one-vs-rest.

    Known trouble: A false positive is charged in every blob's share; components are found on the CPU (by the loader's
    workers in a training of medseg's) unless ``instances`` are given (numbered from 1, (b, *s) or per channel), which
    is also the only way to tell touching lesions apart. A sample and class without a blob is left out of the second
    mean; with no blob at all only the first term remains.

    Public code: The authors' example sets the logits of other blobs to 0, which a sigmoid turns into probability
    0.5, that is false positives; and keeps those voxels in the mean of voxel losses. Here they are out of every
    sum and denominator.

    Args:
        criterion: L: ``dice``, ``bce`` or ``dice_bce`` (their sum), all blobs in one pass; or any other loss of the
            table at its default knobs, one pass over the volume for each blob.
        alpha: Weight of the whole.
        beta: Weight of the blobs.
        include_background: Whether channel 0 has blobs, too.
        weight: A number per class, background included.
    """
    legal = [*FAST, *(name for name, row in rows().items() if "binary" in row.modes and not row.learnable)]
    if criterion not in legal:
        raise ValueError(f"criterion must be one of {', '.join(dict.fromkeys(legal))}, got {criterion!r}")
    first = first_channel(x, include_background=include_background)
    truth = target_masks(x, first)
    numbers = blob_numbers(x, truth, first=first, connectivity=connectivity)
    if criterion in FAST:
        whole, parts = _in_one_pass(x, first, truth, numbers, criterion=criterion, smooth=smooth)
    else:
        whole, parts = _one_by_one(x, first, truth, numbers, criterion)

    def mean(values: Tensor, absent: str) -> Tensor:
        channels = all_channels(values, first)
        return mean_over_classes(channels, x, include_background=include_background, weight=weight, absent=absent)

    return alpha * mean(whole, "keep") + beta * mean(parts, "ignore")


@torch.no_grad()
def blob_numbers(x: Comparison, truth: Tensor, *, first: int, connectivity: int | None) -> Integer[Tensor, "b part *s"]:
    """Number all blobs of the batch, each of one sample and channel, above 0; 0 elsewhere."""
    if x.instances is None:
        return truth * numbers_of_target(x, first=first, connectivity=connectivity)
    names = _given_names(x, truth)
    pair = torch.arange(truth.shape[0] * truth.shape[1], device=truth.device).reshape(*truth.shape[:2])
    ids = torch.unique(names, return_inverse=True)[1]
    keys = ids + pair.reshape(*pair.shape, *[1] * (truth.ndim - 2)) * (ids.max() + 1) + 1
    numbers: Tensor = keys * truth
    return numbers


@of_target
def numbers_of_target(x: Comparison, *, first: int, connectivity: int | None) -> Int32[Tensor, "b part *s"]:
    """The numbers, computed a volume per thread; those of classes that exclude each other in one map."""
    truth = target_masks(x, first)
    volumes = list(truth.flatten(0, 1).cpu().numpy())
    found = in_threads(lambda mask: connected_components(mask, connectivity), volumes)
    offsets = np.cumsum([0, *(count for _, count in found)])
    numbered = [labels + (labels > 0) * np.int32(start) for (labels, _), start in zip(found, offsets, strict=False)]
    maps = torch.from_numpy(np.stack(numbered)).reshape(truth.shape)
    return maps.sum(1, keepdim=True, dtype=torch.int32) if x.mode == "multiclass" else maps


def _given_names(x: Comparison, truth: Tensor) -> Tensor:
    """The caller's instances, spread over the channels at work.

    Raises:
        ValueError: If they are not whole numbers, or leave a voxel of the target without a number.
    """
    given = x.instances
    assert given is not None  # the caller has looked
    names = given.unsqueeze(1) if given.ndim == len(x.shape) - 1 else given
    names = names[:, -truth.shape[1] :].to(truth.device).expand(truth.shape)
    unnumbered = int(((names < 1) & truth).sum())
    if unnumbered or names.is_floating_point():
        raise ValueError(
            "instances must be integers, numbered from 1 wherever the target has the structure, got "
            f"{given.dtype} with {unnumbered} voxels of the target unnumbered"
        )
    return names


@dataclass(frozen=True)
class _Blobs:
    """Which voxels belong to which blob, and which blob to which sample and channel.

    Attributes:
        voxels: Positions, in the flattened maps, of the voxels in blobs.
        names: The blob of each of them, from 0 on.
        owner: The (sample, channel) of each blob, flattened.
        weight: What each of the voxels counts; None for one each.
    """

    voxels: Int64[Tensor, " v"]
    names: Int64[Tensor, " v"]
    owner: Int64[Tensor, " k"]
    weight: Tensor | None

    @classmethod
    def of(cls, numbers: Integer[Tensor, "b part *s"], weight: Tensor | None) -> _Blobs:
        flat = numbers.flatten()
        voxels = flat.nonzero().squeeze(1)
        kept, names = torch.unique(flat[voxels], return_inverse=True)
        owner = torch.zeros_like(kept, dtype=torch.int64)
        owner[names] = voxels // math.prod(numbers.shape[2:])
        return cls(voxels, names, owner, None if weight is None else weight.expand(numbers.shape).flatten()[voxels])

    def sums(self, maps: Float[Tensor, "b part *s"]) -> Float[Tensor, " k"]:
        """Add up the voxels of each blob; in double precision, for they come one at a time."""
        values = maps.flatten()[self.voxels].double()
        values = values if self.weight is None else values * self.weight
        return values.new_zeros(len(self.owner)).index_add(0, self.names, values).to(maps.dtype)

    def mean(self, values: Float[Tensor, " k"], like: Float[Tensor, "b part"]) -> Float[Tensor, "b part"]:
        """Average over the blobs of each sample and channel; 0 where there is none."""
        zeros = like.new_zeros(like.numel())
        counts = zeros.index_add(0, self.owner, torch.ones_like(values))
        return ratio(zeros.index_add(0, self.owner, values), counts).reshape(like.shape)


Pair = tuple[Float[Tensor, "b part"], Float[Tensor, "b part"]]
"""A criterion of the whole, and its mean over the blobs, per sample and channel."""


def _in_one_pass(x: Comparison, first: int, truth: Tensor, numbers: Tensor, *, criterion: str, smooth: float) -> Pair:
    """Dice, binary cross-entropy, or their sum, from one sum per blob and one over what is in none."""
    blobs, empty = _Blobs.of(numbers, counted(x, first)), ~truth
    pairs = []
    if criterion in ("dice", "dice_bce"):
        pairs.append(_dice(x, first, blobs, empty, smooth))
    if criterion in ("bce", "dice_bce"):
        pairs.append(_bce(x, first, blobs, empty))
    wholes, parts = zip(*pairs, strict=True)
    return torch.stack(wholes).sum(0), torch.stack(parts).sum(0)


def _dice(x: Comparison, first: int, blobs: _Blobs, empty: Tensor, smooth: float) -> Pair:
    p = x.probs[:, first:]
    outside, tp = sum_over_space(p * empty, x, first), sum_over_space(p * ~empty, x, first)
    size, part_tp, part_size = sum_over_space((~empty).to(p), x, first), blobs.sums(p), blobs.sums(torch.ones_like(p))
    whole = 1 - (2 * tp + smooth) / (outside + tp + size + smooth)
    part = 1 - (2 * part_tp + smooth) / (outside.flatten()[blobs.owner] + part_tp + part_size + smooth)
    return whole, blobs.mean(part, whole)


def _bce(x: Comparison, first: int, blobs: _Blobs, empty: Tensor) -> Pair:
    z = one_vs_rest(x, first)
    inside = -F.logsigmoid(z)
    outside, room = sum_over_space(-F.logsigmoid(-z) * empty, x, first), sum_over_space(empty.to(z), x, first)
    size, ones = sum_over_space((~empty).to(z), x, first), torch.ones_like(z)
    whole = ratio(outside + sum_over_space(inside * ~empty, x, first), room + size)
    part = (outside.flatten()[blobs.owner] + blobs.sums(inside)) / (room.flatten()[blobs.owner] + blobs.sums(ones))
    return whole, blobs.mean(part, whole)


def one_vs_rest(x: Comparison, first: int) -> Float[Tensor, "b part *s"]:
    """The logit of each channel against all others: its sigmoid is the channel's probability, exact in both tails."""
    if x.mode != "multiclass":
        return x.logits[:, first:]
    z = x.logits
    channels = range(first, z.shape[1])
    return torch.stack([z[:, c] - torch.cat([z[:, :c], z[:, c + 1 :]], 1).logsumexp(1) for c in channels], 1)


def _one_by_one(x: Comparison, first: int, truth: Tensor, numbers: Tensor, criterion: str) -> Pair:
    """Any loss of the table, for the whole and for every blob a binary comparison of its own."""
    z, weight, function = one_vs_rest(x, first), counted(x, first), rows()[criterion].function
    weight = torch.ones_like(z) if weight is None else weight.expand_as(z)

    def against(n: int, c: int, target: Tensor, kept: Tensor) -> Tensor:
        spacing_mm = None if x.spacing_mm is None else x.spacing_mm[n : n + 1]
        return reduced(
            function,
            Comparison(
                raw=z[n, c][None, None],
                mode="binary",
                target=target[None, None].to(x.dtype),
                weight=(weight[n, c] * kept)[None, None],
                spacing_mm=spacing_mm,
            ),
        )

    wholes, parts = [], []
    for n, c in np.ndindex(*truth.shape[:2]):
        wholes.append(against(n, c, truth[n, c], torch.ones_like(truth[n, c])))
        names = [int(name) for name in torch.unique(numbers[n, c]) if name]
        each = [against(n, c, numbers[n, c] == name, ~truth[n, c] | (numbers[n, c] == name)) for name in names]
        parts.append(torch.stack(each).mean() if each else wholes[-1] * 0)
    return torch.stack(wholes).reshape(truth.shape[:2]), torch.stack(parts).reshape(truth.shape[:2])
