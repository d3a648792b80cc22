"""Patches per second and core of the loader, beside what a GPU would need: how many workers that makes.

    python benchmarks/loader.py
    python benchmarks/loader.py --patch 64 --size 96 96 80 --batches 4

Batches of nnU-Net's plan (2 patches of 128^3, full augmentation) are cut from a compressed store of phantoms by this
process, on one core, as a worker does, and copied to shared memory, through which a worker hands them over.
Seconds are of the processor, so that other work on the machine does not count. What a GPU needs is an estimate: two
patches in a step of ``--step-ms``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from time import process_time

import torch
from lightning_utilities.core.apply_func import apply_to_collection

from medseg.losses import build_loss
from medseg.machine.hardware import usable_cores
from medseg.machine.threads import share_cores
from medseg.patches.datamodule import VolumesDataModule
from medseg.phantom.phantom import write_phantom
from medseg.store.prepare import prepare

WAYS = {"dice + cross_entropy": "augmented on the GPU", "dice_ce_skeleton_recall": "moved, and skeletons made, here"}


def data(folder: Path, options: argparse.Namespace, loss: str) -> VolumesDataModule:
    """The loader of a training with a loss."""
    made = VolumesDataModule(
        folder / "store",
        folds=2,
        batch_size=2,
        patch_size=(options.patch,) * 3,
        workers=0,
        augmentation="full",
        cache="disk",
        steps_per_epoch=options.batches + 1,
    )
    made.wishes = build_loss(loss, mode=made.plan.mode, ignore_index=-1).wishes(made.plan.num_classes)
    return made


def seconds(module: VolumesDataModule) -> tuple[list[float], list[float], float]:
    """Of each batch but the first, to cut it and to hand it over; and the MiB of a batch."""
    cut, handed, sizes = [], [], []
    batches = iter(module.train_dataloader())
    next(batches)
    while True:
        begun = process_time()
        if (batch := next(batches, None)) is None:
            return cut, handed, statistics.mean(sizes)
        read = process_time()
        parts: list[torch.Tensor] = []
        apply_to_collection(batch, torch.Tensor, parts.append)
        for part in parts:
            part.clone().share_memory_()
        cut.append(read - begun)
        handed.append(process_time() - read)
        sizes.append(sum(part.numel() * part.element_size() for part in parts) / 2**20)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(224, 224, 160))
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=50.0, help="of a GPU, an estimate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    share_cores(usable_cores())
    needed = 2 / (options.step_ms / 1000)
    print(f"| loss | the worker | cut, ms a batch | handed over, ms | MiB | patches/s and core | for {needed:.0f}/s |")
    print("|---|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom(folder / "data", 2, size=tuple(options.size))
        prepare(folder / "data", folder / "store", workers=1)
        for loss, told in WAYS.items():
            cut, handed, size = seconds(data(folder, options, loss))
            both = statistics.mean(cut) + statistics.mean(handed)
            print(
                f"| `{loss}` | {told} | {1000 * statistics.mean(cut):.0f} | {1000 * statistics.mean(handed):.0f} | "
                f"{size:.0f} | {2 / both:.1f} | {math.ceil(needed * both / 2)} workers |",
                flush=True,
            )


if __name__ == "__main__":
    main()
