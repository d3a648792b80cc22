"""What torch and Lightning throw at a user, as the one sentence that says what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import nn

from medseg.errors import CheckpointError, MedsegError, UsageError
from medseg.nets import estimate
from medseg.plan.plan import Plan
from medseg.segmenter import net_spec
from medseg.training.lightning import while_restoring
from medseg.training.peers import ExplainingLauncher


class MemoryShortError(MedsegError):
    """A step does not fit into memory; proposes numbers that need so many times less, half if that is not known.

    Args:
        where: Whose memory.
        plan: Of the run.
        needed: Bytes of a step.
        of: Bytes that there are.
    """

    def __init__(self, where: str, plan: Plan, *, needed: int = 2, of: int = 1) -> None:
        sizes = " x ".join(map(str, plan.patch_size))
        told = f" ({needed / 1e9:.0f} GB or more of {of / 1e9:.0f})" if of > 1 else ""
        super().__init__(
            f"{plan.batch_size} patches of {sizes} voxels do not fit into the memory of the {where}{told}. "
            f"Try {' or '.join(_smaller(plan, -(-needed // of)))}."
        )


class LostProcessError(MedsegError):
    """Another process of this training died."""

    def __init__(self, dead: str = "") -> None:
        super().__init__(
            dead
            or "another process of this training has ended, see its own message; this one cannot go on alone. "
            "Start all of them again with --ckpt_path last."
        )


_GPUS = ("gpu", "cuda", "mps", "tpu")
_WRITTEN = (ValueError, RuntimeError, MisconfigurationException)
_SPEAK_FOR_THEMSELVES = ("medseg", "pytorch_lightning", "lightning_fabric")  # what they raise is written for users
_LEAST = 0.35  # of the estimate: 0.7 was the least measured in float32, and 16 bits halve the activations
_MOURNING_S = 3.0  # a connection breaks before the system tells of what its process died

_OF_A_CHECKPOINT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What those raise to whom a checkpoint gives something else than they had kept."""

_LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket (Timeout|closed)|Timed out waiting|recvValue failed|"
    r"NCCL.*(remote|peer|abort|timed? ?out)|store->get|ProcessGroup.*(abort|timeout)|heartbeat",
    re.IGNORECASE,
)


def explained(error: BaseException, plan: Plan, *, obituary: Callable[..., str] | None = None) -> MedsegError | None:
    """The sentence for a failure that has one, or None.

    Args:
        error: What was raised while training.
        plan: Of the run, for the numbers in the sentence.
        obituary: Says who died, where this process knows; `medseg.training.peers.ExplainingLauncher.obituary`.
    """
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return MemoryShortError("GPU", plan)
    if "DefaultCPUAllocator" in text or isinstance(error, MemoryError):
        return MemoryShortError("machine", plan)
    if "loading state_dict" in text:
        return CheckpointError(
            "--ckpt_path",
            f"holds another network ({_first_mismatch(text)})",
            "Go on with the net and net_options of its config.yaml, or give it as --model.init_from to start from it",
        )
    if "parameter group" in text and "size of" in text:
        return CheckpointError(
            "--ckpt_path",
            "was trained with other weights frozen than model.freeze says",
            "Keep model.freeze as it was, or start from its weights with --model.init_from",
        )
    if while_restoring(error):
        told = " ".join(f"{type(error).__name__}: {text}".split())
        remedy = "Go on from another one, or start from its weights with --model.init_from"
        return CheckpointError("--ckpt_path", f"holds something that a training cannot go on from ({told})", remedy)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = " ".join(text.split("\n", 1)[0].split())
        return UsageError(f"the network cannot be compiled ({reason})", "Leave model.compile at false")
    if (
        isinstance(error, ValueError | RuntimeError | MisconfigurationException)
        and _raised_in(error).split(".")[0] in _SPEAK_FOR_THEMSELVES
    ):
        return UsageError(" ".join(text.split()).rstrip(".?"), "Correct the config")
    if isinstance(error, ValueError | RuntimeError) and _raised_in(error).startswith("torch.optim"):
        return UsageError(f"the optimizer cannot train this network ({' '.join(text.split())})", "Choose another one")
    if isinstance(error, RuntimeError | ConnectionError) and _LOST.search(text):
        return LostProcessError(obituary(patience_s=_MOURNING_S) if obituary else "")
    return None


