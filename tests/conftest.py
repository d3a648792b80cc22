"""Settings and fixtures of every room's tests."""

from __future__ import annotations

import gc
import sys
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import is_hypothesis_test, settings
from support import FULL, REST, examples
from support.shapes import check_shapes_only
from support.toys import write_toy_dataset

check_shapes_only()

settings.register_profile("medseg", examples(100))
settings.load_profile("medseg")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `sampled` does not choose, or for the `REST` what ran whole without it."""
    if FULL and not REST:
        return
    chosen = sampled(items)
    if REST:
        chosen = {item.nodeid for item in items if item.nodeid not in chosen or _is_more_in_full(item)}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look at a million objects again and again."""
    gc.collect()
    gc.freeze()


def _is_more_in_full(item: pytest.Item) -> bool:
    """Whether it is slow, which nothing samples, or a property, of which a sample tries a few examples."""
    return item.get_closest_marker("slow") is not None or is_hypothesis_test(getattr(item, "obj", None))


def sampled(items: list[pytest.Item]) -> set[str]:
    """What runs in ``make test``: of the cells of a ``@pytest.mark.sweep(n)`` one in ``n``, and of every test one.

    Only parametrised tests are cells. They are chosen by their names, so that what failed once can be run again, and
    spread over all parameters.
    """
    chosen: set[str] = set()
    least: dict[str, tuple[int, str]] = {}
    for item in items:
        marker = item.get_closest_marker("sweep")
        if marker is None or not hasattr(item, "callspec"):
            chosen.add(item.nodeid)
            continue
        number = zlib.crc32(item.name.encode())
        if number % int(marker.args[0]) == 0:
            chosen.add(item.nodeid)
        test = item.nodeid.partition("[")[0]
        least[test] = min(least.get(test, (number, item.nodeid)), (number, item.nodeid))
    return chosen | {nodeid for test, (_, nodeid) in least.items() if not any(c.startswith(f"{test}[") for c in chosen)}


collect_ignore = ["support/own_augmentations.py"]  # looking for doctests would file what only a named path files

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
