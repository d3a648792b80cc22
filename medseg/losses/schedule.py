"""Weights that change over the epochs, inside an expression: ``dice + linear(0.01, 1, epochs=100) * boundary``."""

from __future__ import annotations

from collections.abc import Callable

Weight = Callable[[int], float]
"""The weight of a term at an epoch, counted from 0."""


def constant(value: float) -> Weight:
    """The same weight at every epoch."""
    return lambda epoch: value


def linear(start: float, end: float, *, epochs: int = 100) -> Weight:
    """Go from ``start`` at epoch 0 to ``end`` at epoch ``epochs`` in equal steps, and stay there.

    Example:
        >>> weight = linear(0.0, 1.0, epochs=4)
        >>> [weight(epoch) for epoch in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    if epochs < 1:
        raise ValueError(f"linear(...) needs epochs of at least 1, got {epochs}")
    return lambda epoch: start + (end - start) * min(epoch, epochs) / epochs


def increase(start: float = 0.01, step: float = 0.01, *, limit: float = 1.0) -> Weight:
    """Start at ``start`` and add ``step`` every epoch up to ``limit``: the boundary loss's own schedule.

    ``dice + increase() * boundary`` is its "increase", ``(1 - increase()) * dice + increase() * boundary`` its
    "rebalance".

    Example:
        >>> weight = increase(0.25, 0.25)
        >>> [weight(epoch) for epoch in (0, 1, 9)]
        [0.25, 0.5, 1.0]
    """
    return lambda epoch: min(start + step * epoch, limit)


SCHEDULES: dict[str, Callable[..., Weight]] = {"linear": linear, "increase": increase}
"""The schedules an expression may name."""
