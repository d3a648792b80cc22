"""Small models trained by nnU-Net itself, for `nnunet_bridge.py` to import and to predict with in both programs.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1 -e .
    ENV/bin/python benchmarks/nnunet_models.py --out build/nnunet --hippocampus data/raw/Task04_Hippocampus

Five datasets: the hippocampus (an isotropic MR), a CT with thick slices, an MR of two modalities whose labels are
nested regions, a CT whose volumes are stored in every orientation, and one with an ignore label. nnU-Net plans and
prepares each; only features and patches are cut, so that two hundred steps take some minutes of one CPU core and a case
several windows. Its own trainers do the rest: augmentation, deep supervision, checkpoints; that with Adam learns
something in so few steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.phantom.anatomy import ABDOMEN
from medseg.phantom.phantom import write_phantom
from medseg.phantom.recipes import recipe_for

FEATURES = (8, 16, 32, 48, 64, 64, 64)
PATCH = 32
ORIENTATIONS = ("RAS", "LPS", "SAR", "PIL", "ASL", "IRP", "LAS", "RSP")


@dataclass(frozen=True)
class Model:
    """One training.

    Attributes:
        dataset: A name of `DATASETS`.
        configuration: Of nnU-Net.
        residual: nnU-Net's residual encoder in place of its plain network.
        folds: To train.
        trainer: Class of nnU-Net's.
    """

    dataset: str
    configuration: str = "3d_fullres"
    residual: bool = False
    folds: tuple[int, ...] = (0,)
    trainer: str = "nnUNetTrainerAdam1en3"

    @property
    def plans(self) -> str:
        """Name of the plans."""
        return "nnUNetResEncUNetMPlans" if self.residual else "nnUNetPlans"

    @property
    def folder(self) -> str:
        """Of its results."""
        return f"{DATASETS[self.dataset][0]}/{self.trainer}__{self.plans}__{self.configuration}"


def main() -> None:
    """Make the datasets, then train what is not there yet."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--hippocampus", type=Path, required=True, help="a Decathlon folder of Task04")
    options.add_argument("--steps", type=int, default=100, help="of each of two epochs")
    options.add_argument("--only", nargs="*", default=[], help="names of datasets")
    chosen = options.parse_args()
    place(chosen.out)
    for model in MODELS:
        if not chosen.only or model.dataset in chosen.only:
            make(model, chosen.out, chosen.hippocampus)
            train(model, chosen.out, chosen.steps)


def place(out: Path) -> None:
    """Where nnU-Net looks for everything."""
    for name in ("raw", "preprocessed", "results"):
        (out / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str((out / name).resolve())
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}


def make(model: Model, out: Path, hippocampus: Path) -> None:
    """The dataset in nnU-Net's layout, planned and prepared."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        nnUNetPlannerResEncM,
    )
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    name, write = DATASETS[model.dataset]
    number, raw = int(name[7:10]), out / "raw" / name
    if not (raw / "dataset.json").is_file():
        write(raw, hippocampus)
    plans = out / "preprocessed" / name / f"{model.plans}.json"
    if not (out / "preprocessed" / name / "dataset_fingerprint.json").is_file():
        extract_fingerprint_dataset(number, num_processes=1, show_progress_bar=False)
    if not plans.is_file():
        planner = nnUNetPlannerResEncM if model.residual else ExperimentPlanner
        plan_experiment_dataset(number, planner, gpu_memory_target_in_gb=1.5)
        plans.write_text(json.dumps(smaller(json.loads(plans.read_text())), indent=1))
    known = json.loads(plans.read_text())["configurations"][model.configuration]
    if not (out / "preprocessed" / name / known["data_identifier"]).is_dir():
        preprocess_dataset(number, model.plans, (model.configuration,), (1,), show_progress_bar=False)


def smaller(plans: dict) -> dict:
    """The same plans with fewer features, smaller patches and batches and a configuration of low resolution."""
    full = plans["configurations"]["3d_fullres"]
    if "3d_lowres" not in plans["configurations"]:
        coarse = [1.5 * step for step in full["spacing"]]
        identifier = f"{plans['plans_name']}_3d_lowres"
        plans["configurations"]["3d_lowres"] = json.loads(json.dumps(full)) | {
            "spacing": coarse,
            "data_identifier": identifier,
        }
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            kwargs = configuration["architecture"]["arch_kwargs"]
            kwargs["features_per_stage"] = list(FEATURES[: kwargs["n_stages"]])
            if "n_blocks_per_stage" in kwargs:
                kwargs["n_blocks_per_stage"] = [min(count, 2) for count in kwargs["n_blocks_per_stage"]]
            reach = [math.prod(steps) for steps in zip(*kwargs["strides"], strict=True)]
            least = [max(2 * step, PATCH // step * step) for step in reach]
            configuration["patch_size"] = [*map(min, configuration["patch_size"], least)]
            configuration["batch_size"] = 8 if len(reach) == 2 else 2
    return plans


def train(model: Model, out: Path, steps: int) -> None:
    """Two epochs of nnU-Net's trainer for each fold that has none yet."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer_class = recursive_find_trainer_class_by_name(model.trainer)
    name = DATASETS[model.dataset][0]
    folder = out / "preprocessed" / name
    for fold in model.folds:
        result = out / "results" / model.folder / f"fold_{fold}"
        if (result / "checkpoint_final.pth").is_file():
            continue
        torch.manual_seed(fold)
        np.random.seed(fold)
        plans = json.loads((folder / f"{model.plans}.json").read_text()) | {"continue_training": False}
        dataset = json.loads((folder / "dataset.json").read_text())
        trainer = trainer_class(plans, model.configuration, fold, dataset, device=torch.device("cpu"))
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, steps, 2
        os.environ |= {"nnUNet_n_proc_DA": "0"}  # batches are made in this process
        trainer.run_training()
        os.environ |= {"nnUNet_n_proc_DA": "1"}  # or its planner would ask for no thread at all
        shutil.copy(result / "checkpoint_final.pth", result / "checkpoint_best.pth")


