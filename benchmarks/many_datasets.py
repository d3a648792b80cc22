r"""What a merge is worth: one network on several sets in which different organs were drawn, beside what else there is.

    python benchmarks/many_datasets.py --out build/many --dataset data/raw/Task04_Hippocampus \
        --data.batch_size 4 --data.patch_size '[32,40,32]'
    python benchmarks/many_datasets.py --out build/phantom --phantom

The hippocampus is parted into two hospitals, of which one drew the anterior and the other the posterior part; the
phantom into three sets whose organs overlap. Three ways are judged on cases that none has seen, all organs drawn: a
network on the merged sets, one on the same cases with everything drawn (which nobody has), and a network for each set.
No label is copied or changed: each hospital's ``dataset.json`` names the organs that it drew and calls all other values
background. Prints Dice per organ.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.cli.main import main as medseg
from medseg.phantom.phantom import write_phantom
from medseg.report.summary import bootstrap_means

HOSPITALS = {"north": ("Anterior",), "south": ("Posterior",)}
PHANTOM = {
    "first": ("liver", "spleen"),
    "second": ("spleen", "kidney_right", "kidney_left"),
    "third": ("liver", "kidney_left", "gallbladder"),
}
RECIPE = (
    *("--data.workers", "0", "--model.net_options", "{features: [8, 16, 32, 64]}", "--model.optimizer", "adamw"),
    *("--model.lr", "0.003", "--model.schedule", "cosine", "--model.warmup", "0.02", "--model.ema", "0.98"),
    *("--trainer.gradient_clip_val", "1.0", "--trainer.num_sanity_val_steps", "0"),
)
VALIDATED = 4  # training cases that a run validates on, once, at its end


def main() -> None:
    """Train what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="a Decathlon folder of Task04")
    parser.add_argument("--phantom", action="store_true", help="the phantom in place of a dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--judged", type=int, default=24, help="cases that all are judged on")
    options, options.further = parser.parse_known_args()  # what is left is for medseg fit
    sets = PHANTOM if options.phantom else HOSPITALS
    if options.phantom:
        options.dataset = write_phantom(options.out / "raw", 36 + options.judged, size=(48, 48, 32))
    described = json.loads((options.dataset / "dataset.json").read_text())
    judged = write(options, "judged", described, described["training"][-options.judged :])
    entries = described["training"][: -options.judged]
    everything = write(options, "full", described, entries)
    parts = {
        name: write(options, name, described, entries[index :: len(sets)], organs)
        for index, (name, organs) in enumerate(sets.items())
    }
    merged = options.out / "merged"
    run(["merge", *map(str, parts.values()), "--out", str(merged), "--accept", "nothing-shared", "--workers", "1"])
    balance = ("--data.balance", "organs") if options.phantom else ()
    found = {"everything drawn": train(options, everything, judged), "merged": train(options, merged, judged)}
    if balance:
        found["merged, balanced over organs"] = train(options, merged, judged, *balance)
    alone = {name: train(options, folder, judged) for name, folder in parts.items()}
    for organ in described["labels"].values():
        several = [one[organ] for one in alone.values() if organ in one]
        if several:
            found.setdefault("one network per set, best of those that drew it", {})[organ] = max(several, key=np.mean)
    tell(found)


def write(
    options: argparse.Namespace,
    name: str,
    described: Mapping[str, Any],
    entries: Sequence[Mapping[str, str]],
    organs: Sequence[str] = (),
) -> Path:
    """A dataset of some cases, with some organs drawn: a description, and nothing else."""
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("imagesTr", "labelsTr"):
        if not (folder / part).exists():
            (folder / part).symlink_to((options.dataset / part).resolve())
    labels = {organ: int(value) for value, organ in described["labels"].items() if organ in organs or not organs}
    content = {"name": name, "modality": described["modality"], "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content | {"others": "background"}))
    return folder


def train(options: argparse.Namespace, folder: Path, judged: Path, *further: str) -> dict[str, np.ndarray]:
    """Prepare, train, predict and score; per organ the Dice of every judged case."""
    name = "_".join([folder.name, *further[1:]])
    store, place, scores = (
        options.out / f"store_{folder.name}",
        options.out / f"run_{name}",
        options.out / f"scores_{name}",
    )
    if not (scores / "cases.csv").is_file():
        run(["prepare", str(folder), "--out", str(store), "--workers", "1"])
        cases = sorted(json.loads((store / "index.json").read_text())["cases"])
        held = cases[:: max(1, len(cases) // VALIDATED)][:VALIDATED]
        split = options.out / f"split_{name}.json"
        split.write_text(json.dumps([{"train": [case for case in cases if case not in held], "val": held}]))
        place_words = ["--data.store", str(store), "--data.split", str(split), "--run", str(place)]
        length = ["--data.steps_per_epoch", str(options.steps), "--trainer.max_steps", str(options.steps)]
        run(["fit", *place_words, *length, *RECIPE, *options.further, *further])
        predictions = options.out / f"predictions_{name}"
        checkpoint = str(place / "checkpoints" / "last.ckpt")
        run(["predict", "--ckpt", checkpoint, "--input", str(judged), "--all", "--output", str(predictions)])
        drawn = options.out / f"judged_{folder.name}"
        described = json.loads((judged / "dataset.json").read_text())
        if folder.name in (*HOSPITALS, *PHANTOM):  # scored by what its own description calls its values
            described["labels"] = json.loads((folder / "dataset.json").read_text())["labels"]
        drawn.mkdir(exist_ok=True)
        for part in ("imagesTr", "labelsTr"):
            if not (drawn / part).exists():
                (drawn / part).symlink_to((options.dataset / part).resolve())
        (drawn / "dataset.json").write_text(json.dumps(described))
        run(["evaluate", "--predictions", str(predictions), "--references", str(drawn), "--output", str(scores)])
    found: dict[str, list[float]] = {}
    with (scores / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["organ"], []).append(float(row["dice"]))
    return {organ: np.array(values) for organ, values in found.items()}


def tell(found: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Means with a 95 % bootstrap interval over cases, a row per way."""
    organs = list(dict.fromkeys(organ for way in found.values() for organ in way))
    print("| | " + " | ".join(organs) + " | mean |\n|---|" + "--:|" * (len(organs) + 1))
    for way, values in found.items():
        cells = []
        for organ in organs:
            low, high = np.percentile(bootstrap_means(values[organ][:, None]), (2.5, 97.5))
            cells.append(f"{values[organ].mean():.3f} ({low:.3f}-{high:.3f})")
        print(f"| {way} | {' | '.join(cells)} | {np.mean([values[organ].mean() for organ in organs]):.3f} |")


def run(words: list[str]) -> None:
    """A command of medseg, which must succeed."""
    status = medseg(words)
    if status:
        raise SystemExit(f"medseg {' '.join(words)} ended with {status}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
