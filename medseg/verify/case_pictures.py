"""A look at the data: a few cases with their labels laid over them, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.datasets.case import Case, Dataset, read_case, read_dataset
from medseg.errors import DataError
from medseg.pictures.panels import Picture, picture
from medseg.pictures.slices import SOFT_TISSUE_HU, write_png
from medseg.space.labels import IGNORED, LabelValue, values_of
from medseg.space.volume import Volume


def write_figures(root: Path, out: Path, *, cases: int = 4) -> tuple[Path, ...]:
    """Draw a few cases of a dataset, spread over it: axial, coronal and sagittal, without and with their labels.

    Args:
        root: The folder of a dataset, or its ``dataset.json``.
        out: Folder for the pictures, named after the cases.
        cases: How many.

    Returns:
        The pictures.

    Raises:
        DataError: No case of the dataset can be read, or a picture cannot be written.
    """
    dataset = read_dataset(root, missing_ok=True)
    written, failure = [], None
    for case in spread_out(dataset.cases or dataset.test, cases):
        try:
            image, labels = read_case(case, dataset)
        except DataError as error:  # verify tells all about it; the other cases can still be seen
            failure = error
            continue
        path = out / f"{case.id}.png"
        write_png(path, draw(image, labels, dataset, title=f"{dataset.name}: {case.id}"))
        written.append(path)
    if failure is not None and not written:
        raise failure
    return tuple(written)


def spread_out(cases: Sequence[Case], n: int) -> tuple[Case, ...]:
    """At most ``n`` cases, the first and the last among them, the others evenly between."""
    places = np.unique(np.linspace(0, len(cases) - 1, min(n, len(cases))).round().astype(int))
    return tuple(cases[place] for place in places)


def draw(image: Volume, labels: Volume | None, dataset: Dataset, *, title: str) -> Picture:
    """Draw one case, each modality, through the middle of its labels.

    Args:
        image: A channel per modality.
        labels: Values as in the file, or None.
        dataset: Names of modalities and labels; CT is shown in the window of soft tissue.
        title: Written above.
    """
    marked = None if labels is None else labels.array[0]
    if marked is not None and dataset.ignore is not None:
        marked = np.where(marked == dataset.ignore, np.int64(IGNORED), marked)  # which a uint8 cannot hold
    return picture(
        image,
        marked,
        windows=[SOFT_TISSUE_HU if name.upper() == "CT" else None for name in dataset.modalities],
        title=title,
        names=names_of_values(dataset.labels),
        rows=dataset.modalities,
    )


def names_of_values(labels: dict[str, LabelValue]) -> dict[int, str]:
    """What each value in a label file stands for; of overlapping regions, all that hold it.

    Example:
        >>> names_of_values({"tumour": (1, 2), "core": 2, "vessel": 5})
        {1: 'tumour', 2: 'tumour + core', 5: 'vessel'}
    """
    names: dict[int, list[str]] = {}
    for name, value in labels.items():
        for one in values_of(value):
            names.setdefault(one, []).append(name)
    return {value: " + ".join(several) for value, several in names.items()}
