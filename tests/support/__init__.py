"""What the tests of several rooms share; no test file imports another."""

import os

FULL = bool(os.environ.get("MEDSEG_FULL_TESTS"))
"""Set (by ``make test-all``), every cell of every sweep runs; else a sample of them."""
