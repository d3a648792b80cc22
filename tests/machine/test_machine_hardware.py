"""What this machine has left, by the kernel's and the control group's account."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from medseg.machine.devices import beside
from medseg.machine.hardware import free_memory, memory_bytes


def test_free_memory_is_the_least_of_what_is_told(tmp_path):
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert free_memory(tmp_path) == 5000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for limit, expected in (("max", 5000 * 1024), ("3000000", 2000000), ("900000", 0)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("1000000\n")
        assert free_memory(tmp_path) == expected
    assert memory_bytes(tmp_path) == 900000


def test_this_machine_has_memory():
    free = free_memory()
    assert free is None or free > 1 << 20


def test_a_gpu_prepares_the_next_item_before_the_last_is_used_and_waits_for_no_other(monkeypatch):
    told = []

    class Stream:
        def __init__(self, device):
            self.events = 0

        def record_event(self):
            self.events += 1
            return self.events

    network = SimpleNamespace(wait_event=lambda event: told.append(("waits for", event)))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: network)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    def prepare(item):
        told.append(("prepares", item))
        return {"batch": torch.tensor(item)}

    for ready in beside(iter([1, 2, 3]), device=torch.device("cuda"), prepare=prepare):
        told.append(("works on", int(ready["batch"])))
    words = ", ".join(f"{verb} {number}" for verb, number in told)
    assert words.startswith("prepares 1, prepares 2, waits for 1, works on 1, prepares 3, waits for 2, works on 2")
    assert words.endswith("waits for 3, works on 3")
    assert not list(beside(iter(()), device=torch.device("cuda"), prepare=prepare))
