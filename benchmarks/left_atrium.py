r"""The left atrium of 2018 from few labelled cases: a plain supervised training within a time that it is planned for.

    git clone --depth 1 https://github.com/yulequan/UA-MT && pip install h5py
    python benchmarks/left_atrium.py --source UA-MT/data --out build/atrium --labelled 16 --minutes 60

The repository holds the 100 cropped, normalised MRI of the challenge (Xiong et al. 2021, Medical Image Analysis 67) and
the split of 80 and 20 that the semi-supervised literature uses, of whose 80 it takes the first as labelled. They are
written as NIfTI at the challenge's 0.625 mm; `medseg plan --minutes` chooses the network, the patch and the batch, the
rest is of configs/minutes.yaml, and the last labelled case is held back for validation. Prints the mean Dice, Jaccard
and 95 % Hausdorff distance of the 20 test cases, the first with its 95 % bootstrap interval: as the network gives them,
and cleaned as `medseg choose-cleaning` decides by the case that was held back. None of it may be passed on: the data's
terms are the challenge's.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from many_datasets import run

from medseg.report.summary import bootstrap_means

SPACING_MM = 0.625
CONFIG = Path(__file__).parents[1] / "configs" / "minutes.yaml"
VOLUMES = "2018LA_Seg_Training Set"
LAST = Path("run", "checkpoints", "last.ckpt")


def main() -> None:
    """Write what is not there yet, train, score, and print a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the folder data/ of the repository")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=16, help="training cases: 8, 16 and 80 are published")
    parser.add_argument("--minutes", type=int, default=60)
    options, further = parser.parse_known_args()  # what is left is for medseg fit
    names = {part: (options.source / f"{part}.list").read_text().split() for part in ("train", "test")}
    training = write(options.source, options.out / f"labelled_{options.labelled}", names["train"][: options.labelled])
    judged = write(options.source, options.out / "judged", names["test"])
    labelled = names["train"][: options.labelled]
    place = options.out / f"{options.labelled}_cases_{options.minutes}_minutes"
    fold = {"train": labelled[:-1], "val": labelled[-1:]}
    rows = {"as it is": train(training, judged, place, options.minutes, fold, further)}
    rows["cleaned"] = clean(training, judged, place, fold["val"][0])
    print("| predictions | cases | Dice | Jaccard | HD95, voxels |\n|---|--:|--:|--:|--:|")
    for name, path in rows.items():
        tell(name, path)


def train(
    training: Path,
    judged: Path,
    place: Path,
    minutes: int,
    fold: dict[str, list[str]],
    further: Sequence[str],
    planned: Sequence[str] = (),
) -> Path:
    """Plan, prepare, train within the minutes, predict, and score in ``place``: a row per case and organ."""
    plan, store = place / "plan.yaml", place / "store"
    place.mkdir(parents=True, exist_ok=True)
    if not plan.is_file():
        run(["plan", str(training), "--minutes", str(minutes), *planned, "--out", str(plan)])
    run(["prepare", str(training), "--plan", str(plan), "--out", str(store)])
    split = place / "split.json"
    split.write_text(json.dumps([fold]))
    limit = ["--trainer.max_time", f"00:{minutes // 60:02d}:{minutes % 60:02d}:00"]
    data = ["--data.store", str(store), "--data.split", str(split), "--run", str(place / "run")]
    run(["fit", "--config", str(CONFIG), *data, *limit, *further])
    return score(place / LAST, judged, place / "scores")


def clean(training: Path, judged: Path, place: Path, held_back: str) -> Path:
    """Decide by a case that was not trained on what is cleaned, and score again."""
    checkpoint, seen = place / "cleaned.ckpt", place / "held_back"
    shutil.copyfile(place / LAST, checkpoint)
    image = training / "images" / f"{held_back}.nii.gz"
    run(["predict", "--ckpt", str(checkpoint), "--input", str(image), "--output", str(seen)])
    run(["choose-cleaning", "--ckpt", str(checkpoint), "--predictions", str(seen), "--references", str(training)])
    return score(checkpoint, judged, place / "cleaned")


def score(checkpoint: Path, judged: Path, out: Path) -> Path:
    """Predict the judged cases and score them: a row per case and organ."""
    predicted = out / "predicted"
    run(["predict", "--ckpt", str(checkpoint), "--input", str(judged), "--all", "--output", str(predicted)])
    run(["evaluate", "--predictions", str(predicted), "--references", str(judged), "--output", str(out)])
    return out / "cases.csv"


def write(source: Path, folder: Path, names: list[str]) -> Path:
    """A dataset of the named cases, as NIfTI."""
    import h5py

    for name in names:
        with h5py.File(source / VOLUMES / name / "mri_norm2.h5") as file:
            for part, key in (("images", "image"), ("labels", "label")):
                path = folder / part / f"{name}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_file():
                    nib.save(nib.Nifti1Image(file[key][()], np.diag([SPACING_MM] * 3 + [1.0])), path)
    described = {"modality": ["MR"], "labels": {"left_atrium": 1}, "image_folder": "images", "label_folder": "labels"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def tell(name: str, path: Path) -> None:
    """What the literature reports, from a row per case."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    dice = np.array([float(row["dice"]) for row in rows])
    low, high = np.percentile(bootstrap_means(dice[:, None]), (2.5, 97.5))
    jaccard = np.mean(dice / (2 - dice))
    voxels = np.mean([float(row["hd95_mm"]) for row in rows]) / SPACING_MM
    print(f"| {name} | {len(rows)} | {dice.mean():.4f} ({low:.4f}-{high:.4f}) | {jaccard:.4f} | {voxels:.2f} |")


if __name__ == "__main__":
    main()
