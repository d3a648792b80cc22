"""What this machine is fast at: its arithmetic and its allocator."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]

_BF16_CAPABILITY = 8  # Ampere, the first CUDA generation with bf16 tensor cores
_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 tile and vector units; "bf16" is Arm's
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h
_MALLOPT = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20))


def best_precision(accelerator: str = "auto") -> Precision:
    """bf16 where the hardware multiplies in it, fp16 on older CUDA devices, else float32.

    Args:
        accelerator: Lightning's name of the device: ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        major, _ = torch.cuda.get_device_capability()
        return "bf16-mixed" if major >= _BF16_CAPABILITY else "16-mixed"
    if accelerator in ("auto", "cpu") and cpu_multiplies_bf16():
        return "bf16-mixed"
    return "32-true"


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
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int((root / name).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such control group, or one without a limit, which says "max"
            continue
    return min(found)


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
