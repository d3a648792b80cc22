"""Processor time per case of every command, for few cases and for many: whether a command costs the same per case.

    python benchmarks/many_cases.py
    python benchmarks/many_cases.py --cases 100 400 --work /scratch/many

The cases are tiny (16 x 16 x 8 voxels, NIfTI), so that what is not their voxels shows: lists, manifests, tasks for
workers, indices. Each command is a fork, with one worker, of a process that has imported what they all need. What it
takes for four cases is taken off: the columns hold milliseconds of processor time per further case, of all its
processes. The last column is the time per case of the largest dataset over that of the smallest; a command that is
linear stays near 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib
import numpy as np

import medseg.cli.training  # before the forks: a command imports what it needs
import medseg.inference.choose
import medseg.report.html
import medseg.verify.repair  # noqa: F401
from medseg.cli import main as main_of_medseg

SHAPE = (16, 16, 8)
FEW = 4


def write_cases(root: Path, count: int) -> Path:
    """A plain dataset: a bright block in noise, differently noisy in every case."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:11, 5:12, 2:6] = 1
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 10, SHAPE)
        for folder, voxels in (("images", (100 * labels + noise).astype(np.int16)), ("labels", labels)):
            path = root / folder / f"case_{number:05d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    (root / "dataset.json").write_text(json.dumps({"modality": ["MR"], "labels": {"block": 1}}))
    names = [f"case_{number:05d}" for number in range(count)]
    (root / "splits.json").write_text(json.dumps([{"train": names[::2], "val": names[1::2]}]))
    return root


def commands(root: Path, work: Path) -> dict[str, list[str]]:
    """What is measured, in an order in which each finds what it needs."""
    store, run, predictions = work / "store", work / "run", work / "predictions"
    quick = "--trainer.accelerator cpu --trainer.limit_val_batches 1 --data.augmentation none"
    fit = f"fit --data.store {store} --data.workers 0 {quick}"
    predict = f"predict --ckpt {run} --input {root / 'images'} --output {predictions} --device cpu"
    lines = {
        "verify": f"verify {root} --json {work / 'problems.json'} --workers 1",
        "verify --fix": f"verify {root} --fix {work / 'fixed'} --workers 1",
        "plan": f"plan {root} --out {work / 'plan.yaml'} --workers 1",
        "prepare": f"prepare {root} --out {store} --workers 1",
        "prepare, again": f"prepare {root} --out {store} --workers 1",
        "fit, one step": f"{fit} --data.folds 2 --run {run} --trainer.max_steps 1",
        "fit, resumed": f"{fit} --data.folds 2 --run {run} --trainer.max_steps 2 --ckpt_path last",
        "fit, a split": f"{fit} --data.split {root / 'splits.json'} --run {work / 'split'} --trainer.max_steps 1",
        "test": f"test --run {run}",
        "predict": predict,
        "predict, again": predict,
        "evaluate": f"evaluate --predictions {predictions} --references {root} --output {work / 'scores'} --workers 1",
        "choose-cleaning": f"choose-cleaning --ckpt {run} --predictions {predictions} --references {root / 'labels'}",
        "compare-runs": f"compare-runs {run / 'test'} {work / 'scores'}",
        "info": f"info {root}",
        "info, store": f"info {store}",
    }
    return {name: line.split() for name, line in lines.items()}


def seconds(words: list[str]) -> float:
    """Processor time of a command and of its children."""
    with tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if child == 0:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            os._exit(main_of_medseg(words))
        _, status, used = os.wait4(child, 0)
        told.seek(0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"medseg {' '.join(words)} ended with {status}:\n{told.read()[-2000:]}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, nargs="+", default=[400, 4000])
    parser.add_argument("--work", type=Path, help="folder for the datasets (default: a temporary one)")
    parser.add_argument("--only", nargs="+", help="names of the commands to measure; they must find what they need")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found: dict[str, list[float]] = {}
        for count in (FEW, *options.cases):
            root = write_cases(work / str(count) / "data", count)
            for name, words in commands(root, work / str(count)).items():
                if options.only and name not in options.only:
                    continue
                spent = seconds(words)
                found.setdefault(name, []).append(spent)
                sys.stderr.write(f"{count} cases, {name}: {spent:.1f} s\n")
    print("| command | " + " | ".join(f"{count} cases, ms each" for count in options.cases) + " | ratio |")
    print("|---|" + "--:|" * (len(options.cases) + 1))
    for name, (start, *spent) in found.items():
        times = [1000 * (one - start) / (count - FEW) for one, count in zip(spent, options.cases, strict=True)]
        print(f"| `{name}` | " + " | ".join(f"{time:.1f}" for time in times) + f" | {times[-1] / times[0]:.2f} |")


if __name__ == "__main__":
    main()
