"""Workers that fail, die, or meet a machine at fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.errors import DataError
from medseg.plan import workers
from medseg.plan.workers import MachineError, Outcome, default_workers, free_memory, run_tasks


def double(number):
    return 2 * number


def fail_on_odd(number):
    if number % 2:
        raise DataError(f"case_{number}", "is odd", "Use even ones")
    return number


def want_too_much(number):
    raise MemoryError(number)


def fill_the_disk(number):
    raise MachineError("store", f"is full at {number}", "Free space")


def die_on_three(task):
    number, _ = task
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(task):
    number, folder = task
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_back_by_name(count):
    outcome = run_tasks(double, {f"case_{n}": n for n in range(7)}, workers=count, title="doubling")
    assert outcome.results == {f"case_{n}": 2 * n for n in range(7)}
    assert outcome.or_raise(Path("data")) == outcome.results


def test_no_tasks():
    assert run_tasks(double, {}, workers=2, title="nothing").results == {}


@pytest.mark.parametrize("count", [1, 2])
def test_failures_are_noted_and_the_others_go_on(count):
    outcome = run_tasks(fail_on_odd, {f"case_{n}": n for n in range(4)}, workers=count, title="trying")
    assert sorted(outcome.results) == ["case_0", "case_2"]
    assert sorted(outcome.failures) == ["case_1", "case_3"]
    with pytest.raises(DataError) as caught:
        outcome.or_raise(Path("data"))
    assert "data has 2 cases that cannot be used:" in str(caught.value)
    assert str(caught.value).count("is odd. Use even ones.") == 2


def test_one_failure_speaks_for_itself():
    with pytest.raises(DataError, match=r"^case_1 is odd\. Use even ones\.$"):
        run_tasks(fail_on_odd, {"case_1": 1}, workers=1, title="trying").or_raise(Path("data"))


def test_want_of_memory_is_a_failure_of_the_case():
    outcome = run_tasks(want_too_much, {"a": 1, "b": 2}, workers=1, title="wanting")
    assert "needs more memory" in str(outcome.failures["a"])


@pytest.mark.parametrize("count", [1, 2])
def test_a_machine_at_fault_stops_everything(count):
    with pytest.raises(MachineError, match="is full"):
        run_tasks(fill_the_disk, {f"case_{n}": n for n in range(4)}, workers=count, title="filling")


@pytest.mark.slow
def test_a_case_that_kills_its_worker_is_named_and_takes_nobody_along(tmp_path):
    tasks = {f"case_{n}": (n, str(tmp_path)) for n in range(6)}
    outcome = run_tasks(die_on_three, tasks, workers=2, title="dying")
    assert sorted(outcome.results) == [f"case_{n}" for n in range(6) if n != 3]
    assert "case_3 twice ended its worker process" in str(outcome.failures["case_3"])


def test_a_worker_killed_from_outside_costs_nothing(tmp_path):
    tasks = {f"case_{n}": (n, str(tmp_path)) for n in range(6)}
    outcome = run_tasks(die_once, tasks, workers=2, title="dying once")
    assert sorted(outcome.results) == sorted(tasks)
    assert not outcome.failures


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from medseg.plan.workers import run_tasks\n"
        "import os\n"
        "run_tasks(os.path.basename, {'a': 'x', 'b': 'y'}, workers=2, title='t')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "worker processes do not start here" in done.stderr


def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from medseg.plan.workers import run_tasks\n"
        "def work(name):\n"
        "    Path(name).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    run_tasks(work, {{n: r'{tmp_path}/' + n for n in 'ab'}}, workers=2, title='t')\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    wait_until(
        lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text(encoding="utf-8") for name in "ab")
    )
    parent.kill()
    parent.wait()
    processes = [int((tmp_path / name).read_text(encoding="utf-8")) for name in "ab"]
    wait_until(lambda: not any(Path(f"/proc/{process}/cmdline").exists() and running(process) for process in processes))


def running(process):
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def wait_until(done, seconds=60):
    for _ in range(seconds * 20):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize(("free", "expected"), [(None, 4), (10**12, 4), (3 * 10**9, 2), (1, 1)])
def test_workers_are_as_many_as_cores_and_memory_allow(free, expected, monkeypatch):
    monkeypatch.setattr(workers, "free_memory", lambda: free)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert default_workers(10**9) == expected
    assert default_workers(0) == 4


def test_free_memory_is_plausible():
    free = free_memory()
    assert free is None or free > 1 << 20


def test_a_system_that_does_not_tell_its_memory(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert free_memory() is None


def test_an_outcome_starts_empty():
    assert Outcome().or_raise(Path("data")) == {}
