"""Which patch comes when: a pure function of (seed, epoch, batch, sample), so nothing has to be remembered."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
        organ: Which one, None for any.
    """

    sample: int
    case: int
    foreground: bool
    organ: int | None = None


@dataclass(frozen=True)
class Deck:
    """Cases that are dealt in shuffled rounds, or decks that take turns, each dealing from its own.

    Attributes:
        cases: Their numbers.
        parts: Decks in place of cases, none of them empty.
        organ: What the patches from this deck must show.

    Example:
        >>> two = Deck(parts=(Deck((0,)), Deck((1, 2, 3))))
        >>> sorted(two.deal(card, (7,))[0] for card in range(6))
        [0, 0, 0, 1, 2, 3]
    """

    cases: tuple[int, ...] = ()
    parts: tuple[Deck, ...] = ()
    organ: int | None = None

    @property
    def size(self) -> int:
        """Cards until every case has come."""
        return len(self.parts) * max((part.size for part in self.parts), default=0) or len(self.cases)

    def deal(self, card: int, key: tuple[int, ...]) -> tuple[int, int | None]:
        """The case of a card, and the organ that must be seen of it; the key makes the order."""
        round_number, place = divmod(card, len(self.parts or self.cases))
        chosen = int(_shuffled(len(self.parts or self.cases), *key, round_number)[place])
        if not self.parts:
            return self.cases[chosen], self.organ
        case, organ = self.parts[chosen].deal(round_number, (*key, chosen))
        return case, organ if self.organ is None else self.organ


Balance = Literal["none", "datasets", "organs", "both"]
"""What the patches of a training are dealt evenly over, apart from cases."""


def decks(balance: Balance, datasets: Sequence[str], organs: Sequence[Collection[int]]) -> tuple[Deck, Deck]:
    """The decks for patches anywhere and for those that must show an organ.

    Args:
        balance: ``none``: every case as often as another. ``datasets``: every dataset as often, whatever its size.
            ``organs``: of patches that must show an organ, every organ as often, however few cases have it drawn.
            ``both``: each organ as often, and each of the datasets that drew it.
        datasets: Per case, the one that it comes from.
        organs: Per case, the classes that it has voxels of.

    Example:
        >>> _, on_organs = decks("organs", ["", "", ""], [{1}, {1}, {1, 2}])
        >>> sorted(on_organs.deal(card, (0,))[1] for card in range(4))
        [1, 1, 2, 2]
    """

    def deck(cases: Sequence[int], organ: int | None = None) -> Deck:
        names = sorted({datasets[case] for case in cases}) if balance in ("datasets", "both") else []
        if len(names) < 2:
            return Deck(tuple(cases), organ=organ)
        shares = (tuple(case for case in cases if datasets[case] == name) for name in names)
        return Deck(parts=tuple(map(Deck, shares)), organ=organ)

    everyone, every_organ = range(len(datasets)), sorted({organ for several in organs for organ in several})
    with_organs = [case for case in everyone if organs[case]]
    if balance in ("none", "datasets"):
        return deck(everyone), deck(with_organs)
    having = ((organ, [case for case in with_organs if organ in organs[case]]) for organ in every_organ)
    return deck(everyone), Deck(parts=tuple(deck(cases, organ) for organ, cases in having))


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
        anywhere: The cases.
        on_organs: Those that have at least one voxel of an organ.
        batch_size: Samples of a batch, per rank.
        steps: Batches of an epoch.
        ranks: Processes that train together.
        seed: Another seed, another order.
        oversample: Least share of samples with an organ.

    Example:
        >>> schedule = Schedule(Deck((0, 1, 2, 3)), Deck((0, 1, 2)), batch_size=3, steps=10)
        >>> [slot.foreground for slot in schedule.batch(epoch=0, number=0)]
        [False, False, True]
        >>> schedule.batch(0, 5) == schedule.batch(0, 5)
        True
    """

    anywhere: Deck
    on_organs: Deck
    batch_size: int
    steps: int
    ranks: int = 1
    seed: int = 0
    oversample: float = 1 / 3

    def __post_init__(self) -> None:
        if min(self.anywhere.size, self.batch_size, self.steps, self.ranks) < 1:
            raise ValueError(
                f"need at least one case, sample, step and rank, got {self.anywhere.size}, {self.batch_size}, "
                f"{self.steps} and {self.ranks}; choose another fold, batch_size or steps_per_epoch"
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
        anywhere = [self._card(ANYWHERE, epoch, card) for card in range(begin, begin + others)]
        cards = [*anywhere, *(self._card(ON_ORGANS, epoch, card) for card in range(first, last))]
        return tuple(Slot(sample, case, sample >= others, organ) for sample, (case, organ) in enumerate(cards))

    def _dealt(self, batches: int) -> int:
        """Samples with an organ in the first batches of an epoch."""
        if not self.on_organs.size:
            return 0
        if self.samples == 1:
            return math.ceil(batches * self.oversample - 1e-9)
        return batches * math.ceil(self.samples * self.oversample - 1e-9)

    def _card(self, stream: int, epoch: int, card: int) -> tuple[int, int | None]:
        with_organ = self._dealt(self.steps)
        per_epoch = with_organ if stream == ON_ORGANS else self.steps * self.samples - with_organ
        deck = self.on_organs if stream == ON_ORGANS else self.anywhere
        if per_epoch < deck.size:  # rounds longer than an epoch run on across epochs
            card, epoch = card + epoch * per_epoch, 0
        return deck.deal(card, (self.seed, stream, epoch))


@functools.lru_cache(maxsize=256)
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
