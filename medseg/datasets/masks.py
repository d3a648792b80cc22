"""A label in a folder with one file per organ, each a mask called by its organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from medseg.datasets.grids import require_same_grid
from medseg.errors import DataError
from medseg.space.labels import LabelValue
from medseg.space.nifti import LabelFile
from medseg.space.painter import Painter
from medseg.space.reading import case_name, read_header, read_label_file
from medseg.space.volume import Volume


def read_masks(
    files: Sequence[Path], labels: Mapping[str, LabelValue], *, ignore: int | None, others: int | None
) -> LabelFile:
    """Read the masks of one case as a label map; of files that become background no voxel is read.

    Args:
        files: In one folder, on one grid.
        labels: Organ -> value or values; the name of its file without the ending.
        ignore: The value of voxels that count for nothing, which a file called ``ignore`` marks.
        others: The value that the masks of other names become; None refuses them.

    Raises:
        DataError: As `medseg.space.painter.Painter.paint`, or a file is unreadable, on another grid, or no mask.
    """
    header = read_header(files[0])
    grid = Volume(np.broadcast_to(np.uint8(0), (1, *header.shape)), header.affine)
    segments = [(case_name(file), partial(_mask, file, files[0], grid)) for file in files]
    return Painter(files[0].parent, labels, ignore, others).paint(segments, grid.shape, grid.affine)


def _mask(file: Path, first: Path, grid: Volume) -> Bool[np.ndarray, "i j k"]:
    """The voxels of one organ; whatever one number marks them, 255 too."""
    volume = read_label_file(file).require_labels()
    require_same_grid(file, volume, first, grid)
    inside: Bool[np.ndarray, "i j k"] = volume.array[0] != 0
    marks = volume.array[0][inside]
    if marks.size and marks.min() != marks.max():
        problem = f"holds values from {marks.min()} to {marks.max()}, where the mask of one organ has one beside 0"
        raise DataError(file, problem, "Save a mask per organ, or name this file itself as the label")
    return inside
