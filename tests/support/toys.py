"""One toy dataset: how to write it, whole or case by case."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

TOY_LABELS = {"background": 0, "liver": 1, "spleen": 5, "ignore": 9}


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Write voxels with the same affine in sform and qform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)
    return path


def oblique_affine(index: int) -> np.ndarray:
    """Anisotropic spacing and a grid that is turned against the body, differently for every case."""
    angle = np.radians(5 + 4 * index)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([1.5, 1.5, 4.0 + 0.25 * index])
    affine[:3, 3] = [-18.0, -15.0 + index, -24.0]
    return affine


def toy_case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image and its labels: liver everywhere, no spleen in case 2, ignored voxels in case 3."""
    rng = np.random.default_rng(index)
    labels = np.zeros((24, 20 + index, 12), dtype=np.uint8)
    labels[4:12, 5:14, 3:9] = 1
    if index != 2:
        labels[15:19, 6:10, 4:7] = 5
    image = np.select([labels == 1, labels == 5], [120, 220], -50) + rng.normal(0, 15, labels.shape)
    if index == 3:
        labels[:, :, -2:] = 9
    return image.astype(np.int16), labels


def write_toy_dataset(folder: Path) -> Path:
    """Four anisotropic, oblique cases in the Decathlon's layout; label values 1 and 5, 9 is ignored.

    Case toy_2 lacks the spleen, toy_3 has ignored voxels; there is a test image without a label.
    """
    root = folder / "toy"
    for index in range(5):
        image, labels = toy_case(index)
        part = "Tr" if index < 4 else "Ts"
        write_nifti(root / f"images{part}" / f"toy_{index}.nii.gz", image, oblique_affine(index))
        if part == "Tr":
            write_nifti(root / "labelsTr" / f"toy_{index}.nii.gz", labels, oblique_affine(index))
    training = [{"image": f"./imagesTr/toy_{i}.nii.gz", "label": f"./labelsTr/toy_{i}.nii.gz"} for i in range(4)]
    content = {
        "name": "Toy",
        "modality": {"0": "CT"},
        "labels": TOY_LABELS,
        "training": training,
        "test": ["./imagesTs/toy_4.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root
