"""Charts as inline SVG: intervals, box plots and curves, each with a text that says the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medseg.pictures.style import SERIES

_WIDTH, _HEIGHT = 360.0, 200.0
_LEFT, _BOTTOM, _TOP, _RIGHT = 56.0, 24.0, 8.0, 8.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Box:
    """Tukey's five numbers: quartiles, and the last cases within 1.5 interquartile ranges of them."""

    low: float
    first: float
    median: float
    third: float
    high: float


def box_of(values: Sequence[float]) -> Box:
    """Draw Tukey's five numbers from the cases.

    Example:
        >>> box_of([1.0, 2.0, 3.0, 4.0, 100.0])
        Box(low=1.0, first=2.0, median=3.0, third=4.0, high=4.0)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    first, median, third = (float(value) for value in np.percentile(ordered, [25, 50, 75]))
    reach = 1.5 * (third - first)
    inside = ordered[(ordered >= first - reach) & (ordered <= third + reach)]
    return Box(float(inside[0]), first, median, third, float(inside[-1]))


def box_row(name: str, measure: str, values: Sequence[float], *, axis: tuple[float, float]) -> str:
    """Draw one line of a box plot: name, box, and a tick per case; it stretches to any width.

    What lies beyond an end of the axis is drawn at that end.
    """
    box = box_of(values)
    places = np.clip([_scale(value, *axis, 0.0, 100.0) for value in values], 0.0, 100.0)
    x = {
        key: float(np.clip(_scale(getattr(box, key), *axis, 0.0, 100.0), 0.0, 100.0))
        for key in ("low", "first", "median", "third", "high")
    }
    ticks = "".join(f"M{place:.2f} 17v7" for place in places)
    text = (
        f"{name}, {measure}: median {box.median:.3g}, middle half {box.first:.3g} to {box.third:.3g}, "
        f"whiskers {box.low:.3g} to {box.high:.3g}, {len(values)} cases"
    )
    return (
        f'<div class="row"><span>{escape(name)}</span><svg viewBox="0 0 100 26" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(text)}"><title>{escape(text)}</title>'
        f'<line class="ground" x1="0" x2="100" y1="25" y2="25"/>'
        f'<line class="whisker" x1="{x["low"]:.2f}" x2="{x["high"]:.2f}" y1="8" y2="8"/>'
        f'<rect class="box" x="{x["first"]:.2f}" y="2" width="{x["third"] - x["first"]:.2f}" height="12"/>'
        f'<line class="median" x1="{x["median"]:.2f}" x2="{x["median"]:.2f}" y1="2" y2="14"/>'
        f'<path class="cases" d="{ticks}"/></svg></div>'
    )


def box_plot(measure: str, values: Mapping[str, Sequence[float]], *, axis: tuple[float, float]) -> str:
    """Draw the box plot of one measure, a line per organ."""
    rows = "".join(box_row(name, measure, numbers, axis=axis) for name, numbers in values.items())
    low, high = axis
    labels = "".join(f"<span>{low + share * (high - low):.3g}</span>" for share in (0, 0.25, 0.5, 0.75, 1))
    return (
        f"<figure><figcaption>{escape(measure)}</figcaption>{rows}"
        f'<div class="row" aria-hidden="true"><span></span><div class="axis">{labels}</div></div></figure>'
    )


def interval_bar(mean: float, low: float, high: float) -> str:
    """Draw a mean and its interval on a scale from 0 to 1."""
    text = f"{mean:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    return (
        f'<svg viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{text}">'
        f'<line class="ground" x1="0" x2="100" y1="7" y2="7"/>'
        f'<rect class="box" x="{100 * low:.2f}" y="3" width="{100 * (high - low):.2f}" height="8"/>'
        f'<line class="median" x1="{100 * mean:.2f}" x2="{100 * mean:.2f}" y1="1" y2="13"/></svg>'
    )


def line_chart(title: str, series: Mapping[str, Points], *, x_name: str) -> str:
    """Draw curves over one axis; the line's dash tells them apart where colour cannot."""
    points = [point for curve in series.values() for point in curve]
    steps = [x for x, _ in points]
    x_low, x_high = min(steps), max(steps)
    y_low, y_high = overlap_axis([y for _, y in points]) if "dice" in title else _range([y for _, y in points])
    lines, legend = [], []
    for index, (name, curve) in enumerate(series.items()):
        colour, dash = SERIES[index % len(SERIES)]
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        places = [
            (_scale(x, x_low, x_high, _LEFT, _WIDTH - _RIGHT), _scale(y, y_low, y_high, _HEIGHT - _BOTTOM, _TOP))
            for x, y in _thinned(curve)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline {style} points="{path}"/>')
        if len(places) == 1:  # a line of one point is not drawn
            lines.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3.5" fill="{colour}"/>')
        legend.append(
            f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path {style} d="M0 4h28"/></svg>{escape(name)}</li>'
        )
    text = f"{title}: " + "; ".join(
        f"{name} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}" for name, curve in series.items()
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{escape(text)}">{_axes(x_low, x_high, y_low, y_high, x_name)}{"".join(lines)}</svg>'
        f'<ul class="legend">{"".join(legend) if len(legend) > 1 else ""}</ul></figure>'
    )


def overlap_axis(values: Sequence[float]) -> tuple[float, float]:
    """Let the axis of a share end at 1 and begin at the tenth below its least value.

    Example:
        >>> overlap_axis([0.86, 0.93])
        (0.8, 1.0)
    """
    return min(0.9, max(0.0, int(10 * min(values, default=0.0)) / 10)), 1.0


def round_end(largest: float) -> float:
    """Let an axis from 0 end at four round steps.

    Example:
        >>> round_end(103.0), round_end(7.2), round_end(0.0)
        (120.0, 8.0, 1.0)
    """
    if largest <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(largest / 4))
    return next(4 * step * scale for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if 4 * step * scale >= largest)


def _tick_texts(values: Sequence[float]) -> list[str]:
    """As few digits as tell the ticks apart.

    Example:
        >>> _tick_texts([0.0131, 0.01325, 0.0134]), _tick_texts([0.2, 0.6, 1.0])
        (['0.0131', '0.0132', '0.0134'], ['0.2', '0.6', '1'])
    """
    for digits in range(2, 7):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _axes(x_low: float, x_high: float, y_low: float, y_high: float, x_name: str) -> str:
    floor, edge = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    shares = (0.0, 0.5, 1.0)
    for share, text in zip(shares, _tick_texts([y_low + share * (y_high - y_low) for share in shares]), strict=True):
        y = _scale(share, 0.0, 1.0, floor, _TOP)
        parts.append(f'<line class="ground" x1="{_LEFT}" x2="{edge}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    if x_low == x_high:
        middle = (_LEFT + edge) / 2
        parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)} {x_low:g}</text>')
    else:
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{x_low:g}</text>')
        parts.append(f'<text x="{edge}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_name)} {x_high:g}</text>')
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest; of one value from 0 to twice that."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (min(2 * low, 0.0), max(2 * low, 0.0)) if low else (0.0, 1.0)


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + ((value - low) / (high - low) if high > low else 0.5) * (end - start)


def _thinned(curve: Points, most: int = 400) -> Points:
    step = max(1, -(-len(curve) // most))
    return [*curve[::step], curve[-1]] if step > 1 else curve
