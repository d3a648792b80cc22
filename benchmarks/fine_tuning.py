"""What a trained network is worth to few cases of other labels: fine-tuned beside from scratch, the same budget.

    python benchmarks/fine_tuning.py --dataset data/raw/Task04_Hippocampus --out build/tuning

A source is trained on 150 hippocampi of which only the whole is labelled. Then networks learn its two parts from 10
and from 20 other cases, from the source's weights and from scratch, for as many steps. All are judged on the same cases
that none has seen: mean Dice per part with a 95 % bootstrap interval, and of the paired difference.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np

from medseg.cli.main import main as medseg
from medseg.report.summary import bootstrap_means

PARTS = ("Anterior", "Posterior")
SOURCE = 150
FEW = (10, 20)


def main() -> None:
    """Train what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="a Decathlon folder of Task04")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="of the source and of each other training")
    parser.add_argument("--judged", type=int, default=30, help="cases that all are judged on")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cases = stores(options.dataset, options.out, SOURCE + max(FEW) + options.judged)
    judged = cases[-options.judged :]
    fit(options, "whole", "source", cases[:SOURCE], judged[:2], lr=2e-3)
    start = ("--model.init_from", str(options.out / "source" / "checkpoints" / "best.ckpt"))
    print("| cases | | " + " | ".join(PARTS) + " |\n|--:|---|--:|--:|")
    for few in FEW:
        train = cases[SOURCE : SOURCE + few]
        found = {}
        for name, further in (("from scratch", ()), ("fine-tuned", start)):
            run = f"{few} {name}".replace(" ", "_")
            fit(options, "parts", run, train, judged, *further, lr=2e-3)
            found[name] = scores(options.out / run / "test" / "cases.csv")
        found["difference"] = found["fine-tuned"] - found["from scratch"]
        for name, values in found.items():
            print(f"| {few} | {name} | " + " | ".join(told(values[:, [part]]) for part in range(len(PARTS))) + " |")


def stores(dataset: Path, out: Path, count: int) -> list[str]:
    """Two stores of the same cases: the hippocampus whole, and its parts."""
    described = json.loads((dataset / "dataset.json").read_text())
    entries = described["training"][:count]
    for name, labels in (("whole", {"Hippocampus": [1, 2]}), ("parts", {"Anterior": 1, "Posterior": 2})):
        folder = out / f"{name}_dataset"
        folder.mkdir(exist_ok=True)
        for part in ("imagesTr", "labelsTr"):
            if not (folder / part).exists():
                (folder / part).symlink_to((dataset / part).resolve())
        content = described | {"training": entries, "numTraining": len(entries), "labels": {"background": 0, **labels}}
        (folder / "dataset.json").write_text(json.dumps(content))
        if not (out / name / "index.json").is_file():
            require(medseg(["prepare", str(folder), "--out", str(out / name), "--workers", "1"]))
    return [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in entries]


def fit(
    options: argparse.Namespace, store: str, run: str, train: list[str], judged: list[str], *further: str, lr: float
) -> None:
    """One training, and its test."""
    folder = options.out / run
    if (folder / "test" / "cases.csv").is_file():
        return
    split = options.out / f"{run}.json"
    split.write_text(json.dumps([{"train": train, "val": judged}]))
    data = ["--data.store", str(options.out / store), "--data.split", str(split), "--data.fold", "0"]
    data += ["--data.augmentation", "moderate", "--data.workers", "0", "--data.batch_size", "2"]
    network = [
        "--model.net_options",
        "{features: [8, 16, 32, 48]}",
        "--model.optimizer",
        "adamw",
        "--model.ema",
        "0.98",
    ]
    rate = ["--model.lr", str(lr), "--model.schedule", "cosine", "--model.warmup", "0.05"]
    trainer = ["--trainer.max_steps", str(options.steps), "--trainer.gradient_clip_val", "1.0"]
    trainer += ["--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0"]
    require(medseg(["fit", *data, *network, *rate, *trainer, "--run", str(folder), *further]))
    require(medseg(["test", "--run", str(folder), "--trainer.enable_progress_bar", "false"]))


def scores(path: Path) -> np.ndarray:
    """Dice per case and part, the cases sorted."""
    with path.open(encoding="utf-8") as file:
        rows = {(row["case"], row["organ"]): float(row["dice"]) for row in csv.DictReader(file)}
    return np.array([[rows[case, part] for part in PARTS] for case in sorted({case for case, _ in rows})])


def told(values: np.ndarray) -> str:
    """The mean, and the interval that it lies in."""
    low, high = np.nanpercentile(bootstrap_means(values), (2.5, 97.5))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def require(status: int) -> None:
    """End where a command failed."""
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
