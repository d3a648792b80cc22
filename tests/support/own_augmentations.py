"""Augmentations as a user files them: in a module that is imported when its path is named."""

import numpy as np
import torch

from medseg.patches.augmentations import Bounds, Drawn, Field, Matrix, Setting, Volume, augmentation
from medseg.patches.geometry import Geometry


@augmentation(probability=0.5)
def speckle(volume: Volume, *, speckle_std: Drawn = (0.0, 0.1), generator: torch.Generator) -> None:
    """Multiplicative noise."""
    volume.mul_(1 + speckle_std * torch.randn(volume.shape, generator=generator, device=volume.device))


@augmentation(probability=1.0)
def shear(
    rng: np.random.Generator, geometry: Geometry, *, shear: Drawn = Setting((-0.1, 0.1), Bounds(-1, 1))
) -> Matrix:
    """Slanted along the first axis."""
    matrix = np.eye(3)
    matrix[0, 1] = rng.uniform(*shear)
    return matrix


@augmentation(probability=1.0)
def bulge(rng: np.random.Generator, geometry: Geometry) -> Field:
    """Blown up in the middle."""
    points = np.zeros((3, 3, 3, 3), np.float32)
    points[:, 1, 1, 1] = rng.normal(size=3)
    return points
