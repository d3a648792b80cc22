"""The same predictions: nnU-Net's predictor and ours on models that nnU-Net trained, a row per model and case.

    ENV/bin/python benchmarks/nnunet_models.py --out build/nnunet --hippocampus data/raw/Task04_Hippocampus
    ENV/bin/python benchmarks/nnunet_bridge.py --out build/nnunet
    ENV/bin/python benchmarks/nnunet_bridge.py --out build/back --back CKPT --images imagesTr --references labelsTr

The last is the way back: a checkpoint of medseg is exported, nnU-Net's command predicts with the folder.

Both in float32, with all flips of the model. Voxels with the same label; and the largest difference, over the organs,
of the Dice that the two predictions have against the reference. nnU-Net adds windows up in float16, we in float32:
where two classes are as good as level, or one window alone reaches a corner, they may part.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nnunet_models import DATASETS, MODELS, Model, place

from medseg.checkpoints.reading import read_checkpoint
from medseg.checkpoints.run import checkpoints_in
from medseg.export import export
from medseg.inference.images import list_cases, read_case_image
from medseg.inference.predict import Predictor
from medseg.nnunet.importing import import_model


@dataclass(frozen=True)
class Row:
    """How two predictions of one case compare."""

    case: str
    equal: float
    dice: float


def main() -> None:
    """Compare every model that is there, and print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--out", type=Path, required=True, help="where nnunet_models.py put its models")
    options.add_argument("--cases", type=int, default=4, help="of each model")
    options.add_argument("--only", nargs="*", default=[], help="names of datasets")
    options.add_argument("--back", type=Path, help="a checkpoint to export and to predict with by nnU-Net's command")
    options.add_argument("--images", type=Path, help="of --back: a folder of images of one channel")
    options.add_argument("--references", type=Path, help="of --back: the folder of their labels")
    chosen = options.parse_args()
    place(chosen.out)
    print("| model | case | same label | Dice differs by |\n|---|---|--:|--:|")
    if chosen.back:
        for row in back(chosen):
            print(f"| exported | {row.case} | {row.equal:.4%} | {row.dice:.5f} |", flush=True)
        return
    for model in MODELS:
        folder = chosen.out / "results" / model.folder
        trained = all((folder / f"fold_{fold}" / "checkpoint_final.pth").is_file() for fold in model.folds)
        if trained and (not chosen.only or model.dataset in chosen.only):
            for row in compare(model, folder, chosen.out, chosen.cases):
                told = f"{model.dataset}, {model.configuration}, {'residual' if model.residual else 'plain'}"
                told += f", {len(model.folds)} folds" if len(model.folds) > 1 else ""
                print(f"| {told} | {row.case} | {row.equal:.4%} | {row.dice:.5f} |", flush=True)


def compare(model: Model, folder: Path, out: Path, most: int) -> list[Row]:
    """Predict a few cases that the model has not seen with both."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    raw = out / "raw" / DATASETS[model.dataset][0]
    theirs = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(folder), model.folds, "checkpoint_final.pth")
    theirs.use_mirroring = theirs.allowed_mirroring_axes is not None
    with tempfile.TemporaryDirectory() as place:
        imported = Path(place) / "model"
        _, flips = import_model(folder, imported, folds=[str(fold) for fold in model.folds])
        ours = Predictor.load(checkpoints_in([imported]), mirror=bool(flips), device="cpu")
    ours.half = None
    rows = []
    for case, files in [*list_cases(raw / "imagesTs", ours.plan).items()][:most]:
        one = ours.predict(read_case_image(files, ours.plan))
        reader = theirs.plans_manager.image_reader_writer_class()
        data, properties = reader.read_images([str(file) for file in files])
        other = theirs.predict_single_npy_array(data, properties).transpose(2, 1, 0)
        reference = np.asarray(nib.load(raw / "labelsTs" / f"{case}.nii.gz").dataobj)
        rows.append(Row(case, float((one == other).mean()), difference(one, other, reference)))
    return rows


def back(chosen: argparse.Namespace) -> list[Row]:
    """Export a checkpoint, predict the last cases of a folder with nnU-Net's command and with ours."""
    given, exported, theirs = (chosen.out / name for name in ("given", "exported", "theirs"))
    images = sorted(chosen.images.glob("[!.]*.nii.gz"))[-chosen.cases :]
    given.mkdir(exist_ok=True)
    for image in images:
        link = given / image.name.replace(".nii.gz", "_0000.nii.gz")
        link.unlink(missing_ok=True)
        link.symlink_to(image.resolve())
    if not exported.exists():
        export(read_checkpoint(chosen.back), exported, form="nnunet")
    command = [
        Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder",
        "-i",
        given,
        "-o",
        theirs,
        "-m",
        exported,
    ]
    subprocess.run([*command, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"], check=True)
    ours = Predictor.load([chosen.back], device="cpu", cleaning=False)
    ours.half = None
    rows = []
    for image in images:
        one = ours.predict(read_case_image((image,), ours.plan))
        other, reference = (np.asarray(nib.load(folder / image.name).dataobj) for folder in (theirs, chosen.references))
        rows.append(Row(image.name, float((one == other).mean()), difference(one, other, reference)))
    return rows


def difference(one: np.ndarray, other: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of Dice against the reference, over the labels of all three."""
    values = sorted({*np.unique(one), *np.unique(other), *np.unique(reference)} - {0})
    return max((abs(dice(one == v, reference == v) - dice(other == v, reference == v)) for v in values), default=0.0)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|), 1 where both are empty."""
    total = one.sum() + other.sum()
    return float(2 * (one & other).sum() / total) if total else 1.0


if __name__ == "__main__":
    main()
