"""Distance-based losses on a training patch, forward and backward: medseg beside MONAI in one process, alternately.

    python benchmarks/boundary_cost.py
    python benchmarks/boundary_cost.py --side 64 --classes 3 --rounds 1

The prediction is the target blurred and shifted, with stray specks, as networks make them half way through training.
Seconds are of the wall clock and of all processors together; the second is fairer on a busy machine and says nothing of
the threads. Medians over the rounds. Where both compute the same thing, their values are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import monai
import monai.losses as peers
import torch
from torch.nn.functional import avg_pool3d, one_hot

from medseg.losses import build_loss

Evaluate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Contest:
    """One loss of ours and, where there is one, its peer."""

    name: str
    ours: Evaluate
    theirs: Evaluate | None
    same: bool = True
    most_classes: int = 1000


def patch(classes: int, side: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples of ellipsoids of every class, and logits that know them roughly."""
    random = torch.Generator().manual_seed(seed)
    axes = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 3, indexing="ij"))
    labels = torch.zeros(2, side, side, side, dtype=torch.long)
    for sample in labels:
        for c in range(1, classes):
            centre = (0.15 + 0.7 * torch.rand(3, generator=random)) * side
            radii = (0.04 + 0.14 * torch.rand(3, generator=random)) * side
            sample[(((axes - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1] = c
    truth = one_hot(labels, classes).movedim(-1, 1).float()
    noise = avg_pool3d(torch.randn(truth.shape, generator=random), 3, 1, 1)
    logits = 6 * avg_pool3d(truth, 5, 1, 2).roll(1, 2) + 3 * noise
    logits[:, 0] += 1
    return logits, labels


def contests() -> list[Contest]:
    """What is compared."""
    options = {"softmax": True, "to_onehot_y": True, "include_background": False}

    def ours(expression: str) -> Evaluate:
        return build_loss(expression)

    def theirs(name: str, **more: float) -> Evaluate | None:
        peer = getattr(peers, name, None)
        if peer is None:
            return None
        loss = peer(**options, **more)
        return lambda logits, labels: loss(logits, labels[:, None])

    return [
        Contest("hausdorff_dt", ours("hausdorff_dt"), theirs("HausdorffDTLoss")),
        Contest("hausdorff_dt(one_sided=True)", ours("hausdorff_dt(one_sided=True)"), None),
        Contest("boundary", ours("boundary"), theirs("BoundaryLoss")),
        Contest("cldice", ours("cldice"), theirs("SoftclDiceLoss", iter_=3), same=False, most_classes=3),
        Contest("distance_penalized_ce", ours("distance_penalized_ce"), None),
        Contest("skeleton_recall", ours("skeleton_recall"), None),
        Contest("blob", ours("blob"), None),
    ]


def once(evaluate: Evaluate, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Value, seconds of the wall clock and of all processors, forward and backward."""
    leaf = logits.clone().requires_grad_()
    wall, cpu = time.perf_counter(), time.process_time()
    value = evaluate(leaf, labels)
    value.backward()
    return value.item(), time.perf_counter() - wall, time.process_time() - cpu


def contend(contest: Contest, logits: torch.Tensor, labels: torch.Tensor, rounds: int) -> str:
    """Run both alternately and make a row of the table."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(once(contest.ours, logits, labels))
        if contest.theirs is not None:
            theirs.append(once(contest.theirs, logits, labels))
    if theirs and contest.same and abs(ours[0][0] - theirs[0][0]) > 1e-4 * abs(theirs[0][0]):
        raise SystemExit(f"{contest.name}: {ours[0][0]} is not MONAI's {theirs[0][0]}")
    mine = [median(column) for column in list(zip(*ours, strict=True))[1:]]
    cells = [f"`{contest.name}`", str(logits.shape[1]), *(f"{seconds:.2f}" for seconds in mine)]
    if theirs:
        other = [median(column) for column in list(zip(*theirs, strict=True))[1:]]
        cells += [f"{seconds:.2f}" for seconds in other]
        cells += [f"{their / our:.1f}" for their, our in zip(other, mine, strict=True)]
    else:
        cells += ["–"] * 4
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--classes", type=int, nargs="+", default=[3, 14])
    options.add_argument("--side", type=int, default=96)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    print(f"torch {torch.__version__}, MONAI {monai.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"patch (2, C, {chosen.side}, {chosen.side}, {chosen.side})\n")
    print("| loss | C | wall s | cpu s | MONAI wall s | MONAI cpu s | wall ratio | cpu ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for classes in chosen.classes:
        logits, labels = patch(classes, chosen.side)
        for contest in (entry for entry in contests() if classes <= entry.most_classes):
            print(contend(contest, logits, labels, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()
