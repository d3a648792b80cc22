"""A look at the data: slices of a few cases with their labels laid over them, as PNG."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from numpy.typing import NDArray

from medseg.datasets.case import read_case, read_dataset
from medseg.errors import DataError
from medseg.space.png import write_png
from medseg.space.volume import Shape, Spacing, Volume

Picture = UInt8[np.ndarray, "height width 3"]

_PIXELS = 320  # height of a row


def write_figures(root: Path, out: Path, *, cases: int = 4) -> tuple[Path, ...]:
    """Draw a few cases of a dataset, spread over it: sagittal, coronal and axial, each with and without its labels.

    Args:
        root: The folder of a dataset, or its ``dataset.json``.
        out: Folder for the pictures, named after the cases.
        cases: How many.

    Returns:
        The pictures.

    Raises:
        DataError: No case of the dataset can be read.
    """
    dataset = read_dataset(root, missing_ok=True)
    everything = dataset.cases or dataset.test
    chosen = [everything[i] for i in np.unique(np.linspace(0, len(everything) - 1, cases).round().astype(int))]
    written, failure = [], None
    for case in chosen:
        try:
            image, labels = read_case(case, dataset)
        except DataError as error:  # verify tells all about it; the other cases can still be seen
            failure = error
            continue
        path = out / f"{case.id}.png"
        write_png(path, draw(image, labels, is_ct=dataset.modalities[0] == "CT"))
        written.append(path)
    if failure is not None and not written:
        raise failure
    return tuple(written)


def draw(image: Volume, labels: Volume | None, *, is_ct: bool = False) -> Picture:
    """Draw the three views of a case through the middle of its labels, in true proportions, front and head upwards.

    Args:
        image: Only the first channel is drawn.
        labels: Laid over a second copy of each view; None draws the image alone.
        is_ct: Show Hounsfield units from -160 to 240 in place of the darkest and brightest hundredth.

    Returns:
        A picture ``(height, width, 3)``.
    """
    image = image.reoriented("RAS")
    marked = labels.reoriented("RAS").array[0] if labels is not None else None
    grey = windowed(image.array[0], is_ct=is_ct)
    centre = _centre(image.shape, marked)
    tiles = []
    for axis in range(3):
        flat = _view(grey, axis, centre)
        tiles.append(_stretch(np.repeat(flat[..., None], 3, axis=-1), image.spacing_mm, axis))
        if marked is not None:
            tiles.append(_stretch(overlay(flat, _view(marked, axis, centre)), image.spacing_mm, axis))
    gap = np.full((_PIXELS, 4, 3), 255, dtype=np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def windowed(channel: Float[np.ndarray, "*space"], *, is_ct: bool = False) -> UInt8[np.ndarray, "*space"]:
    """Turn intensities into grey values.

    Example:
        >>> windowed(np.array([[-160.0, 40.0, 240.0]]), is_ct=True).tolist()
        [[0, 127, 255]]
    """
    low, high = (-160.0, 240.0) if is_ct else (float(v) for v in np.percentile(channel, (1, 99)))
    grey: NDArray[np.uint8] = (np.clip((channel - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return grey


def overlay(
    grey: UInt8[np.ndarray, "height width"], labels: Integer[np.ndarray, "height width"], *, opacity: float | int = 0.45
) -> Picture:
    """Lay coloured labels over a grey picture; value 0 and negative values stay clear.

    Example:
        >>> overlay(np.full((1, 2), 100, np.uint8), np.array([[0, 1]]))[0, 0].tolist()
        [100, 100, 100]
    """
    rgb = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    for value in np.unique(labels[labels > 0]):
        where = labels == value
        rgb[where] = (1 - opacity) * rgb[where] + opacity * np.array(colour(int(value)), dtype=np.float32)
    return rgb.astype(np.uint8)


def colour(value: int) -> tuple[int, int, int]:
    """A colour for a label value; neighbours in number are far apart in hue.

    Example:
        >>> colour(1) != colour(2)
        True
    """
    red, green, blue = colorsys.hsv_to_rgb((value * 0.618034) % 1.0, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _centre(shape: Shape, marked: NDArray[Any] | None) -> Shape:
    """The slice of each axis that meets the most labelled voxels, the middle one where there are none."""
    if marked is None or not (marked > 0).any():
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    i, j, k = (int(np.argmax((marked > 0).sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3))
    return i, j, k


def _view(volume: NDArray[Any], axis: int, centre: Shape) -> NDArray[Any]:
    """A slice as it is looked at: the head or the front upwards, the patient's right on the left."""
    flat = np.take(volume, centre[axis], axis=axis)
    return np.ascontiguousarray(flat.T[::-1, ::-1])


def _stretch(picture: NDArray[np.uint8], spacing_mm: Spacing, axis: int) -> NDArray[np.uint8]:
    """Repeat pixels until the tile has its height and its true proportions."""
    across, up = (spacing_mm[a] for a in range(3) if a != axis)
    height, width = picture.shape[:2]
    pixels_per_mm = _PIXELS / (height * up)
    rows = (np.arange(_PIXELS) * height) // _PIXELS
    columns_out = max(1, round(width * across * pixels_per_mm))
    columns = (np.arange(columns_out) * width) // columns_out
    stretched: NDArray[np.uint8] = picture[rows][:, columns]
    return stretched
