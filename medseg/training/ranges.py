"""Which numbers the options of a training may have: told before anything is read or built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from medseg.checkpoints.origin import flat
from medseg.errors import UsageError

_RANGES: dict[str, tuple[float, float, str]] = {
    "at least 0": (
        *(0, math.inf),
        "checkpoint_minutes model.lr model.weight_decay model.patience model.bad_steps data.workers data.seed "
        "trainer.gradient_clip_val",
    ),
    "at least 1": (
        *(1, math.inf),
        "model.study_every data.steps_per_epoch data.batch_size trainer.accumulate_grad_batches "
        "trainer.check_val_every_n_epoch trainer.log_every_n_steps",
    ),
    "above 0": (math.ulp(0.0), math.inf, "trainer.val_check_interval trainer.limit_train_batches"),
    "above 0 and at most 1": (math.ulp(0.0), 1, "model.validation_share"),
    "at least 0 and at most 1": (0, 1, "data.oversample_foreground"),
    "at least 0 and below 1": (0, math.nextafter(1, 0), "model.warmup model.ema model.overlap"),
    "at least 0 and at most 4294967295": (0, 2**32 - 1, "seed_everything"),
}
RANGES = {key: (low, high, words) for words, (low, high, keys) in _RANGES.items() for key in keys.split()}
"""Key of the config -> its smallest and largest number, and both in words; other kinds of values are not judged."""

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
    for key, (low, high, words) in RANGES.items():
        value = options.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not low <= value <= high or math.isinf(value):
            raise UsageError(f"{key} must be {words}, got {value}", f"Correct --{key}")
    for key in FILLED:
        if key in options and options[key] is not None and str(options[key]).strip() == "":
            raise UsageError(f"{key} is empty", f"Leave --{key} out, or give it a name")
