r"""Twenty-three structures of the brain, the smallest of 0.4 ml, in twenty people: what a training within a time gives.

    git clone --depth 1 https://github.com/BBillot/SynthSeg
    python benchmarks/brain_structures.py --source SynthSeg/data --out build/brain --minutes 60

The repository (Billot et al. 2023, Medical Image Analysis 86, Apache-2.0) has label maps of twenty heads at 1 mm and no
images; these are made here, as it proposes: each tissue's intensity and noise are drawn about its published T1 priors,
then comes a smooth bias field and the blur of a scanner. The anatomy is real, the contrast is not, and a number from
here is no number for MRI. Sixteen heads train, the first of them held back for validation, four are judged;
`medseg plan --minutes` and configs/minutes.yaml choose everything else, sides mirrored with their names swapped.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import nibabel as nib
import numpy as np
from left_atrium import train
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

BOTH_SIDES = {
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "accumbens": (26, 58),
    "ventral_dc": (28, 60),
    "lateral_ventricle": (4, 43),
    "inferior_horn": (5, 44),
}
"""Values of FreeSurfer: left, right."""
IN_THE_MIDDLE = {"third_ventricle": 14, "fourth_ventricle": 15, "brain_stem": 16}
STRUCTURES = {f"{name}_{side}": pair[at] for name, pair in BOTH_SIDES.items() for at, side in enumerate(("L", "R"))}
STRUCTURES |= IN_THE_MIDDLE
JUDGED = 4


def main() -> None:
    """Write what is not there yet, train, score, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the folder data/ of the repository")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=int, default=60)
    options, further = parser.parse_known_args()  # what is left is for medseg fit
    heads = sorted((options.source / "training_label_maps").glob("*.nii.gz"))
    training = write(options.source, options.out / "training", heads[:-JUDGED])
    judged = write(options.source, options.out / "judged", heads[-JUDGED:])
    names = [head.name.removesuffix(".nii.gz") for head in heads[:-JUDGED]]
    place, fold = options.out / f"{options.minutes}_minutes", {"train": names[1:], "val": names[:1]}
    tell(train(training, judged, place, options.minutes, fold, further, ["--left-right", "swap"]))


def write(source: Path, folder: Path, heads: list[Path]) -> Path:
    """A dataset of some heads: an image of our making, and the structures."""
    priors = source / "labels_classes_priors"
    values, classes = (np.load(priors / f"generation_{what}.npy") for what in ("labels", "classes_contrast_specific"))
    drawn = [np.load(priors / f"prior_{what}_t1.npy") for what in ("means", "stds")]
    for path in heads:
        target = folder / "images" / path.name
        if target.is_file():
            continue
        head = nib.load(path)
        labels = np.asarray(head.dataobj).astype(np.int16)
        chance = np.random.default_rng(int("".join(filter(str.isdigit, path.name.split(".")[0]))))
        for part, voxels in (("labels", structures(labels)), ("images", image(labels, values, classes, drawn, chance))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, head.affine), folder / part / path.name)
    numbers = {name: number for number, name in enumerate(STRUCTURES, start=1)}
    described = {"modality": ["MR"], "labels": numbers, "image_folder": "images", "label_folder": "labels"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def structures(labels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The structures numbered from 1, everything else 0."""
    found = np.zeros(labels.shape, np.uint8)
    for number, value in enumerate(STRUCTURES.values(), start=1):
        found[labels == value] = number
    return found


def image(
    labels: NDArray[np.int16],
    values: NDArray[np.int64],
    classes: NDArray[np.int64],
    priors: list[NDArray[np.float64]],
    chance: np.random.Generator,
) -> NDArray[np.float32]:
    """Intensities of a head: those of its tissues, noise, a bias field of a factor of up to about 1.3, and blur."""
    means, spreads = (np.abs(chance.normal(*prior)) for prior in priors)  # of each class its mean and deviation
    of_value = np.zeros(int(labels.max()) + 1, np.int64)
    of_value[values[values < len(of_value)]] = classes[values < len(of_value)]
    tissue = of_value[labels]
    found = means[tissue] + spreads[tissue] * chance.standard_normal(labels.shape)
    found[labels == 0] = np.abs(chance.normal(0, 3, int((labels == 0).sum())))
    field = zoom(chance.normal(0, 0.1, (4, 4, 4)), [size / 4 for size in labels.shape], order=3)
    return gaussian_filter(found * np.exp(field), 0.5).astype(np.float32)


def tell(path: Path) -> None:
    """Dice and missed per structure, both sides together, and the mean."""
    dice: defaultdict[str, list[float]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            dice[row["organ"].removesuffix("_L").removesuffix("_R")].append(float(row["dice"]))
    print("| structure | Dice | lowest |\n|---|--:|--:|")
    for name, values in sorted(dice.items(), key=lambda item: -fmean(item[1])):
        print(f"| {name.replace('_', ' ')} | {fmean(values):.3f} | {min(values):.3f} |")
    print(f"| mean | {fmean(value for values in dice.values() for value in values):.3f} | |")


if __name__ == "__main__":
    main()
