"""Which patch comes when: a pure function of (seed, epoch, batch, sample), so nothing has to be remembered."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray

from medseg.space.patch import PatchLocation
from medseg.space.volume import Shape

ANYWHERE, ON_ORGANS, WHERE, APPEARANCE = range(4)
"""Streams of chance: one for the order of all cases, of those with organs, the places in them, the augmentation."""


@dataclass(frozen=True)
class Slot:
    """One sample of a batch.

    Attributes:
        sample: Its number in the batch of all ranks together, which keys whatever chance decides about it.
        case: A case by its number.
        foreground: Whether the patch must contain an organ.
    """

    sample: int
    case: int
    foreground: bool


@dataclass(frozen=True)
class Schedule:
    """Deals cases to the samples of every batch of every epoch, and the samples of a batch to the ranks.

    A batch is one thing, however many ranks share it: two ranks with half of it each train on the very samples that one
    rank with all of it would. Its last ``ceil(oversample · samples)`` samples show an organ (nnU-Net's rule), the
    others any place; rank r takes every ranks-th sample from r on, so organs are shared out evenly. Both kinds go
    through their cases in shuffled rounds, dealt like cards: no two samples get the same card, and every case turns up
    once before any turns up twice. An epoch long enough for a whole round begins a new one; shorter epochs carry on
    where the last one stopped. Where a batch is a single sample, the first of an epoch shows an
    organ, then every ``1 / oversample``-th.

    Attributes:
        cases: How many cases there are.
        with_organs: Numbers of those that have at least one voxel of an organ.
        batch_size: Samples of a batch, per rank.
        steps: Batches of an epoch.
        ranks: Processes that train together.
        seed: Another seed, another order.
        oversample: Least share of samples with an organ.

    Example:
        >>> schedule = Schedule(cases=4, with_organs=(0, 1, 2), batch_size=3, steps=10)
        >>> [slot.foreground for slot in schedule.batch(epoch=0, number=0)]
        [False, False, True]
        >>> schedule.batch(0, 5) == schedule.batch(0, 5)
        True
    """

    cases: int
    with_organs: tuple[int, ...]
    batch_size: int
    steps: int
    ranks: int = 1
    seed: int = 0
    oversample: float = 1 / 3

    def __post_init__(self) -> None:
        if min(self.cases, self.batch_size, self.steps, self.ranks) < 1:
            raise ValueError(
                f"need at least one case, sample, step and rank, got {self.cases}, {self.batch_size}, {self.steps} "
                f"and {self.ranks}; choose another fold, batch_size or steps_per_epoch"
            )
        if not 0 <= self.oversample <= 1:
            raise ValueError(f"oversample_foreground is a share between 0 and 1, got {self.oversample}")

    @property
    def samples(self) -> int:
        """Samples of a batch over all ranks."""
        return self.batch_size * self.ranks

    def batch(self, epoch: int, number: int, rank: int = 0) -> tuple[Slot, ...]:
        """One rank's samples of batch ``number`` of an epoch, those with an organ last."""
        return self.whole_batch(epoch, number)[rank :: self.ranks]

    def whole_batch(self, epoch: int, number: int) -> tuple[Slot, ...]:
        """The samples of batch ``number`` of an epoch over all ranks, those with an organ last."""
        first, last = self._dealt(number), self._dealt(number + 1)
        others = self.samples - (last - first)
        begin = number * self.samples - first
        anywhere = [self._card(ANYWHERE, self.cases, epoch, card) for card in range(begin, begin + others)]
        organs = [self._card(ON_ORGANS, len(self.with_organs), epoch, card) for card in range(first, last)]
        cases = [*anywhere, *(self.with_organs[card] for card in organs)]
        return tuple(Slot(sample, case, foreground=sample >= others) for sample, case in enumerate(cases))

    def _dealt(self, batches: int) -> int:
        """Samples with an organ in the first batches of an epoch."""
        if not self.with_organs:
            return 0
        if self.samples == 1:
            return math.ceil(batches * self.oversample - 1e-9)
        return batches * math.ceil(self.samples * self.oversample - 1e-9)

    def _card(self, stream: int, cards: int, epoch: int, card: int) -> int:
        with_organ = self._dealt(self.steps)
        per_epoch = with_organ if stream == ON_ORGANS else self.steps * self.samples - with_organ
        if per_epoch < cards:  # rounds longer than an epoch run on across epochs
            card, epoch = card + epoch * per_epoch, 0
        round_number, place = divmod(card, cards)
        return int(_shuffled(cards, self.seed, stream, epoch, round_number)[place])


@functools.lru_cache(maxsize=8)
def _shuffled(cards: int, *key: int) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(cards)


def place_patch(
    rng: np.random.Generator,
    shape: Shape,
    patch_size: Shape,
    organs: Mapping[int, Integer[np.ndarray, "n 3"]] | None = None,
) -> PatchLocation:
    """Put a patch anywhere in a volume, or around a voxel of one of its organs.

    The organ is drawn evenly among those present, then one of its voxels: a tiny organ is seen as often as a large one.
    The voxel lies in the middle half of the patch along each axis unless the border of the volume is nearer, so that
    organs are not always in the centre. A volume shorter than the patch lies anywhere within it.

    Args:
        rng: The only source of chance.
        shape: Voxels of the volume.
        patch_size: Voxels of the patch.
        organs: Voxels per organ, none empty; None or empty for a patch anywhere.

    Returns:
        A place that reaches over the border only along axes where the volume is shorter than the patch.

    Example:
        >>> place_patch(np.random.default_rng(0), (8, 8, 8), (8, 8, 8))
        PatchLocation(corner=(0, 0, 0), size=(8, 8, 8))
    """
    slack = np.subtract(shape, patch_size)
    lowest, highest = np.minimum(slack, 0), np.maximum(slack, 0)
    if organs:
        names = sorted(organs)
        voxels = organs[names[rng.integers(len(names))]]
        voxel = voxels[rng.integers(len(voxels))].astype(np.int64)
        quarter = np.maximum(np.array(patch_size) // 4, 1)
        near = np.clip(voxel - patch_size + quarter, lowest, highest)
        far = np.clip(voxel - quarter, lowest, highest)
        longer = slack > 0
        lowest, highest = np.where(longer, near, lowest), np.where(longer, np.maximum(near, far), highest)
    i, j, k = (int(start) for start in rng.integers(lowest, highest + 1))
    return PatchLocation((i, j, k), patch_size)
