"""The script that is run when a GPU is at hand goes through to its end without one."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
ROWS = {"correct": 1, "micro": 6 + 4 + 10, "network": 4 * 2 + 3, "fit": 2, "predict": 1, "learn": 1}


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


@pytest.mark.sweep(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", [pytest.param(name, marks=[pytest.mark.slow] * (name == "learn")) for name in ROWS])
def test_a_stage_of_the_check_fills_its_table(check, tmp_path_factory, stage):
    out = tmp_path_factory.getbasetemp() / "gpu_check"  # the stages share a store
    assert check.main([stage, "--out", str(out), "--device", "cpu", "--small"]) == 0
    table = (out / f"{stage}.md").read_text(encoding="utf-8").splitlines()
    assert len(table) >= ROWS[stage]
    assert not [line for line in table if "WRONG" in line or "nan" in line]


def test_eight_minutes_are_enough(check):
    assert set(check.STAGES) == set(check.LIMITS_S)
    assert sum(check.LIMITS_S.values()) <= 480
