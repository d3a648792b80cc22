"""Two-dimensional pictures (PNG, TIFF, JPEG, BMP) as volumes of one slice, read and written with Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.errors import DataError
from medseg.machine.files import whole
from medseg.space.nifti import Header
from medseg.space.volume import Affine, Volume

FLAT_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
LOSSY_ENDINGS = (".jpg", ".jpeg")

PIXEL_AFFINE: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])
"""A pixel is 1 mm wide, for dots per inch are those of a screen or a printer; columns run to the patient's left and
rows to the back, as in an axial slice of DICOM and for ITK."""

_GREY = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_COLOURS = {"RGB": 3, "RGBA": 3, "LA": 1}  # mode -> channels without transparency
_TURNED = 274  # the tag of EXIF that asks a viewer to turn the picture
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)


def flat_header(path: Path) -> Header:
    """What a picture says of itself before its pixels are read.

    Raises:
        DataError: As `read_flat`.
    """
    with _opened(path) as image:
        channels = len(_colours_of(path, image)) if image.mode == "P" else _COLOURS.get(image.mode, 1)
        return Header((image.width, image.height, 1), channels, PIXEL_AFFINE)


def read_flat(path: Path) -> Volume:
    """Read a picture as float32 ``(c, columns, rows, 1)``: one channel of grey, or red, green and blue.

    Raises:
        DataError: It is unreadable, holds several pages, is see-through somewhere, has more bits than would be read, or
            asks to be turned before it is seen.
    """
    with _opened(path) as image:
        return _volume(_colours_of(path, image), np.float32)


def read_flat_labels(path: Path) -> Volume:
    """Read a picture of labels, one channel in its own type; the colours of a palette mean their numbers.

    Raises:
        DataError: As `read_flat`, or it is in colours, or was packed with a loss.
    """
    if path.name.endswith(LOSSY_ENDINGS):
        raise DataError(path, "is a JPEG, whose packing changes label values", "Export the labels as PNG")
    with _opened(path) as image:
        planes = [np.asarray(image)] if image.mode == "P" else _colours_of(path, image)
    if any(not np.array_equal(planes[0], plane) for plane in planes[1:]):
        raise DataError(path, "holds labels as colours", "Export a number per pixel, as grey or with a palette")
    return _volume(planes[:1])


def write_flat(path: Path, labels: NDArray[Any]) -> None:
    """Write integer labels ``(columns, rows, 1)`` of at most 65,535 as a grey picture, whole or not at all."""
    pixels = labels[:, :, 0].T.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)
    with whole(path) as partial:
        Image.fromarray(np.ascontiguousarray(pixels)).save(partial)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The picture, its pages and turns checked; what Pillow stumbles over becomes a sentence."""
    try:
        with Image.open(path) as image:
            if image.mode in _COLOURS and any(";16" in str(tile) for tile in image.tile):
                problem = "holds colours of 16 bits, of which 8 would be read"
                raise DataError(path, problem, "Save each channel as a grey file")
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise DataError(path, f"holds {pages} pages", "Save a volume as .nii.gz, which has a spacing")
            if image.getexif().get(_TURNED, 1) != 1:
                problem = "asks in its EXIF header to be turned, which not every program does"
                raise DataError(path, problem, "Save it as it shall be seen, without that remark")
            yield image
    except FileNotFoundError:
        raise DataError(path, "does not exist", "Check the path, or the entry of dataset.json that names it") from None
    except _BROKEN as error:
        raise DataError(path, f"is not a readable picture ({error})", "Export or download it again") from None


def _colours_of(path: Path, image: Any) -> list[NDArray[Any]]:
    """A plane of grey, or planes of red, green and blue; transparency that hides nothing is left out."""
    indexed = image.mode == "P"
    if indexed:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode not in (*_GREY, *_COLOURS):
        raise DataError(path, f"holds its colours as {image.mode}", "Save it as grey, or as RGB")
    pixels = np.asarray(image)
    if image.mode in _GREY:
        return [pixels]
    if image.mode.endswith("A") and (pixels[..., -1] != 255).any():
        raise DataError(path, "is see-through in places, which no network sees", "Save it without transparency")
    planes = [pixels[..., channel] for channel in range(_COLOURS[image.mode])]
    grey = indexed and all(np.array_equal(planes[0], plane) for plane in planes[1:])
    return planes[:1] if grey else planes


def _volume(planes: list[NDArray[Any]], kind: Any = None) -> Volume:
    return Volume(np.stack([plane.T[..., None] for plane in planes]).astype(kind or planes[0].dtype), PIXEL_AFFINE)
