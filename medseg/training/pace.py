"""What makes a training step fast on this machine, found by timing it: the memory layout, and compiling."""

from __future__ import annotations

import copy
import getpass
import importlib.util
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.segmenter import lay_out
from medseg.types import Image

Auto = bool | Literal["auto"]
SecondsLeft = Callable[[float], float]
"""Seconds per step -> seconds that training may still take."""

COMPILE_S_PER_LAYER = 1.5
"""Rounded up from what was measured on two Xeon cores: 39 s for a U-Net of 33 layers with weights."""

_MOST_GAINED = 0.3  # of a step, by compiling; more was never measured
_WORTH_IT = 0.95  # a compiled step that takes more of the plain one's time than this is not worth its surprises
_LONG_S = 5.0  # a step that takes longer is timed once
_STEPS = 3


@dataclass(frozen=True)
class Pace:
    """How a network runs.

    Attributes:
        channels_last: Whether activations have their channels innermost.
        compiled: Whether it is compiled.
        reasons: What was measured, in a line; empty where nothing was asked.
    """

    channels_last: bool
    compiled: bool
    reasons: str = ""

    def to_dict(self) -> dict[str, bool]:
        """What a checkpoint keeps."""
        return {"channels_last": self.channels_last, "compiled": self.compiled}


@dataclass(frozen=True)
class Trial:
    """A network on a batch as it will be trained on.

    Attributes:
        net: The network, where it trains.
        image: A batch of patches there.
        context: Makes the context of the forward pass, such as autocast.
        seconds_left: What training may still take.
    """

    net: nn.Module
    image: Image
    context: Callable[[], AbstractContextManager[object]]
    seconds_left: SecondsLeft


def set_pace(trial: Trial, *, compiling: Auto = False, channels_last: Auto = True) -> Pace:
    """Lay out and compile a network as asked, or for ``"auto"`` as is faster here.

    Under ``"auto"`` a network is compiled only where the time left could repay it, and stays compiled only if it got
    faster. Weights, their names, buffers and the state of the random numbers are as before; so are the values that the
    network computes, but for rounding.

    Raises:
        UsageError: Compiling was demanded and cannot be done.
    """
    last = _faster_layout(trial) if channels_last == "auto" else channels_last
    layout = "" if channels_last != "auto" else f"channels {'last' if last else 'first'} is the faster layout"
    lay_out(trial.net, channels_last=last)
    if not compiling:
        return Pace(last, compiled=False, reasons=layout)
    absent = missing_compiler(trial.image.device.type)
    if absent and compiling is True:
        raise UsageError(f"model.compile needs {absent}", "Install it, or leave model.compile at false or auto")
    if absent:
        return Pace(last, compiled=False, reasons=_join(layout, f"not compiled, which needs {absent}"))
    compiled, reasons = _compile_if_it_pays(trial, last, demanded=compiling is True)
    return Pace(last, compiled, _join(layout, reasons))


def follow(net: nn.Module, pace: Pace) -> None:
    """Lay out and compile a network as another process found best."""
    lay_out(net, channels_last=pace.channels_last)
    if pace.compiled:
        start_compiler(net)


def start_compiler(net: nn.Module) -> None:
    """Compile a network when it is next called; the names of its weights stay."""
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
    return ""


def step_seconds(trial: Trial, *, channels_last: bool) -> float:
    """The seconds of a forward and a backward pass, the first one not counted unless it is long.

    Gradients are computed and dropped; buffers and random numbers are put back.
    """
    image = trial.image.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    weights = [p for p in trial.net.parameters() if p.requires_grad]
    buffers = copy.deepcopy(dict(trial.net.named_buffers()))
    devices = [image.device] if image.device.type == "cuda" else []
    seconds: list[float] = []
    with torch.random.fork_rng(devices):
        for _ in range(1 + _STEPS):
            begun = perf_counter()
            with trial.context():
                outputs: Tensor | tuple[Tensor, ...] = trial.net(image)
                levels = (outputs,) if isinstance(outputs, Tensor) else outputs
                loss = torch.stack([level.float().square().mean() for level in levels]).sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)  # past the hooks of other processes
            float(sum(g.flatten()[0].float() for g in gradients if g is not None))  # waits for the device
            seconds.append(perf_counter() - begun)
            if len(seconds) > 1 and seconds[-1] > _LONG_S:
                break
    with torch.no_grad():
        for name, buffer in trial.net.named_buffers():
            buffer.copy_(buffers[name])
    return statistics.median(seconds[1:])


def _faster_layout(trial: Trial) -> bool:
    seconds = {}
    for last in (False, True):
        lay_out(trial.net, channels_last=last)
        seconds[last] = step_seconds(trial, channels_last=last)
    return seconds[True] <= seconds[False]


def _compile_if_it_pays(trial: Trial, channels_last: bool, *, demanded: bool) -> tuple[bool, str]:
    plain = step_seconds(trial, channels_last=channels_last)
    left = trial.seconds_left(plain)
    price = COMPILE_S_PER_LAYER * sum(1 for m in trial.net.modules() if [*m.parameters(recurse=False)])
    if not demanded and _MOST_GAINED * left < price:
        return False, (
            f"not compiled, which would take about {price:.0f} s and cannot gain that back in the {left:.0f} s left "
            f"({1000 * plain:.0f} ms a step)"
        )
    begun = perf_counter()
    start_compiler(trial.net)
    try:
        compiled = step_seconds(trial, channels_last=channels_last)
    except (RuntimeError, NotImplementedError) as error:  # whatever the compiler raises is one of these
        trial.net._compiled_call_impl = None
        reason = " ".join(str(error).split("\n", 1)[0].split())
        if demanded:
            raise UsageError(f"the network cannot be compiled ({reason})", "Leave model.compile at false") from error
        return False, f"not compiled, which failed ({reason})"
    took = perf_counter() - begun
    figures = f"{1000 * compiled:.0f} ms a step instead of {1000 * plain:.0f} ms, after {took:.0f} s of compiling"
    if demanded or compiled < _WORTH_IT * plain:
        return True, f"compiled, {figures}"
    trial.net._compiled_call_impl = None
    return False, f"not compiled: {figures} is not worth it"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
