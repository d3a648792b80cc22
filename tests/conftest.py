"""Settings and fixtures of every room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from support.toys import write_toy_dataset

settings.register_profile("medseg", deadline=None)  # the machine may be busy: nothing here is a race
settings.load_profile("medseg")


@pytest.fixture
def toy_dataset(tmp_path: Path) -> Path:
    """A toy dataset that the test may damage; see `write_toy_dataset`."""
    return write_toy_dataset(tmp_path)
