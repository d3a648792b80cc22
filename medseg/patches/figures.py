"""Pictures of training patches, for a look at what the network sees."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8

from medseg.datasets.figures import overlay, windowed
from medseg.patches.datamodule import VolumesDataModule
from medseg.space.png import write_png

GAP, ENLARGED = 4, 3


def write_patch_figures(data: VolumesDataModule, out: Path, n: int) -> tuple[Path, ...]:
    """Write the first patches of training, augmented, each cut through its middle across the three axes.

    A figure shows the modalities below each other, plain on the left and with the labels laid over on the right, where
    voxels whose label is ignored are darker.

    Args:
        data: Where the patches come from.
        out: Folder for ``patch_00_CASE.png`` and so on; made if need be.
        n: How many patches.

    Returns:
        The files.
    """
    files = []
    for number, (case, image, labels) in enumerate(islice(_patches(data), n)):
        files.append(out / f"patch_{number:02d}_{case}.png")
        write_png(files[-1], draw_patch(image, labels))
    return tuple(files)


def draw_patch(
    image: Float[np.ndarray, "m i j k"], labels: Integer[np.ndarray, "i j k"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one patch: a row per modality, two panels per axis."""
    rows = [_side_by_side([p for axis in range(3) for p in _panels(windowed(c), labels, axis)]) for c in image]
    return np.concatenate(rows)


def _patches(data: VolumesDataModule) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for crops in data.train_dataloader():
        batch = data.on_after_batch_transfer(crops, 0)
        yield from zip(batch.id, batch.image.cpu().numpy(), batch.labels.cpu().numpy(), strict=True)


def _panels(
    grey: UInt8[np.ndarray, "i j k"], labels: Integer[np.ndarray, "i j k"], axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """The middle slice across an axis, without and with labels; the last axis grows upwards."""
    flat, known = (np.take(volume, volume.shape[axis] // 2, axis).T[::-1] for volume in (grey, labels))
    return np.repeat(flat[..., None], 3, axis=-1), overlay(np.where(known < 0, flat // 2, flat), known)


def _side_by_side(panels: list[np.ndarray]) -> UInt8[np.ndarray, "height width 3"]:
    large = [panel.repeat(ENLARGED, 0).repeat(ENLARGED, 1) for panel in panels]
    height = max(panel.shape[0] for panel in large)
    return np.concatenate([np.pad(p, ((0, height - p.shape[0] + GAP), (0, GAP), (0, 0))) for p in large], axis=1)
