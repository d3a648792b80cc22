"""Workers that fail, die, or meet a machine at fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.errors import DataError, MachineError
from medseg.machine import crew
from medseg.machine.crew import Finished, default_workers, for_each_case, run_tasks


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
    assert "data has 2 cases that cannot be used. Mend or remove them, then run again:" in str(caught.value)
    assert str(caught.value).count("is odd. Use even ones.") == 2


def test_hundreds_of_failures_do_not_fill_the_screen():
    outcome = run_tasks(fail_on_odd, {f"case_{n}": n for n in range(1, 201, 2)}, workers=1, title="trying")
    with pytest.raises(DataError, match=r"has 100 (.|\n)*\n  And 95 more: medseg verify lists them all\.$") as caught:
        outcome.or_raise(Path("data"))
    assert str(caught.value).count("\n") == 6


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


def test_a_case_that_kills_its_worker_is_named_and_takes_nobody_along(tmp_path):
    tasks = {f"case_{n}": (n, str(tmp_path)) for n in range(6)}
    outcome = run_tasks(die_on_three, tasks, workers=2, title="dying")
    assert sorted(outcome.results) == [f"case_{n}" for n in range(6) if n != 3]
    assert "case_3 has no result: twice the process that worked on it was ended by SIGKILL" in str(
        outcome.failures["case_3"]
    )


def test_a_worker_killed_from_outside_costs_nothing(tmp_path):
    tasks = {f"case_{n}": (n, str(tmp_path)) for n in range(6)}
    outcome = run_tasks(die_once, tasks, workers=2, title="dying once")
    assert sorted(outcome.results) == sorted(tasks)
    assert not outcome.failures


def die_on_two(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        os._exit(5)
    if number == 4:
        raise DataError("four", "is wrong", "Take five")
    if number == 6:
        raise MemoryError
    return number * 10


def test_a_worker_that_dies_names_its_case_and_the_others_go_on():
    done = {d.name: d for d in for_each_case(die_on_two, {str(n): n for n in range(8)}, workers=2)}
    assert {name: d.result for name, d in done.items() if d.failure is None} == {"0": 0, "1": 10, "5": 50, "7": 70}
    assert str(done["2"].failure).startswith(
        "2 has no result: twice the process that worked on it was ended by SIGKILL"
    )
    assert "exit status 5" in str(done["3"].failure)
    assert str(done["4"].failure) == "four is wrong. Take five."
    assert "more memory than there is" in str(done["6"].failure)


def test_one_worker_works_in_this_process():
    tasks = {str(n): n for n in (0, 4, 6)}
    done = {d.name: d for d in for_each_case(die_on_two, tasks, workers=1)}
    assert done["0"].result == 0
    assert done["4"].failure is not None
    assert "more memory" in str(done["6"].failure)
    assert list(for_each_case(die_on_two, {}, workers=None)) == []


def finish_beside_a_full_disk(task):
    folder, at_work = task
    if not at_work:
        wait_until(Path(folder, "begun").exists)
        raise MachineError("store", "is full", "Free space")
    Path(folder, "begun").touch()
    time.sleep(0.5)
    Path(folder, "finished").touch()


def test_cases_in_work_are_finished_when_the_machine_is_at_fault(tmp_path):
    tasks = {"a": (str(tmp_path), True), "b": (str(tmp_path), False)}
    with pytest.raises(MachineError, match="is full"):
        run_tasks(finish_beside_a_full_disk, tasks, workers=2, title="filling")
    assert (tmp_path / "finished").exists()


def test_who_stops_listening_stops_the_work():
    for done in for_each_case(time.sleep, {"short": 0, "long": 600}, workers=2):
        assert done.name == "short"
        break


def test_a_worker_that_is_killed_before_it_has_started_is_replaced(monkeypatch):
    start = crew._Worker.__init__
    killed = []

    def start_and_kill_the_first(self, work):
        start(self, work)
        if not killed:
            killed.append(self.process.pid)
            self.process.kill()

    monkeypatch.setattr(crew._Worker, "__init__", start_and_kill_the_first)
    outcome = run_tasks(double, {"a": 1, "b": 2, "c": 3}, workers=2, title="doubling")
    assert killed
    assert outcome.results == {"a": 2, "b": 4, "c": 6}


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from medseg.machine.crew import run_tasks\n"
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
        "from medseg.machine.crew import run_tasks\n"
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
    wait_until(lambda: not any(map(running, processes)))
    assert not any(map(running, processes))


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
    monkeypatch.setattr(crew, "free_memory", lambda: free)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert default_workers(10**9) == expected
    assert default_workers(0) == 4


def test_an_outcome_starts_empty():
    assert Finished().or_raise(Path("data")) == {}
