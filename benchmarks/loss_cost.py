"""What a loss costs beside MONAI's: time and peak extra memory of forward and backward, for 3, 14 and 105 classes.

    python benchmarks/loss_cost.py                      # dice + cross_entropy at all class counts, every peer at 14
    python benchmarks/loss_cost.py --clock cpu          # on a machine that has other work
    python benchmarks/loss_cost.py --device cuda

Ours and theirs run alternately in one process for time (the best of several rounds each, of the wall clock or of the
processor time of all threads), and each in a process of its own for memory: the peak resident set above what logits,
labels and imports already hold, or on a GPU ``max_memory_allocated``. The gradient of the logits is part of both.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from medseg.losses import build_loss

SOFTMAX = {"softmax": True, "to_onehot_y": True}
PEERS: dict[str, tuple[str, str, dict]] = {
    "dice_ce": ("dice + cross_entropy", "DiceCELoss", SOFTMAX),
    "dice_ce_undrawn": ("dice + cross_entropy", "DiceCELoss", SOFTMAX),
    "dice": ("dice", "DiceLoss", SOFTMAX),
    "dice_squared": ("dice_squared", "DiceLoss", {**SOFTMAX, "squared_pred": True}),
    "jaccard": ("jaccard", "DiceLoss", {**SOFTMAX, "jaccard": True}),
    "tversky": ("tversky", "TverskyLoss", SOFTMAX),
    "generalized_dice": ("generalized_dice", "GeneralizedDiceLoss", SOFTMAX),
    "generalized_wasserstein_dice": ("generalized_wasserstein_dice", "GeneralizedWassersteinDiceLoss", {}),
    "mcc": ("mcc", "MCCLoss", SOFTMAX),
    "focal": ("focal", "FocalLoss", {"use_softmax": True, "to_onehot_y": True}),
    "dice_focal": ("dice_focal", "DiceFocalLoss", SOFTMAX),
    "generalized_dice_focal": ("generalized_dice_focal", "GeneralizedDiceFocalLoss", SOFTMAX),
    "nacl": ("nacl", "NACLLoss", {}),
    "boundary": ("boundary", "BoundaryLoss", {**SOFTMAX, "include_background": False}),
    "hausdorff_dt": ("hausdorff_dt", "HausdorffDTLoss", SOFTMAX),
    "log_hausdorff_dt": ("log_hausdorff_dt", "LogHausdorffDTLoss", SOFTMAX),
}
SLOW = ("boundary", "hausdorff_dt", "log_hausdorff_dt")
"""Distance transforms: measured at 3 classes and a small volume."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def build(side: str, name: str, classes: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Ours or MONAI's loss, taking logits (b, c, *s) and labels (b, 1, *s)."""
    expression, peer, options = PEERS[name]
    if side == "ours":
        loss = build_loss(expression)
        if name != "dice_ce_undrawn":
            return loss
        drawn = torch.arange(classes) % 2 == 0  # half of the organs were not annotated, which MONAI cannot be told
        return lambda logits, labels: loss(logits, labels, class_mask=drawn.expand(len(logits), -1))
    import monai.losses

    if peer == "GeneralizedWassersteinDiceLoss":
        options = {"dist_matrix": (1 - torch.eye(classes)).numpy()}
    if peer == "NACLLoss":
        loss = monai.losses.NACLLoss(classes=classes, dim=3)
        return lambda logits, labels: loss(logits, labels[:, 0])
    return getattr(monai.losses, peer)(**options)


def example(classes: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two volumes of random logits and labels."""
    torch.manual_seed(0)
    logits = torch.randn(2, classes, size, size, size, device=device)
    labels = torch.randint(0, classes, (2, 1, size, size, size), device=device)
    return logits, labels


def step(loss: Callable, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward."""
    loss(logits.detach().requires_grad_(), labels).backward()
    if logits.is_cuda:
        torch.cuda.synchronize()


def seconds(name: str, classes: int, size: int, device: str, rounds: int, clock: str) -> dict[str, float]:
    """The best time of each side over alternating rounds."""
    logits, labels = example(classes, size, device)
    sides = {side: build(side, name, classes) for side in ("ours", "theirs")}
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for side, loss in sides.items():
            start = CLOCKS[clock]()
            step(loss, logits, labels)
            best[side] = min(best[side], CLOCKS[clock]() - start)
    return best


def extra_bytes(side: str, name: str, classes: int, size: int, device: str) -> int:
    """Peak memory above logits and labels; to be called in a process of its own."""
    logits, labels = example(classes, size, device)
    loss = build(side, name, classes)
    step(loss, *example(classes, 16, device))  # load the code first
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, logits, labels)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that the imports reached
    before = resident("VmRSS")
    step(loss, logits, labels)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def in_a_process(*arguments: str) -> int:
    """Measure memory in a fresh interpreter."""
    command = [sys.executable, __file__, "--memory-of", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def row(name: str, classes: int, size: int, device: str, rounds: int, clock: str) -> str:
    """One line of the table."""
    times = seconds(name, classes, size, device, rounds, clock)
    memory = {s: in_a_process(s, name, str(classes), str(size), device) for s in ("ours", "theirs")}
    logits = 2 * classes * size**3 * 4
    cells = [
        f"`{name}`",
        f"2x{classes}x{size}³",
        *(f"{times[s] * 1e3:.0f}" for s in ("ours", "theirs")),
        f"{times['ours'] / times['theirs']:.2f}",
        *(f"{memory[s] / 2**20:.0f}" for s in ("ours", "theirs")),
        f"{memory['ours'] / memory['theirs']:.2f}",
        f"{memory['ours'] / logits:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--losses", nargs="*", default=list(PEERS))
    parser.add_argument("--classes", nargs="*", type=int, default=[3, 14, 105])
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        side, name, classes, size, device = options.memory_of
        print(extra_bytes(side, name, int(classes), int(size), device))
        return
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| loss | logits | ours ms | MONAI ms | ratio | ours MiB | MONAI MiB | ratio | ours / logits |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in options.losses:
        counts = options.classes if name.startswith("dice_ce") else [3 if name in SLOW else 14]
        for classes in counts:
            size = min(options.size, 48) if name in SLOW else options.size
            print(row(name, classes, size, options.device, options.rounds, options.clock), flush=True)


if __name__ == "__main__":
    main()
