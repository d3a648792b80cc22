"""What this machine has left, by the kernel's and the control group's account."""

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
