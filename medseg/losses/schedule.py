"""Weights that change over the epochs, inside an expression: ``dice + linear(0.01, 1, epochs=100) * boundary``.

Each is plain, frozen data that can be called with an epoch, so that a loss can be pickled and sent to other processes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

Weight = Callable[[int], float]
"""The weight of a term at an epoch, counted from 0."""

OPERATORS: dict[str, Callable[[float, float], float]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "Div": operator.truediv,
}
"""Arithmetic of weights, by the names of Python's syntax trees."""


@dataclass(frozen=True)
class Constant:
    """The same weight at every epoch."""

    value: float

    def __call__(self, epoch: int) -> float:
        """Give the weight at an epoch."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """Go from ``start`` at epoch 0 to ``end`` at epoch ``epochs`` in equal steps, and stay there.

    Example:
        >>> weight = Linear(0.0, 1.0, epochs=4)
        >>> [weight(epoch) for epoch in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """

    start: float
    end: float
    _: KW_ONLY
    epochs: int = 100

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"linear(...) needs epochs of at least 1, got {self.epochs}")

    def __call__(self, epoch: int) -> float:
        """Give the weight at an epoch."""
        return self.start + (self.end - self.start) * min(epoch, self.epochs) / self.epochs


@dataclass(frozen=True)
class Increase:
    """Start at ``start`` and add ``step`` every epoch up to ``limit``: the boundary loss's own schedule.

    ``dice + increase() * boundary`` is its "increase", ``(1 - increase()) * dice + increase() * boundary`` its
    "rebalance".

    Example:
        >>> weight = Increase(0.25, 0.25)
        >>> [weight(epoch) for epoch in (0, 1, 9)]
        [0.25, 0.5, 1.0]
    """

    start: float = 0.01
    step: float = 0.01
    _: KW_ONLY
    limit: float = 1.0

    def __call__(self, epoch: int) -> float:
        """Give the weight at an epoch."""
        return min(self.start + self.step * epoch, self.limit)


@dataclass(frozen=True)
class Arithmetic:
    """Two weights joined by one of `OPERATORS`."""

    sign: str
    left: Weight
    right: Weight

    def __call__(self, epoch: int) -> float:
        """Give the weight at an epoch."""
        return OPERATORS[self.sign](self.left(epoch), self.right(epoch))


SCHEDULES: dict[str, Callable[..., Weight]] = {"linear": Linear, "increase": Increase}
"""The schedules an expression may name."""

EPOCHS = (*range(2_000), *(2_000 * 2**k for k in range(1, 10)))
"""The epochs at which a weight is looked at beforehand: all of most trainings, and some up to a million."""


def first_fault(weight: Weight) -> tuple[int, float] | None:
    """Find the first epoch at which a weight is negative or no finite number; the epoch and the weight, or None.

    Example:
        >>> first_fault(Arithmetic("Sub", Constant(1.0), Increase(0.5, 0.5, limit=3.0)))
        (2, -0.5)
    """
    for epoch in EPOCHS:
        try:
            value = weight(epoch)
        except ZeroDivisionError:
            value = math.nan
        if not -1e-12 <= value < math.inf:  # 1 - 0.1 * 10 is not quite 0
            return epoch, value
    return None
