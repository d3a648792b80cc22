"""One volume as a picture: three views at one scale, its labels in colour, their names below."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from numpy.typing import NDArray

from medseg.pictures.slices import LEFT_AND_RIGHT, PLANES, size_mm, slices, upright, windowed
from medseg.space.labels import IGNORED
from medseg.space.volume import Volume

Picture = UInt8[np.ndarray, "height width 3"]
Colour = tuple[int, int, int]

LONGEST_PX = 400  # of the longest edge of the volume; every view has the same scale
_GAP, _LINE, _NARROWEST, _LETTERS, _BOX = 6, 24, 600, 16, 15
_INK, _DARK = (30, 30, 30), (90, 90, 90)


def picture(
    image: Volume,
    labels: Integer[np.ndarray, "i j k"] | None,
    *,
    windows: Sequence[tuple[float, float] | None],
    title: str,
    names: Mapping[int, str],
    rows: Sequence[str] = ("",),
) -> Picture:
    """Draw the axial, coronal and sagittal view of a volume, in true proportions, front and head upwards.

    A row per modality; where there are labels, the first modality once more with them in colour, and below a legend of
    those that the volume holds. The patient's right is on the left, as on a radiologist's screen.

    Args:
        image: A channel per modality.
        labels: On the image's grid; 0 is background, `IGNORED` ignored; None draws the image alone.
        windows: What is black and what is white in each modality; see `windowed`.
        title: Written above, before the size of volume and voxel.
        names: Label value to what the legend calls it.
        rows: What is written into the row of each modality; may be short.
    """
    if labels is not None:  # turned by the image's axes: near 45 degrees those of a file of their own may differ
        labels = Volume(labels[None], image.affine).reoriented("RAS").array[0]
    image = image.reoriented("RAS")
    shape, spacing_mm, axes = image.shape, image.spacing_mm, PLANES.values()
    centre = slices(shape, labels)
    scale = LONGEST_PX / max(n * edge for n, edge in zip(shape, spacing_mm, strict=True))
    sizes = [tuple(max(1, round(mm * scale)) for mm in size_mm(shape, spacing_mm, axis)) for axis in axes]
    greys = [windowed(channel, window) for channel, window in zip(image.array, windows, strict=True)]
    strips: list[list[NDArray[np.uint8]]] = [[upright(grey, axis, centre[axis]) for axis in axes] for grey in greys]
    entries = []
    if labels is not None:
        strips.append(
            [overlay(grey, upright(labels, axis, centre[axis])) for grey, axis in zip(strips[0], axes, strict=True)]
        )
        entries = _entries(labels, names)
    sheet = _Sheet(sizes, strips, [name for name, _ in entries])
    edges = " x ".join(f"{edge:.3g}" for edge in spacing_mm)
    sheet.write(f"{title}, {' x '.join(map(str, shape))} voxels of {edges} mm", (3, 2))
    for number, name in enumerate(rows[: len(greys)]):
        sheet.write(name, (3, _LINE + 3 + number * sheet.row), light=True)
    left = 0
    for (width, height), sides in zip(sizes, LEFT_AND_RIGHT.values(), strict=True):
        sheet.write(sides[0], (left + 3, _LINE + max(0, height // 2 - 8)), light=True)
        left += width + _GAP
    sheet.explain(entries)
    return np.asarray(sheet.image)


class _Sheet:
    """White paper with rows of pictures on it, sized by column, with room for a legend, and something to write with."""

    def __init__(self, sizes: Sequence[tuple[int, ...]], strips: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
        from PIL import Image, ImageDraw, ImageFont  # takes a while, and few commands draw

        self.font = ImageFont.load_default(_LETTERS)
        self.row = max(height for _, height in sizes) + _GAP
        width = max(_NARROWEST, sum(width + _GAP for width, _ in sizes))
        self.column = max((40 + round(self.font.getlength(_ascii(name))) for name in names), default=width)
        self.across = max(1, width // self.column)
        self.below = _LINE + len(strips) * self.row
        self.image = Image.new("RGB", (width, self.below + _LINE * -(-len(names) // self.across)), "white")
        self._pen = ImageDraw.Draw(self.image)
        for number, strip in enumerate(strips):
            left = 0
            for tile, size in zip(strip, sizes, strict=True):
                drawn = Image.fromarray(tile).resize((size[0], size[1]), Image.Resampling.NEAREST)
                self.image.paste(drawn, (left, _LINE + number * self.row))
                left += size[0] + _GAP

    def write(self, text: str, place: tuple[int, int], *, light: bool = False) -> None:
        """Write a line, as far as the paper reaches; light letters get a dark edge."""
        ink, edge = ("white", 1) if light else (_INK, 0)
        self._pen.text(place, _ascii(text), fill=ink, font=self.font, stroke_width=edge, stroke_fill="black")

    def explain(self, entries: Sequence[tuple[str, Colour]]) -> None:
        """Lines of coloured boxes with names, as many beside each other as fit."""
        for number, (name, rgb) in enumerate(entries):
            x, y = number % self.across * self.column, self.below + number // self.across * _LINE
            self._pen.rectangle((x + 3, y + 4, x + 2 + _BOX, y + 3 + _BOX), fill=rgb)
            self.write(name, (x + 26, y + 2))


def overlay(
    grey: UInt8[np.ndarray, "height width"], labels: Integer[np.ndarray, "height width"], *, opacity: float = 0.45
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


def colour(value: int) -> Colour:
    """A colour for a label value, the same in every picture; neighbours in number are far apart in hue.

    Where hues come close again, after 13 and 21 values, lightness differs.

    Example:
        >>> colour(1) != colour(2)
        True
    """
    saturation, lightness = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.65))[value // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb((value * 0.618034) % 1.0, saturation, lightness)
    return round(red * 255), round(green * 255), round(blue * 255)


def _entries(labels: NDArray[Any], names: Mapping[int, str]) -> list[tuple[str, Colour]]:
    """Name and colour of each value that a volume holds."""
    found = [(names.get(int(v), f"value {v}"), colour(int(v))) for v in np.unique(labels[labels > 0])]
    return found + ([(names.get(IGNORED, "ignored"), _DARK)] if (labels < 0).any() else [])


def _ascii(text: str) -> str:
    """What the font has letters for: accents are dropped, other signs are question marks."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return plain.encode("ascii", "replace").decode()
