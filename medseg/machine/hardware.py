"""This machine: its cores, its memory, and what it is fast at."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from medseg.errors import UsageError, listed

if sys.platform != "win32":
    import resource

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]

PrecisionName = Literal["auto", 16, 32, "16", "32", "32-true", "16-mixed", "bf16-mixed"]
"""What one may ask for, as Lightning names it; ``auto`` is `best_precision`."""

AUTO = "auto"
PRECISIONS = tuple(dict.fromkeys(map(str, get_args(PrecisionName))))
_IN_SHORT: dict[str, Precision] = {"16": "16-mixed", "32": "32-true"}

SHARED_MEMORY = "/dev/shm"
"""The folder of Linux in which torch's data workers leave what they have read."""

_BF16_CAPABILITY = 8  # Ampere, the first CUDA generation with bf16 tensor cores
_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 tile and vector units; "bf16" is Arm's
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h
_MALLOPT = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20))


def best_precision(accelerator: str = "auto") -> Precision:
    """bf16 where the hardware multiplies in it, fp16 on older CUDA devices, else float32.

    Args:
        accelerator: Lightning's name of the device: ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
    """
    import torch  # here: worker processes that count cores need none of it

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        major, _ = torch.cuda.get_device_capability()
        return "bf16-mixed" if major >= _BF16_CAPABILITY else "16-mixed"
    if accelerator in ("auto", "cpu") and cpu_multiplies_bf16():
        return "bf16-mixed"
    return "32-true"


def precision_named(name: str | int) -> str:
    """``"auto"`` or the `Precision` that one of `PRECISIONS` names.

    Raises:
        UsageError: It is none of them.
    """
    if str(name) not in PRECISIONS:
        raise UsageError(f"medseg does not compute in the precision {name!r}", f"Choose one of {listed(PRECISIONS)}")
    return _IN_SHORT.get(str(name), str(name))


def cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has bf16 multiply-add (AMX, AVX512-BF16 or Arm BF16), as the Linux kernel reports it.

    Elsewhere than on Linux the answer is no: emulated bf16 is slower than float32.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return bool(_BF16_FLAGS & set(flags.split()))


def memory_bytes(root: Path = Path("/")) -> int:
    """The memory that this process may use at most: the machine's, or the limit of its control group; 0 if unknown.

    Args:
        root: Of the file system.

    Example:
        >>> memory_bytes() > 0 or not hasattr(os, "sysconf")
        True
    """
    if not hasattr(os, "sysconf"):
        return 0
    groups = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = [_number(root / name) for name in groups]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *(limit for limit in found if limit)])


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken, by the machine's and the container's account; None where neither tells.

    Args:
        root: Of the file system.
    """
    found = []
    with suppress(OSError):  # another operating system
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    group = root / "sys/fs/cgroup"
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None:
        found.append(max(0, limit - used))
    return min(found, default=None)


def shared_memory_bytes() -> int | None:
    """Bytes that processes may still hand to each other through `SHARED_MEMORY`; None where there is no such folder."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):  # another operating system
        return None
    return found.f_bavail * found.f_frsize


def peak_memory_bytes(device: Any) -> int:
    """The most memory this process has held: a CUDA device's tensors, else what was resident; 0 where nobody counts.

    What is resident includes the interpreter, the libraries and cached volumes; processes that load data do not count.

    Args:
        device: A `torch.device`.

    Example:
        >>> import torch
        >>> peak_memory_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def usable_cores() -> int:
    """Count the cores this process may run on, which in a container or under Slurm is fewer than the machine has.

    Example:
        >>> usable_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next training step instead of returning it to the kernel.

    A step on the CPU frees and asks for the same gigabyte of activations again; getting it back page by page costs a
    tenth of the step.

    Returns:
        Whether the C library took the advice (glibc does, others have no such call).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(option, value) for option, value in _MALLOPT)


def _number(file: Path) -> int | None:
    """What the kernel says in a file; None without the file, or where it says "max"."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
