"""What every chart stands on: a frame from data to pixels, its marks, and one rule for the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medseg.pictures.markup import Markup, element

_LETTER = 6.6  # mean width of a letter of 12 px

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """A rectangle of pixels over a rectangle of data; what lies beyond an end of an axis is drawn at that end.

    Attributes:
        left, top, width, height: Of the pixels.
        x: Both ends of the data from left to right.
        y: Both ends of the data from the bottom up.
    """

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies, in pixels."""
        return self.left + _share(x, *self.x) * self.width, self.top + (1 - _share(y, *self.y)) * self.height

    def curve(self, points: Points, **look: object) -> Markup:
        """A line through points; a dot where it is a single one."""
        places = [self.at(*point) for point in points]
        if len(places) == 1:
            return element(
                "circle", cx=places[0][0], cy=places[0][1], r=3.5, fill=look.get("stroke"), css=look.get("css")
            )
        return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), fill="none", **look)

    def line(self, start: tuple[float, float], end: tuple[float, float], **look: object) -> Markup:
        """A straight line between two points of the data."""
        (x1, y1), (x2, y2) = self.at(*start), self.at(*end)
        return element("line", x1=x1, x2=x2, y1=y1, y2=y2, **look)

    def levels(self, texts: dict[float, str]) -> list[Markup]:
        """A line across at each tick of the y axis, its number on the left."""
        marks = []
        for value, text in texts.items():
            x, y = self.at(self.x[0], value)
            marks += [self.line((self.x[0], value), (self.x[1], value), css="ground"), label(text, x - 6, y + 4, "end")]
        return marks

    def x_ends(self, name: str) -> list[Markup]:
        """Both ends of the x axis as numbers below the frame, its name before the last; one in the middle if equal."""
        y = self.top + self.height + 17
        first, last = written(self.x)[self.x[0]], f"{name} {written(self.x)[self.x[1]]}"
        if self.x[0] == self.x[1]:
            return [label(last, self.left + self.width / 2, y, "middle")]
        return [label(first, self.left, y), label(last, self.left + self.width, y, "end")]


def label(text: str, x: float, y: float, anchor: str = "", *, css: str = "mute", room: float = math.inf) -> Markup:
    """A text; of one that is too long for its room in pixels as much as fits, and the whole where it is pointed at."""
    letters = room / _LETTER
    shown = text if len(text) <= letters else f"{text[: int(letters) - 1]}…"
    whole = [] if shown == text else [element("title", text)]
    return element("text", shown, *whole, x=x, y=y, text_anchor=anchor, css=css)


def ticks(values: Iterable[float], *, most: int = 4) -> dict[float, str]:
    """Round ticks from below the least to above the greatest value and no further, since a Dice has no 1.2; with texts.

    One value is held against 0.

    Example:
        >>> list(ticks([0.38, 0.935], most=5)), list(ticks([0.0131, 0.0134]).values()), list(ticks([1234.0]))
        ([0.2, 0.4, 0.6, 0.8, 1.0], ['0.0131', '0.0132', '0.0133', '0.0134'], [0.0, 500.0, 1000.0, 1500.0])
    """
    known = list(values)
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low == high:
        low, high = (min(low, 0.0), max(high, 0.0)) if low else (0.0, 1.0)
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * magnitude
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return written([round(number * step, 12) for number in range(first, max(last, first + 1) + 1)])


def written(values: Sequence[float]) -> dict[float, str]:
    """Numbers with as few digits as tell them apart, three at least, and never a power of ten above 1.

    Example:
        >>> written([0.0, 1234.0, 0.25])
        {0.0: '0', 1234.0: '1234', 0.25: '0.25'}
    """
    for digits in range(3, 8):
        texts = [f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return dict(zip(values, texts, strict=True))


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high != low else 0.5
