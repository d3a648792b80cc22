"""A case in three planes as SVG: the image, the reference as a solid line, the prediction as a dashed one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Num, UInt8

from medseg.pictures.charts import legend
from medseg.pictures.markup import Markup, drawing, element
from medseg.pictures.slices import LEFT_AND_RIGHT, PLANES, png, slices, upright, windowed
from medseg.space.distance import bounding_box

_MARGIN_MM = 12.0
_MOST_PIXELS = 320
_REFERENCE = {"stroke": "#4dc3ff", "stroke_width": 2}
_PREDICTION = {"stroke": "#ffb000", "stroke_width": 2.2, "stroke_dasharray": "6 4"}
_HALO = {"stroke": "#000", "stroke_width": 4, "stroke_opacity": 0.55}  # keeps a light line legible on white


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a case, rows from the top of the picture, in an orientation that radiologists expect.

    Attributes:
        plane: Axial, coronal or sagittal.
        grey: The image, windowed to the organ and its surroundings; None without an image.
        prediction: A mask of the prediction for each organ.
        reference: Those of the reference.
        pixel_mm: Height and width of a pixel.
    """

    plane: str
    grey: UInt8[np.ndarray, "y x"] | None
    prediction: Bool[np.ndarray, "o y x"]
    reference: Bool[np.ndarray, "o y x"]
    pixel_mm: tuple[float, float]


def three_planes(
    image: Num[np.ndarray, "i j k"] | None,
    prediction: Bool[np.ndarray, "o i j k"],
    reference: Bool[np.ndarray, "o i j k"],
    *,
    spacing_mm: Sequence[float],
) -> tuple[Slice, ...]:
    """Cut the three planes in which prediction and reference differ most, or where they are largest if equal.

    Arrays are in RAS orientation, masks organ by organ; the view is cropped to the organs with a margin.
    """
    shape, there = reference.shape[1:], np.logical_or.reduce(reference)
    differs = np.logical_or.reduce(prediction ^ reference)
    organ = bounding_box(differs | there) or tuple(slice(0, size) for size in shape)
    box = tuple(
        slice(max(0, cut.start - round(_MARGIN_MM / step)), min(size, cut.stop + round(_MARGIN_MM / step)))
        for cut, step, size in zip(organ, spacing_mm, shape, strict=True)
    )
    centre = slices(there[box].shape, (differs if differs.any() else there)[box].astype(np.uint8))
    greys = None if image is None else windowed(image[box], _window(image[organ], image[box]))
    cuts = []
    for plane, axis in PLANES.items():
        ours, theirs = (
            np.stack([upright(mask[box], axis, centre[axis]) for mask in masks]) for masks in (prediction, reference)
        )
        grey = None if greys is None else upright(greys, axis, centre[axis])
        across, up = (spacing_mm[other] for other in range(3) if other != axis)
        cuts.append(Slice(plane, grey, ours, theirs, (up, across)))
    return tuple(cuts)


def draw_slice(cut: Slice, *, case: str, organ: str) -> Markup:
    """Draw one plane as a figure; outlines stay sharp and legible at any size."""
    rows, columns = cut.reference.shape[1:]
    high, wide = cut.pixel_mm
    width, height = columns * wide, rows * high
    letter = max(width, 0.6 * height)  # a tall picture is made small enough for the screen
    says = (
        f"{cut.plane} plane of {case} at {organ}: reference {int(cut.reference.sum())} pixels, prediction "
        f"{int(cut.prediction.sum())}, shared {int((cut.prediction & cut.reference).sum())}"
    )
    lines = (
        element("path", d="".join(map(outline, masks)), transform=f"scale({wide:.6g} {high:.6g})", fill="none", **look)
        for masks, look in ((cut.reference, _HALO), (cut.reference, _REFERENCE), (cut.prediction, _PREDICTION))
    )
    look = {"font_size": letter / 18, "fill": "#fff", "stroke": "#000", "stroke_width": letter / 120}
    letters = (
        element("text", side, x=width * x, y=height / 2, paint_order="stroke", text_anchor=anchor, **look)
        for side, x, anchor in zip(LEFT_AND_RIGHT[cut.plane], (0.02, 0.98), ("start", "end"), strict=True)
    )
    ground = () if cut.grey is None else (_ground(cut.grey, width, height),)
    picture = drawing(width, height, says, element("title", says), *ground, *lines, *letters)
    return element("figure", picture, element("figcaption", cut.plane))


def key() -> Markup:
    """Which line is which."""
    return legend({"reference, solid": _REFERENCE, "prediction, dashed": _PREDICTION})


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


def _ground(grey: UInt8[np.ndarray, "y x"], width: float, height: float) -> Markup:
    step = max(1, -(-max(grey.shape) // _MOST_PIXELS))
    encoded = base64.b64encode(png(grey[::step, ::step])).decode()
    where = f"data:image/png;base64,{encoded}"
    return element("image", href=where, width=width, height=height, preserveAspectRatio="none")
