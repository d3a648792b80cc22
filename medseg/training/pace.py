"""What makes a step fast without changing what it computes: the memory layout, and compiling.

On the CPU channels last is the faster layout, and compiling gains at most 3 % of a step (`benchmarks/RESULTS.md`). On
GPUs nobody has measured either.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import platform
import shutil
import tempfile

import torch
from torch import nn

from medseg.errors import UsageError


def start_compiler(net: nn.Module, device: str) -> None:
    """Compile a network when it is next called; the names of its weights stay.

    Args:
        net: The network.
        device: Type of the device that it runs on, such as ``cpu``.

    Raises:
        UsageError: This machine lacks what that takes.
    """
    if absent := missing_compiler(device):
        raise UsageError(f"model.compile needs {absent}", "Install it, or leave model.compile at false")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiler_cache())
    net.compile(dynamic=False)


def compiler_cache() -> str:
    """A folder for compiled code: of one user, one machine and one version, for code is made for a processor."""
    name = f"torchinductor_{getpass.getuser()}_{platform.node()}_{torch.__version__.split('+')[0]}"
    return os.path.join(tempfile.gettempdir(), name)


def missing_compiler(device: str) -> str:
    """What a device's code cannot be compiled without and this machine lacks; empty if all is there.

    Example:
        >>> missing_compiler("mps")
        ''
    """
    found = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    if device == "cpu" and not found:
        return "a C++ compiler such as g++, which is not on the PATH"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton, which is not installed"
    if device == "cuda" and not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "a C compiler such as gcc, by which Triton starts what it compiles and which is not on the PATH"
    return ""
