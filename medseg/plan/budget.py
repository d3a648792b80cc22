"""A plan for a budget of time: of the networks and patches that memory allows, the largest that can still learn.

Memory says how large a step may be, time how many there will be. A network of 30 million weights that makes 44 steps
has learnt little (the left atrium on two cores: 0.585 Dice after 22 minutes); a quarter of it, on a quarter of the
patch, reaches 0.794 in 14 minutes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from time import perf_counter

from medseg.plan.topology import FIRST_FEATURES, Topology, topology_for

ENOUGH_STEPS = 800
"""What a budget should hold: on the hippocampus, in the time of 706 steps, networks and patches of which it held 316 or
1,000 were worse (benchmarks/RESULTS.md, "A recipe for minutes")."""

FEWEST_STEPS = 500
"""With fewer a network has learnt little."""

RECIPE: dict[str, str | float] = {
    "model.optimizer": "muon",
    "model.lr": 0.004,
    "model.schedule": "cosine",
    "model.warmup": 0.02,
    "model.ema": 0.99,
    "trainer.gradient_clip_val": 1.0,
}
"""What a training of few steps is best told; as in ``configs/minutes.yaml``."""

TRAINING_SHARE = 0.8  # of the minutes; reading, validation and checkpoints take the rest
SMALLEST_BATCH = 2
_SHRINKING = (
    *((16, 64, 1.0), (16, 48, 1.0), (16, 48, 0.8), (16, 32, 0.8), (16, 32, 0.63)),
    *((16, 32, 0.56), (16, 32, 0.5), (8, 16, 0.63), (8, 16, 0.56), (8, 16, 0.5), (8, 16, 0.4)),
)
"""Features of the first and the second stage and the share of each edge of the patch: from the next to largest to the
smallest, in steps of about a factor of two, so that what is chosen uses nearly half of the time or more; patches that
strides divide into few sizes, small or of thick slices, have steps of up to five. The first stage, at full resolution,
has half of the multiplications: it is halved before all else."""
_ROUNDS = 2  # of timed steps, after one that warms up
_SMALLEST_EDGE = 16

Timing = Callable[[Topology, int], float]
"""Topology and batch -> seconds of a training step."""


@dataclass(frozen=True)
class Budget:
    """So much time on this machine.

    Attributes:
        minutes: Of the whole training.
        seconds_of: Measures a training step.
        machine: What it is measured on, in words.
    """

    minutes: float
    seconds_of: Timing
    machine: str

    @property
    def clock(self) -> str:
        """As days:hours:minutes:seconds.

        Example:
            >>> Budget(90.5, lambda topology, batch: 1.0, "a test").clock
            '00:01:30:30'
        """
        seconds, parts = round(60 * self.minutes), []
        for size in (86_400, 3_600, 60, 1):
            parts.append(seconds // size)
            seconds %= size
        return ":".join(f"{part:02d}" for part in parts)

    @property
    def seconds(self) -> float:
        """What one step may take."""
        return self.minutes * 60 * TRAINING_SHARE / ENOUGH_STEPS


@dataclass(frozen=True)
class Affordable:
    """What was chosen for a budget, and what that is expected to give.

    Attributes:
        topology: Network and patch.
        batch: Patches per step.
        steps: How many steps the budget holds.
        reason: Why, in a sentence.
    """

    topology: Topology
    batch: int
    steps: int
    reason: str


def within(
    budget: Budget, topology: Topology, batch: int, spacing_mm: tuple[float, float, float], classes: int = 2
) -> Affordable:
    """The largest of some networks, patches and batches of which the budget holds `ENOUGH_STEPS` steps.

    They stand in a fixed order: fewer patches first, then fewer features, then smaller patches. The cheapest is timed;
    what a larger one takes is estimated from the multiplications of the largest that was timed and fits, and it is
    timed in turn, until the next larger one does not fit. A small network spends much of its time on other things than
    multiplying: by its pace alone all larger ones would seem too slow.

    Args:
        budget: Of time.
        topology: What memory allows.
        batch: Likewise.
        spacing_mm: Edge lengths of a voxel.
        classes: Background included; a first stage of fewer features than half of them tells them apart too late: of
            24, on one patch of 23 structures of the brain, cross-entropy fell from 4.7 to 2.6 in 40 steps with 8
            features, and from 3.7 to 0.8 with 16.
    """
    candidates = list(ladder(topology, batch, spacing_mm, classes))
    seconds_of = cache(budget.seconds_of)
    fits = len(candidates) - 1
    slow = -1 if seconds_of(*candidates[fits]) <= budget.seconds else fits - 1  # the smallest that does not fit
    while slow < fits - 1:
        rate = seconds_of(*candidates[fits]) / work(*candidates[fits])
        promising = (at for at in range(slow + 1, fits) if rate * work(*candidates[at]) <= budget.seconds)
        trial = next(promising, fits - 1)
        if seconds_of(*candidates[trial]) <= budget.seconds:
            fits = trial
        else:
            slow = trial
    chosen = candidates[fits]
    taken = seconds_of(*chosen)
    steps = int(budget.minutes * 60 * TRAINING_SHARE / taken)
    told = f"A step takes {taken:.2g} s here ({budget.machine}), so {budget.minutes:g} minutes hold about {steps} steps"
    if steps < FEWEST_STEPS:
        told += f"; with fewer than {FEWEST_STEPS} a network has learnt little, and nothing smaller is tried"
    if chosen != candidates[0]:
        told += ". What memory alone allows would be "
        told += f"{' x '.join(map(str, topology.patch_size))} voxels, {batch} at a time, from {FIRST_FEATURES} features"
    return Affordable(*chosen, steps, told + ".")


def ladder(
    topology: Topology, batch: int, spacing_mm: tuple[float, float, float], classes: int
) -> Iterator[tuple[Topology, int]]:
    """What `within` chooses from, the largest first; its arguments are those of that."""
    yield topology, batch
    while batch > SMALLEST_BATCH:
        batch = max(SMALLEST_BATCH, batch // 2)
        yield topology, batch
    for first, second, share in (rung for rung in _SHRINKING if rung[0] >= min(16, classes / 2)):
        edges = [edge if edge <= _SMALLEST_EDGE else max(_SMALLEST_EDGE, edge * share) for edge in topology.patch_size]
        smaller = topology_for([round(edge) for edge in edges], spacing_mm) if share < 1 else topology
        yield replace(smaller, first_features=first, second_features=second), batch


def work(topology: Topology, batch: int) -> int:
    """Multiplications of the convolutions of a forward pass, but for the first, the last and the transposed ones."""
    total, size, below = 0, topology.patch_size, 0
    stages = zip(topology.features, topology.strides, topology.kernels, strict=True)
    for stage, (features, stride, kernel) in enumerate(stages):
        size = (size[0] // stride[0], size[1] // stride[1], size[2] // stride[2])
        down = features * (below + features)
        up = 3 * features * features if stage < len(topology.strides) - 1 else 0
        total += prod(kernel) * prod(size) * (down + up)
        below = features
    return batch * total


def timing(channels: int, classes: int) -> tuple[Timing, str]:
    """A stop-watch for training steps of the `unet` on this machine, and what the machine is in words.

    A step is forward, Dice and cross-entropy, and backward, in the precision that training takes by itself.

    Args:
        channels: Modalities.
        classes: Background included.
    """
    import torch  # here: a plan without a budget needs none of it

    from medseg.losses import build_loss
    from medseg.machine.hardware import best_precision
    from medseg.nets import NetSpec, build_net, keep_short_ones_whole

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = best_precision()
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    loss = build_loss("dice + cross_entropy", mode="multiclass")

    def seconds_of(topology: Topology, batch: int) -> float:
        spec = NetSpec(channels, classes, topology.patch_size, topology.strides, topology.kernels, topology.features)
        layout = torch.channels_last_3d  # as in training
        net = build_net("unet", spec).to(device, memory_format=layout).train()  # type: ignore[call-overload]
        keep_short_ones_whole(net)
        image = torch.rand(batch, channels, *topology.patch_size, device=device).contiguous(memory_format=layout)
        labels = torch.randint(classes, (batch, *topology.patch_size), device=device)
        taken = []
        for _ in range(1 + _ROUNDS):
            began = perf_counter()
            with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                logits = net(image)
            loss(logits, labels).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(perf_counter() - began)
        return min(taken[1:])

    cores = torch.get_num_threads()
    return seconds_of, f"{torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {cores} threads'}, {precision}"