def _hippocampus(raw: Path, source: Path) -> None:
    cases = sorted(path.name[:-7] for path in (source / "labelsTr").glob("[!.]*.nii.gz"))[:40]
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    volumes = ((case, source / f"imagesTr/{case}.nii.gz", source / f"labelsTr/{case}.nii.gz") for case in cases)
    _write(raw, ["MRI"], labels, _read(volumes))


def _thick(raw: Path, source: Path) -> None:
    recipe = recipe_for("Spleen", shrink=5)
    root = write_phantom(raw.parent / "thick", 20, size=(96, 96, 14), spacing_mm=(3.2, 3.2, 14.0), recipe=recipe)
    _write(raw, ["CT"], {"background": 0, "spleen": 1}, _read(_listed(root)))


def _regions(raw: Path, source: Path) -> None:
    root = write_phantom(raw.parent / "brain", 16, recipe=recipe_for("BrainTumour", shrink=4))
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    two = ((case, image.slicer[..., :2], label) for case, image, label in _read(_listed(root)))
    _write(raw, ["T1", "FLAIR"], labels, two, regions_class_order=[1, 2, 3])


def _turned(raw: Path, source: Path) -> None:
    root = write_phantom(raw.parent / "abdomen", 24, size=(72, 64, 40), spacing_mm=(4.0, 4.0, 6.0), recipe=ABDOMEN)
    named = json.loads((root / "dataset.json").read_text())["labels"]
    labels = {name if int(value) else "background": int(value) for value, name in named.items()}

    def turned() -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image]]:
        for index, (case, *pair) in enumerate(_read(_listed(root))):
            codes = ORIENTATIONS[index % len(ORIENTATIONS)]
            yield case, *(_to(volume, codes) for volume in pair)

    _write(raw, ["CT"], labels, turned())


def _ignored(raw: Path, source: Path) -> None:
    root = write_phantom(raw.parent / "undrawn", 16, recipe=recipe_for("Prostate", shrink=4))

    def scribbled() -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image]]:
        for case, image, label in _read(_listed(root)):
            values = np.asarray(label.dataobj).astype(np.uint8)
            values[:, : values.shape[1] // 4] = 3
            yield case, image, nib.Nifti1Image(values, label.affine)

    _write(raw, ["T2", "ADC"], {"background": 0, "PZ": 1, "TZ": 2, "ignore": 3}, scribbled())


def _to(volume: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    change = nib.orientations.ornt_transform(
        nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    return volume.as_reoriented(change)


def _listed(root: Path) -> Iterator[tuple[str, Path, Path]]:
    for entry in json.loads((root / "dataset.json").read_text())["training"]:
        image = entry["image"]
        yield Path(image).name[:-7], root / image, root / entry["label"]


def _read(
    paths: Iterator[tuple[str, Path, Path]],
) -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image]]:
    for case, image, label in paths:
        yield case, nib.load(image), nib.load(label)


def _write(
    raw: Path,
    modalities: list[str],
    labels: dict,
    volumes: Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image]],
    **further: object,
) -> None:
    """nnU-Net's layout; a file per modality. Every third case is left to predict."""
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    trained = 0
    for index, (case, image, label) in enumerate(volumes):
        part = "Ts" if index % 3 == 2 else "Tr"
        trained += part == "Tr"
        voxels = np.asarray(image.dataobj)
        for channel in range(len(modalities)):
            one = voxels if voxels.ndim == 3 else voxels[..., channel]
            nib.save(nib.Nifti1Image(one, image.affine), raw / f"images{part}" / f"{case}_{channel:04d}.nii.gz")
        values = np.asarray(label.dataobj).astype(np.uint8)
        nib.save(nib.Nifti1Image(values, image.affine), raw / f"labels{part}" / f"{case}.nii.gz")
    content = {"channel_names": {str(n): name for n, name in enumerate(modalities)}, "labels": labels}
    content |= {"numTraining": trained, "file_ending": ".nii.gz", **further}
    (raw / "dataset.json").write_text(json.dumps(content, indent=1))


DATASETS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "hippocampus": ("Dataset604_Hippocampus", _hippocampus),
    "thick": ("Dataset609_Thick", _thick),
    "regions": ("Dataset601_Regions", _regions),
    "turned": ("Dataset610_Turned", _turned),
    "ignored": ("Dataset605_Ignored", _ignored),
}
MODELS = (
    Model("hippocampus"),
    Model("thick"),
    Model("regions"),
    Model("turned", residual=True),
    Model("hippocampus", "2d"),
    Model("hippocampus", folds=(0, 1)),
    Model("turned", "3d_lowres"),
    Model("ignored", residual=True, trainer="nnUNetTrainerNoMirroring"),
)


if __name__ == "__main__":
    main()
