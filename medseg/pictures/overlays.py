"""Pictures of a case in three planes: the image, the reference as a solid line, the prediction as a dashed one."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Bool, Num, UInt8

from medseg.space.distance import bounding_box

PLANES = ("axial", "coronal", "sagittal")
_MARGIN_MM = 12.0
_MOST_PIXELS = 320
REFERENCE_COLOUR, PREDICTION_COLOUR = "#4dc3ff", "#ffb000"
DASH = 'stroke-dasharray="6 4"'
_HALO = 'fill="none" stroke="#000" stroke-width="4" stroke-opacity="0.55"'  # keeps a light line legible on white


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a case, rows from the top of the picture, in an orientation that radiologists expect.

    Attributes:
        plane: Axial, coronal or sagittal.
        grey: The image, windowed to the organ and its surroundings; None without an image.
        prediction: Mask of the prediction.
        reference: Mask of the reference.
        spacing_mm: Height and width of a pixel.
    """

    plane: str
    grey: UInt8[np.ndarray, "y x"] | None
    prediction: Bool[np.ndarray, "y x"]
    reference: Bool[np.ndarray, "y x"]
    spacing_mm: tuple[float, float]


def three_planes(
    image: Num[np.ndarray, "i j k"] | None,
    prediction: Bool[np.ndarray, "i j k"],
    reference: Bool[np.ndarray, "i j k"],
    *,
    spacing_mm: Sequence[float],
) -> tuple[Slice, ...]:
    """Cut the three planes in which prediction and reference differ most, or where they are largest if equal.

    Arrays are in RAS orientation; patient right is drawn on the left, anterior and superior up, and the view is cropped
    to the organ with a margin.
    """
    interest = prediction ^ reference
    if not interest.any():
        interest = reference
    organ = bounding_box(prediction | reference) or tuple(slice(0, size) for size in reference.shape)
    box = tuple(
        slice(max(0, cut.start - round(_MARGIN_MM / step)), min(size, cut.stop + round(_MARGIN_MM / step)))
        for cut, step, size in zip(organ, spacing_mm, reference.shape, strict=True)
    )
    low, high = (0.0, 1.0) if image is None else _window(image[organ], image[box])
    slices = []
    for plane, axis in zip(PLANES, (2, 1, 0), strict=True):
        across = tuple(other for other in range(3) if other != axis)
        at = int(np.argmax(interest.sum(axis=across)))
        where = tuple(at if index == axis else cut for index, cut in enumerate(box))
        pixel_mm = spacing_mm[across[1]], spacing_mm[across[0]]
        grey = None if image is None else _grey(_upright(image[where]), low, high)
        slices.append(Slice(plane, grey, _upright(prediction[where]), _upright(reference[where]), pixel_mm))
    return tuple(slices)


def draw_slice(picture: Slice, *, case: str, organ: str) -> str:
    """Draw one plane as a figure; outlines stay sharp and legible at any size."""
    rows, columns = picture.reference.shape
    high, wide = picture.spacing_mm
    width, height = columns * wide, rows * high
    letter = max(width, 0.6 * height)  # a tall picture is made small enough for the screen
    text = (
        f"{picture.plane} plane of {case} at {organ}: reference {int(picture.reference.sum())} pixels, prediction "
        f"{int(picture.prediction.sum())}, shared {int((picture.prediction & picture.reference).sum())}"
    )
    reference = outline(picture.reference)
    outlines = "".join(
        f'<path d="{path}" transform="scale({wide:.6g} {high:.6g})" {style}/>'
        for path, style in (
            (reference, _HALO),
            (reference, f'fill="none" stroke="{REFERENCE_COLOUR}" stroke-width="2"'),
            (outline(picture.prediction), f'fill="none" stroke="{PREDICTION_COLOUR}" stroke-width="2.2" {DASH}'),
        )
    )
    ground = "" if picture.grey is None else _image_tag(picture.grey, width, height)
    sides = ("R", "L") if picture.plane != "sagittal" else ("A", "P")
    letters = "".join(
        f'<text x="{x:.4g}" y="{height / 2:.4g}" font-size="{letter / 18:.4g}" fill="#fff" stroke="#000" '
        f'stroke-width="{letter / 120:.4g}" paint-order="stroke" text-anchor="{anchor}">{side}</text>'
        for side, x, anchor in zip(sides, (width * 0.02, width * 0.98), ("start", "end"), strict=True)
    )
    return (
        f'<figure><svg viewBox="0 0 {width:.6g} {height:.6g}" role="img" aria-label="{escape(text)}">'
        f"<title>{escape(text)}</title>{ground}{outlines}{letters}</svg>"
        f"<figcaption>{picture.plane}</figcaption></figure>"
    )


def outline(mask: Bool[np.ndarray, "y x"]) -> str:
    """Trace the edges of a mask as closed SVG paths along pixel borders, corners only.

    Example:
        >>> outline(np.array([[True, True]]))
        'M0 0L2 0L2 1L0 1Z'
    """
    steps = _border_steps(mask)
    loops = []
    while steps:
        start = next(iter(steps))
        loop, here, heading = [], start, (0, 0)
        while steps.get(here):
            ahead = steps[here].pop()
            if not steps[here]:
                del steps[here]
            turned = (ahead[0] - here[0], ahead[1] - here[1])
            if turned != heading:
                loop.append(here)
            here, heading = ahead, turned
        loops.append("M" + "L".join(f"{x} {y}" for x, y in loop) + "Z")
    return "".join(loops)


def png(grey: UInt8[np.ndarray, "y x"]) -> bytes:
    """Encode an 8-bit grey picture.

    References:
        Portable Network Graphics, third edition, W3C 2025.
    """
    height, width = grey.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), grey], axis=1).tobytes()
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def _upright(cut: np.ndarray) -> np.ndarray:
    """Turn (first axis, second axis) of a RAS cut so that its second axis points up and its first to the left."""
    turned: np.ndarray = cut.T[::-1, ::-1]
    return turned


def _border_steps(mask: Bool[np.ndarray, "y x"]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Collect the pixel borders between inside and outside as directed steps, inside on the right-hand side."""
    padded = np.pad(mask, 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for cells, start, end in (
        (inside & ~above, (0, 0), (1, 0)),
        (above & ~inside, (1, 0), (0, 0)),
        (inside & ~left, (0, 1), (0, 0)),
        (left & ~inside, (0, 0), (0, 1)),
    ):
        for y, x in np.argwhere(cells).tolist():
            steps.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    return steps


def _window(organ: Num[np.ndarray, "i j k"], around: Num[np.ndarray, "p q r"]) -> tuple[float, float]:
    """Choose black and white by the organ, wider by its own range, so that air and bone do not flatten it."""
    low, high = np.percentile(organ, [2, 98])
    darkest, brightest = np.percentile(around, [1, 99])
    margin = max(0.75 * (high - low), 0.15 * (brightest - darkest), 1e-6)
    return float(max(low - margin, darkest)), float(min(high + margin, brightest))


def _grey(cut: Num[np.ndarray, "y x"], low: float, high: float) -> UInt8[np.ndarray, "y x"]:
    shades: np.ndarray = (255 * np.clip((cut - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    return shades


def _image_tag(grey: UInt8[np.ndarray, "y x"], width: float, height: float) -> str:
    step = max(1, -(-max(grey.shape) // _MOST_PIXELS))
    encoded = base64.b64encode(png(grey[::step, ::step])).decode()
    return (
        f'<image href="data:image/png;base64,{encoded}" width="{width:.6g}" height="{height:.6g}" '
        f'preserveAspectRatio="none"/>'
    )
