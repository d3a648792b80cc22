"""Prediction from Python in a line or two."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from medseg.checkpoints.run import checkpoints_in
from medseg.errors import UsageError
from medseg.inference.images import read_case_image, remark_on_units
from medseg.inference.predict import Predictor
from medseg.machine.dotted import Trust
from medseg.space.volume import Volume


def load(*checkpoints: str | PathLike[str], trust: Iterable[str] = (), **options: Any) -> Predictor:
    """The trained network of a checkpoint or of a run's best one; of several, their average.

    Args:
        checkpoints: Files, or runs and cross-validations or their folders.
        trust: Dotted paths of your own networks, which a checkpoint may name; see `medseg.machine.dotted.Trust`.
        options: As in `medseg.inference.predict.Predictor.load`.

    Raises:
        CheckpointError: One is missing, not ours, or does not fit the others.
        UsageError: The device is not there.
    """
    return Predictor.load(checkpoints_in([Path(path) for path in checkpoints]), trust=Trust.of(trust), **options)


def predict(
    image: str | Path | Iterable[str | Path] | Volume | Float[np.ndarray, "..."],
    predictor: Predictor | str | PathLike[str],
    *,
    affine: Float[np.ndarray, "4 4"] | None = None,
) -> Integer[np.ndarray, "i j k"]:
    """Segment one image; label values as in the dataset's files, on the image's own grid.

    Args:
        image: A file, a file per modality, a volume, or an array ``(i, j, k)`` or ``(m, i, j, k)`` in the units
            that the network was trained on, such as Hounsfield units.
        predictor: What `load` gave, or what it takes.
        affine: Of an array: from voxels to millimetres, right-anterior-superior as in NIfTI.

    Raises:
        DataError: A file cannot be read, or has other modalities than the network was trained on.
        UsageError: An array comes without its affine, or has other axes or channels than the network takes.
    """
    network = predictor if isinstance(predictor, Predictor) else load(predictor)
    if isinstance(image, np.ndarray):
        if affine is None:
            raise UsageError("an array says nothing of where its voxels lie", "Give the affine of the image too")
        voxels = image[None] if image.ndim == 3 else image
        try:
            image = Volume(np.asarray(voxels, dtype=np.float32), np.asarray(affine, dtype=np.float64))
        except ValueError as error:
            raise UsageError(str(error), "Give an array (i, j, k) or (m, i, j, k)") from None
    if not isinstance(image, Volume):
        files = (image,) if isinstance(image, str | Path) else tuple(image)
        image = read_case_image(tuple(Path(file) for file in files), network.plan)
    elif len(image.array) == len(network.plan.modalities):  # what has other channels is refused below
        remark_on_units("the image", image, network.plan)
    return network.predict(image)
