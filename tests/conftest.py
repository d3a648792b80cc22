"""Settings and fixtures of every room's tests."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings
from support.toys import write_toy_dataset

settings.register_profile("medseg", deadline=None)  # the machine may be busy: nothing here is a race
settings.load_profile("medseg")

FULL = "MEDSEG_FULL_TESTS"
"""Set (by ``make test-all``), every cell of every sweep runs; else `sampled` ones only."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `sampled` does not choose."""
    if os.environ.get(FULL):
        return
    left_out = [item for item in items if not sampled(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if sampled(item)]


def sampled(item: pytest.Item) -> bool:
    """Whether one cell of a sweep runs in ``make test``: of ``@pytest.mark.sweep(n)`` one in ``n``, by its name.

    Only parametrised tests are cells. A name always falls the same way, so that what failed once can be run again;
    cells are spread over all parameters.
    """
    marker = item.get_closest_marker("sweep")
    return marker is None or not hasattr(item, "callspec") or zlib.crc32(item.name.encode()) % int(marker.args[0]) == 0


TABLES = {
    "medseg.losses.table": "_ROWS",
    "medseg.metrics.table": "_ROWS",
    "medseg.nets.table": "NETS",
    "medseg.patches.augmentations": "_ROWS",
}
"""Where a loss, a metric, a network and an augmentation of one's own are filed, for the whole process."""


@pytest.fixture(autouse=True)
def tables_as_they_were() -> Iterator[None]:
    """What a test files is gone after it, and so is the module that filed it: no test depends on those before it."""
    tables = [getattr(import_module(module), name) for module, name in TABLES.items()]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield
    for table, rows in zip(tables, before, strict=True):
        for name in set(table) - set(rows):
            filed = getattr(table[name], "function", table[name]).__module__
            if filed not in modules:
                sys.modules.pop(filed, None)
        table.clear()
        table.update(rows)


@pytest.fixture
def toy_dataset(tmp_path: Path) -> Path:
    """A toy dataset that the test may damage; see `write_toy_dataset`."""
    return write_toy_dataset(tmp_path)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """As a user has it: what is wrong is answered by medseg, not by the types that are checked in tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
