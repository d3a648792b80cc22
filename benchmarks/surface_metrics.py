"""HD95 and surface Dice of one large CT with 13 organs: medseg beside MONAI, in one process, run alternately.

    python benchmarks/surface_metrics.py
    python benchmarks/surface_metrics.py --shape 256 256 150 --rounds 1

MONAI takes one-hot volumes; they are given as uint8, a quarter of the float32 that its transforms make, and building
them is not timed. medseg takes the label maps, and its time holds every measure of `OrganScores`, lesions and volumes
included. Seconds are of the wall clock and of all processors together; the second is fairer on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric
from scipy import ndimage

from medseg.metrics import score_case

# centre and half axes of each organ, as shares of the volume: two lungs, liver, spleen, stomach, two kidneys, aorta,
# spine, pancreas, gallbladder, bladder, oesophagus
ORGANS = (
    ((0.33, 0.45, 0.72), (0.14, 0.19, 0.24)),
    ((0.67, 0.45, 0.72), (0.13, 0.19, 0.24)),
    ((0.36, 0.42, 0.38), (0.17, 0.14, 0.12)),
    ((0.72, 0.58, 0.40), (0.06, 0.09, 0.10)),
    ((0.63, 0.38, 0.36), (0.09, 0.08, 0.09)),
    ((0.36, 0.66, 0.27), (0.06, 0.06, 0.11)),
    ((0.64, 0.66, 0.28), (0.06, 0.06, 0.11)),
    ((0.52, 0.57, 0.50), (0.025, 0.025, 0.40)),
    ((0.50, 0.68, 0.50), (0.05, 0.06, 0.48)),
    ((0.52, 0.48, 0.30), (0.09, 0.03, 0.05)),
    ((0.40, 0.33, 0.27), (0.03, 0.03, 0.05)),
    ((0.50, 0.40, 0.07), (0.08, 0.07, 0.06)),
    ((0.49, 0.57, 0.80), (0.02, 0.02, 0.18)),
)
SPACING_MM = (0.8, 0.8, 1.5)
TOLERANCE_MM = 2.0


def torso(shape: tuple[int, ...], *, seed: int, wobble: float) -> np.ndarray:
    """Paint 13 organs whose walls waver; two seeds give a reference and a plausible prediction."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(rng.normal(size=[size // 8 + 2 for size in shape]), 2.0)
    coarse *= wobble / coarse.std()
    waver = ndimage.zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=1).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    axes = np.ogrid[tuple(slice(0, size) for size in shape)]
    for value, (centre, half) in enumerate(ORGANS, start=1):
        parts = [((axis / size - c) / h) ** 2 for axis, size, c, h in zip(axes, shape, centre, half, strict=True)]
        labels[sum(part.astype(np.float32) for part in parts) + waver < 1] = value
    return labels


def one_hot(labels: np.ndarray) -> torch.Tensor:
    """Make the (1, 14, i, j, k) volume that MONAI's metrics take."""
    return torch.from_numpy(np.stack([labels == value for value in range(len(ORGANS) + 1)]).astype(np.uint8))[None]


@dataclass(frozen=True)
class Cost:
    """What one call took."""

    wall_s: float
    processor_s: float
    extra_gb: float


def measured(work: Callable[[], object]) -> tuple[object, Cost]:
    """Run and measure; the peak of memory is that of this call alone (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _gigabytes("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    cost = Cost(time.perf_counter() - wall, time.process_time() - processor, _gigabytes("VmHWM") - before)
    return result, Cost(*(round(value, 2) for value in astuple(cost)))


def _gigabytes(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1e6


def main() -> None:
    """Measure, compare the values, print everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    reference, prediction = (torso(tuple(options.shape), seed=seed, wobble=0.10) for seed in (1, 2))
    stacks = one_hot(prediction), one_hot(reference)
    organs = {f"organ {value}": value for value in range(1, len(ORGANS) + 1)}
    millimetres = {"spacing_mm": SPACING_MM, "tolerance_mm": TOLERANCE_MM, "workers": options.workers}
    hd95 = HausdorffDistanceMetric(include_background=False, percentile=95)
    nsd = SurfaceDiceMetric(class_thresholds=[TOLERANCE_MM] * len(ORGANS), include_background=False)
    contestants: dict[str, Callable[[], object]] = {
        "medseg": lambda: score_case(prediction, reference, organs, **millimetres),
        "HausdorffDistanceMetric": lambda: hd95(*stacks, spacing=list(SPACING_MM)),
        "SurfaceDiceMetric": lambda: nsd(*stacks, spacing=list(SPACING_MM)),
    }
    values: dict[str, object] = {}
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, work in contestants.items():
            values[name], cost = measured(work)
            costs[name].append(cost)
    print(json.dumps(report(options, costs, values), indent=1))


def report(options: argparse.Namespace, costs: dict[str, list[Cost]], values: dict[str, object]) -> dict[str, object]:
    """Say what was measured, and how far apart the values are."""
    scores = list(values["medseg"].values())
    found = {"HausdorffDistanceMetric": [s.hd95_mm for s in scores], "SurfaceDiceMetric": [s.nsd for s in scores]}
    ratio = {
        unit: round(sum(min(getattr(c, unit) for c in costs[name]) for name in found)
                    / min(getattr(c, unit) for c in costs["medseg"]), 1)
        for unit in ("wall_s", "processor_s")
    }  # fmt: skip
    return {
        "shape": list(options.shape),
        "workers": options.workers,
        "costs": {name: [asdict(cost) for cost in some] for name, some in costs.items()},
        "times_faster_than_both": ratio,
        "largest_difference": {
            name: float(np.abs(np.array(mine) - np.asarray(values[name])[0]).max()) for name, mine in found.items()
        },
        "dice": [round(score.dice, 3) for score in scores],
        "hd95_mm": [round(score.hd95_mm, 2) for score in scores],
    }


if __name__ == "__main__":
    main()
