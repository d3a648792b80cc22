"""Small hospitals, each of which drew organs of its own under names and values of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .toys import write_nifti

PLACES = {"liver": (14, 9, 6, 5), "spleen": (5, 8, 6, 3), "kidney_left": (6, 14, 5, 2), "kidney_right": (17, 15, 5, 2)}
"""Organ -> centre in voxels (x grows to the patient's right) and radius."""

HOUNSFIELD = {"liver": 60.0, "spleen": 140.0, "kidney_left": 220.0, "kidney_right": 220.0}


def patient(seed: int, shape: tuple[int, int, int] = (22, 20, 12)) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A scan in Hounsfield units and the masks of all its organs; another seed, another body."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    image = -700 + 250 * texture / texture.std() + rng.normal(0, 15, shape)
    grid, masks = np.indices(shape), {}
    for organ, (i, j, k, radius) in PLACES.items():
        centre = np.array([i, j, k]) + rng.integers(-1, 2, 3)
        mask = sum((grid[axis] - centre[axis]) ** 2 for axis in range(3)) <= radius**2
        masks[organ] = mask
        image[mask] = HOUNSFIELD[organ] + rng.normal(0, 15, int(mask.sum()))
    return np.rint(image.clip(-1000)).astype(np.int16), masks


def write_hospital(
    root: Path,
    labels: Mapping[str, Any],
    drawn: Mapping[str, int],
    seeds: tuple[int, ...] = (0, 1, 2),
    *,
    mirrored: bool = False,
    offset: int = 0,
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 4.0),
    **description: Any,
) -> Path:
    """A dataset in the Decathlon's layout.

    Args:
        root: Its folder.
        labels: As its ``dataset.json`` has them.
        drawn: Organ of `PLACES` -> the value that it has in the files; later ones over earlier ones.
        seeds: Of the bodies.
        mirrored: Write affines that put left on the right.
        offset: Added to all intensities.
        spacing_mm: Edges of a voxel.
        description: Further keys of its ``dataset.json``.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[0, 0] *= -1 if mirrored else 1
    for seed in seeds:
        image, masks = patient(seed)
        values = np.zeros(image.shape, np.uint8)
        for organ, value in drawn.items():
            values[masks[organ]] = value
        write_nifti(root / "imagesTr" / f"case_{seed}.nii.gz", image + np.int16(offset), affine)
        write_nifti(root / "labelsTr" / f"case_{seed}.nii.gz", values, affine)
    content = {"modality": ["CT"], "labels": dict(labels), **description}
    (root / "dataset.json").write_text(json.dumps(content))
    return root
