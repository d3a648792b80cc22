"""Slices of a volume as they are looked at: which one, which way up, how bright; and a picture as a PNG file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Num, UInt8
from numpy.typing import NDArray

from medseg.machine.files import whole
from medseg.space.volume import Shape, Spacing

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The three views in the order they are shown, and the RAS axis that each looks along."""

LEFT_AND_RIGHT = {"axial": "RL", "coronal": "RL", "sagittal": "AP"}
"""The patient's sides at the left and the right edge of a view, as on a radiologist's screen."""

SOFT_TISSUE_HU = (-160.0, 240.0)


def upright(volume: NDArray[Any], axis: int, at: int) -> NDArray[Any]:
    """A slice of a RAS volume: the head or the front upwards, the patient's right or front on the left."""
    return np.ascontiguousarray(np.take(volume, at, axis=axis).T[::-1, ::-1])


def size_mm(shape: tuple[int, ...], spacing_mm: Spacing, axis: int) -> tuple[float, float]:
    """Width and height of the view along an axis."""
    across, up = (shape[a] * spacing_mm[a] for a in range(3) if a != axis)
    return across, up


def windowed(
    channel: Num[np.ndarray, "*space"], window: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "*space"]:
    """Turn intensities into grey values; without a window, the darkest and the brightest hundredth are clipped.

    Example:
        >>> windowed(np.array([[-160.0, 40.0, 300.0]]), SOFT_TISSUE_HU).tolist()
        [[0, 127, 255]]
    """
    low, high = window or (float(v) for v in np.percentile(channel, (1, 99)))
    grey: NDArray[np.uint8] = (np.clip((channel - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return grey


def slices(shape: tuple[int, ...], labels: Integer[np.ndarray, "i j k"] | None) -> Shape:
    """Of each axis the slice that shows the most of the labels, small ones as much as large ones; else the middle one.

    Example:
        >>> labels = np.zeros((4, 4, 4), int); labels[0, 1, 2] = 7
        >>> slices((4, 4, 4), labels)
        (0, 1, 2)
    """
    if labels is None or not (labels > 0).any():
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    places = np.nonzero(labels > 0)
    _, which = np.unique(labels[places], return_inverse=True)
    kinds = int(which.max()) + 1
    best = []
    for axis in range(3):
        seen = np.bincount(places[axis] * kinds + which.reshape(-1), minlength=shape[axis] * kinds)
        table = seen.reshape(shape[axis], kinds)
        best.append(int(np.argmax((table / table.max(axis=0)).sum(axis=1))))
    return best[0], best[1], best[2]


def png(picture: UInt8[np.ndarray, "height width *rgb"]) -> bytes:
    """Encode a grey picture, or one of red, green and blue.

    Raises:
        ValueError: It has no pixel.

    Example:
        >>> png(np.zeros((2, 3, 3), dtype=np.uint8))[1:4]
        b'PNG'
    """
    from PIL import Image  # takes a while, and few commands draw

    if not picture.size:
        raise ValueError(f"expected a picture with pixels, got {picture.shape}")
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def write_png(path: Path, picture: UInt8[np.ndarray, "height width *rgb"]) -> None:
    """Write a picture; it appears whole or not at all, and its folder is made if need be.

    Raises:
        ValueError: As `png`.
        MachineError: It cannot be written.
    """
    content = png(picture)
    with whole(path) as partial:
        partial.write_bytes(content)
