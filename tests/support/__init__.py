"""What the tests of several rooms share; no test file imports another."""

import os

from hypothesis import settings

FULL = bool(os.environ.get("MEDSEG_FULL_TESTS"))
"""Set, every cell of every sweep runs; else a sample of them."""
REST = os.environ.get("MEDSEG_FULL_TESTS") == "rest"
"""What ``make test`` leaves out runs and nothing else: the second half of ``make test-all``."""


def examples(number: int) -> settings:
    """As many examples of a property, of which ``make test`` tries a fifth; the machine may be busy: no deadline."""
    return settings(deadline=None, max_examples=number if FULL else max(3, number // 5))