@contextmanager
def in_sentences(trainer: Trainer, plan: Plan) -> Iterator[None]:
    """Raise what `explained` makes of a failure in place of it, where that is a sentence."""
    try:
        yield
    except (*_OF_A_CHECKPOINT, MemoryError, ConnectionError, MisconfigurationException) as error:
        launcher = trainer.strategy.launcher
        started = launcher if isinstance(launcher, ExplainingLauncher) else None
        sentence = explained(error, plan, obituary=started.obituary if started else None)
        if sentence is None:
            raise
        raise sentence from error


def unusable_device(error: BaseException, options: Mapping[str, Any]) -> UsageError:
    """The sentence for a trainer that cannot be built, most often for want of a GPU.

    Args:
        error: What Lightning raised.
        options: Those that it was to have.
    """
    said = " ".join(str(error).split()).rstrip(".!")
    accelerator = options.get("accelerator", "auto")
    if accelerator in _GPUS and not torch.cuda.is_available() and accelerator != "mps":
        return UsageError(
            f"trainer.accelerator {accelerator}: PyTorch finds no such GPU on this machine",
            "Take --trainer.accelerator cpu or auto, or install the PyTorch that is built for this GPU",
        )
    if "requested gpu" in said or "devices" in said:
        return UsageError(
            f"trainer.devices {options.get('devices')} on {accelerator}: {said}",
            "Give a number of devices that this machine has, or --trainer.devices auto",
        )
    return UsageError(said, "Correct the options of the trainer")


def _raised_in(error: BaseException) -> str:
    """The module whose code raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def require_memory(net: nn.Module, plan: Plan, available: int) -> None:
    """Refuse a step on the CPU that cannot fit: the system would end the process, and nobody could say why.

    Args:
        net: A network of the table.
        plan: Of the run.
        available: Bytes of memory; 0 if nobody knows.

    Raises:
        MemoryShortError: Even the least that such a network was seen to take of its estimate is more than there is.
    """
    needed = int(_LEAST * estimate(net, net_spec(plan), batch_size=plan.batch_size).training_bytes)
    if available and needed > available:
        raise MemoryShortError("machine", plan, needed=needed, of=available)


def _smaller(plan: Plan, times: int) -> list[str]:
    """Options that need so many times less memory; a patch keeps to what the strides of the network divide."""
    found = []
    if plan.batch_size >= times:
        less = plan.batch_size // times
        found.append(f"--data.batch_size {less} --trainer.accumulate_grad_batches {-(-plan.batch_size // less)}")
    steps = [1, 1, 1]
    for strides in plan.strides:
        steps = [step * stride for step, stride in zip(steps, strides, strict=True)]
    patch = list(plan.patch_size)
    while math.prod(patch) * times > math.prod(plan.patch_size) * 1.5:  # halves of odd multiples are a little larger
        axis = max(range(3), key=lambda number: patch[number] / steps[number])
        halved = patch[axis] // 2 // steps[axis] * steps[axis]
        if halved < steps[axis]:
            break
        patch[axis] = halved
    if tuple(patch) != plan.patch_size:
        found.append(f'--data.patch_size "{patch}"')
    return found or ["a smaller network with --model.net_options"]


def _first_mismatch(text: str) -> str:
    found = re.search(r"size mismatch for (\S+?):|(?:Missing|Unexpected) key\(s\) in state_dict: \"([^\"]+)\"", text)
    return f"{found.group(1) or found.group(2)} does not fit" if found else "its weights do not fit"
