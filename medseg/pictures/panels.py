"""One volume as a picture: three views at one scale, its labels in colour, their names below."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from numpy.typing import NDArray

from medseg.pictures.lettering import lettered
from medseg.space.volume import Shape, Spacing

Picture = UInt8[np.ndarray, "height width 3"]

SOFT_TISSUE_HU = (-160.0, 240.0)
IGNORED = -1  # drawn darker: these voxels count neither for nor against
VIEWS = (2, 1, 0)  # axial, coronal, sagittal: the axis that is looked along
LONGEST_PX = 400  # of the longest edge of the volume; every view has the same scale
_GAP, _LINE = 6, 24
_PAPER, _INK, _DARK = 255, 30, 90


def picture(
    greys: Sequence[UInt8[np.ndarray, "i j k"]],
    labels: Integer[np.ndarray, "i j k"] | None,
    *,
    spacing_mm: Spacing,
    title: str,
    names: Mapping[int, str],
    rows: Sequence[str] = ("",),
) -> Picture:
    """Draw the axial, coronal and sagittal view of a volume, in true proportions, front and head upwards.

    A row per modality; where there are labels, the first modality once more with them in colour, and below a legend of
    those that the volume holds. The patient's right is on the left, as on a radiologist's screen.

    Args:
        greys: A grey volume per modality, in RAS orientation.
        labels: In RAS orientation; 0 is background, `IGNORED` ignored; None draws the image alone.
        spacing_mm: Edge lengths of a voxel.
        title: Written above.
        names: Label value to what the legend calls it.
        rows: What is written into the row of each modality; may be short.
    """
    centre = slices(greys[0].shape, labels)
    scale = LONGEST_PX / max(n * edge for n, edge in zip(greys[0].shape, spacing_mm, strict=True))
    lines = []
    for number, grey in enumerate(greys):
        flat = [_stretched(_view(grey, axis, centre), spacing_mm, axis, scale) for axis in VIEWS]
        tiles = [np.repeat(tile[..., None], 3, axis=-1) for tile in flat]
        if number == 0:
            for tile, letter in zip(tiles, "RRA", strict=True):
                _write(tile, letter, (max(0, tile.shape[0] // 2 - 8), 3), _PAPER)
        if number < len(rows):
            _write(tiles[0], rows[number], (3, 3), _PAPER)
        lines.append(_beside(tiles))
    if labels is not None:
        flat = [_stretched(_view(greys[0], axis, centre), spacing_mm, axis, scale) for axis in VIEWS]
        known = [_stretched(_view(labels, axis, centre), spacing_mm, axis, scale) for axis in VIEWS]
        lines.append(_beside([overlay(tile, seen) for tile, seen in zip(flat, known, strict=True)]))
    width = max(lines[0].shape[1], 600)
    lines = [_titled(title, width), *lines, *(_legend(labels, names, width) if labels is not None else [])]
    return np.concatenate([_widened(line, width) for line in lines])


def windowed(
    channel: Float[np.ndarray, "*space"], window: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "*space"]:
    """Turn intensities into grey values; without a window, the darkest and the brightest hundredth are clipped.

    Example:
        >>> windowed(np.array([[-160.0, 40.0, 300.0]]), SOFT_TISSUE_HU).tolist()
        [[0, 127, 255]]
    """
    low, high = window or (float(v) for v in np.percentile(channel, (1, 99)))
    grey: NDArray[np.uint8] = (np.clip((channel - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return grey


def overlay(
    grey: UInt8[np.ndarray, "height width"], labels: Integer[np.ndarray, "height width"], *, opacity: float | int = 0.45
) -> Picture:
    """Lay coloured labels over a grey picture; value 0 stays clear, negative values are darker.

    Example:
        >>> overlay(np.full((1, 3), 100, np.uint8), np.array([[0, 1, -1]]))[0, ::2].tolist()
        [[100, 100, 100], [50, 50, 50]]
    """
    shaded = np.where(labels < 0, grey // 2, grey)
    rgb = np.repeat(shaded[..., None], 3, axis=-1).astype(np.float32)
    for value in np.unique(labels[labels > 0]):
        where = labels == value
        rgb[where] = (1 - opacity) * rgb[where] + opacity * np.array(colour(int(value)), dtype=np.float32)
    return rgb.astype(np.uint8)


def colour(value: int) -> tuple[int, int, int]:
    """A colour for a label value, the same in every picture; neighbours in number are far apart in hue.

    Where hues come close again, after 13 and 21 values, lightness differs.

    Example:
        >>> colour(1) != colour(2)
        True
    """
    saturation, lightness = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.65))[value // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb((value * 0.618034) % 1.0, saturation, lightness)
    return round(red * 255), round(green * 255), round(blue * 255)


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


def _view(volume: NDArray[Any], axis: int, centre: Shape) -> NDArray[Any]:
    """A slice as it is looked at: the head or the front upwards, the patient's right or front on the left."""
    flat = np.take(volume, centre[axis], axis=axis)
    return np.ascontiguousarray(flat.T[::-1, ::-1])


def _stretched(flat: NDArray[Any], spacing_mm: Spacing, axis: int, pixels_per_mm: float) -> NDArray[Any]:
    """Repeat pixels until the slice has its true proportions."""
    across, up = (spacing_mm[a] for a in range(3) if a != axis)
    height, width = flat.shape
    rows_out = max(1, round(height * up * pixels_per_mm))
    columns_out = max(1, round(width * across * pixels_per_mm))
    rows, columns = (np.arange(rows_out) * height) // rows_out, (np.arange(columns_out) * width) // columns_out
    stretched: NDArray[Any] = flat[rows][:, columns]
    return stretched


def _beside(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    height = max(len(tile) for tile in tiles) + _GAP
    return np.concatenate(
        [np.pad(tile, ((0, height - len(tile)), (0, _GAP), (0, 0)), constant_values=_PAPER) for tile in tiles],
        axis=1,
    )


def _legend(labels: NDArray[Any], names: Mapping[int, str], width: int) -> list[NDArray[np.uint8]]:
    """Lines of coloured boxes with the names of the labels, as many beside each other as fit."""
    entries = [(names.get(int(v), f"VALUE {v}"), colour(int(v))) for v in np.unique(labels[labels > 0])]
    if (labels < 0).any():
        entries.append((names.get(IGNORED, "ignored"), (_DARK, _DARK, _DARK)))
    column = max((40 + lettered(name, scale=3).shape[1] for name, _ in entries), default=1)
    across = max(1, width // column)
    lines = []
    for start in range(0, len(entries), across):
        line = np.full((_LINE, width, 3), _PAPER, dtype=np.uint8)
        for place, (name, rgb) in enumerate(entries[start : start + across]):
            line[4:19, place * column + 3 : place * column + 18] = rgb
            _write(line, name, (4, place * column + 26), _INK)
        lines.append(line)
    return lines


def _titled(title: str, width: int) -> NDArray[np.uint8]:
    line = np.full((_LINE, width, 3), _PAPER, dtype=np.uint8)
    _write(line, title, (3, 3), _INK)
    return line


def _write(canvas: NDArray[np.uint8], text: str, place: tuple[int, int], ink: int) -> None:
    """Write onto a picture, as far as it reaches; light letters get a dark shadow."""
    for shift, shade in ((1, 0), (0, ink)) if ink > _DARK else ((0, ink),):
        top, left = place[0] + shift, place[1] + shift
        part = canvas[top:, left:]
        mask = lettered(text, scale=3)[: part.shape[0], : part.shape[1]]
        part[: mask.shape[0], : mask.shape[1]][mask] = shade


def _widened(line: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=_PAPER)
