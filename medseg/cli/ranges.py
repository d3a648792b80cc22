"""Which numbers the options of `medseg fit` may have: told before anything is read or built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.checkpoints.origin import flat
from medseg.errors import UsageError


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, the ends included unless they are said to be open.

    Example:
        >>> print(Range(0, 1, high_open=True))
        at least 0 and below 1
        >>> 1 in Range(0, 1, high_open=True), 1 in Range(1)
        (False, True)
    """

    low: int
    high: int | float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: int | float) -> bool:
        """Whether it holds a number; it never holds NaN."""
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        """The range as the end of "it must be"."""
        low = f"{'above' if self.low_open else 'at least'} {self.low:g}"
        return (
            low if math.isinf(self.high) else f"{low} and {'below' if self.high_open else 'at most'} {self.high:.10g}"
        )


_SHARE, _PART, _COUNT, _NUMBER = Range(0, 1), Range(0, 1, high_open=True), Range(1), Range(0)

RANGES: dict[str, Range] = {
    "seed_everything": Range(0, 2**32 - 1),
    "checkpoint_minutes": _NUMBER,
    "model.lr": _NUMBER,
    "model.weight_decay": _NUMBER,
    "model.warmup": _PART,
    "model.ema": _PART,
    "model.overlap": _PART,
    "model.patience": _NUMBER,
    "model.bad_steps": _NUMBER,
    "model.study_every": _COUNT,
    "data.steps_per_epoch": _COUNT,
    "data.workers": _NUMBER,
    "data.seed": _NUMBER,
    "data.oversample_foreground": _SHARE,
    "data.batch_size": _COUNT,
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.gradient_clip_val": _NUMBER,
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.val_check_interval": Range(0, low_open=True),
    "trainer.limit_train_batches": Range(0, low_open=True),
    "trainer.log_every_n_steps": _COUNT,
}
"""Key of the config -> what it may be; an option that is left out or is no number is not judged here."""

FILLED = ("run", "ckpt_path", "model.init_from")
"""Keys of the config which are no name of anything when they are empty."""


def require_in_range(config: Mapping[str, Any]) -> None:
    """Refuse numbers that mean nothing, and names that are empty.

    Args:
        config: Of one command, nested.

    Raises:
        UsageError: An option is out of its range.

    Example:
        >>> require_in_range({"model": {"lr": 0.1}})
        >>> require_in_range({"model": {"ema": 1.5}})
        Traceback (most recent call last):
            ...
        medseg.errors.UsageError: model.ema must be at least 0 and below 1, got 1.5. Correct --model.ema.
    """
    options = flat(config)
    for key, legal in RANGES.items():
        value = options.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value not in legal:
            raise UsageError(f"{key} must be {legal}, got {value}", f"Correct --{key}")
    for key in FILLED:
        if key in options and options[key] is not None and str(options[key]).strip() == "":
            raise UsageError(f"{key} is empty", f"Leave --{key} out, or give it a name")
