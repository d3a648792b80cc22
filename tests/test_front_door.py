"""``import medseg``: cheap, complete, and what its stub promises."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import medseg

STUB = ast.parse(Path(medseg.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
OFFERED = {
    alias.name: node.module for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names
}  # fmt: skip


def test_importing_medseg_loads_nothing_heavy():
    heavy = {"torch", "numpy", "monai", "pytorch_lightning", "scipy", "nibabel", "yaml"}
    code = "import sys, medseg; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


def test_dir_and_all_name_what_the_stub_does():
    assert set(medseg.__all__) == set(OFFERED) <= set(dir(medseg))


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_what_is_offered_is_there_and_documented(name):
    offered = getattr(medseg, name)
    assert offered is getattr(importlib.import_module(f"medseg.{OFFERED[name]}"), name)
    assert offered.__doc__


def test_what_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        medseg.nonsense  # noqa: B018
