"""Charts as inline SVG: boxes, intervals, curves and costs, each with a text that says the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from medseg.pictures.frame import Frame, Points, label, ticks
from medseg.pictures.markup import Markup, drawing, element, together
from medseg.pictures.style import PLOTS, SERIES

_ROW, _NAME_WIDTH, _PLOT_WIDTH, _VALUE_WIDTH = 22.0, 300.0, 340.0, 130.0
_PANEL, _PANEL_HEIGHT, _COLUMNS = 200.0, 120.0, 4
_LINE = 14.0
_BELOW_THE_LAST = 0.15  # how much of a learning curve below the worst end is worth showing
_MOST_POINTS = 400


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


def box_plot(measure: str, values: Mapping[str, Sequence[float]], *, inside: Sequence[float]) -> Markup:
    """Draw a line per organ: name, box, a tick per case; the axis holds what is ``inside``, the rest is at its ends."""
    texts = ticks(inside)
    axis = min(texts), max(texts)
    scale = element("div", *(element("span", text) for text in texts.values()), css="axis")
    return element(
        "figure",
        element("figcaption", measure),
        *(_box_row(name, measure, numbers, Frame(0.0, 0.0, 100.0, 26.0, x=axis)) for name, numbers in values.items()),
        element("div", element("span"), scale, css="row", aria_hidden="true"),
    )


def _box_row(name: str, measure: str, values: Sequence[float], frame: Frame) -> Markup:
    box = box_of(values)
    low, first, median, third, high = (frame.at(value, 0.0)[0] for value in astuple(box))
    text = (
        f"{name}, {measure}: median {box.median:.3g}, middle half {box.first:.3g} to {box.third:.3g}, "
        f"whiskers {box.low:.3g} to {box.high:.3g}, {len(values)} cases"
    )
    marks = (
        element("title", text),
        element("line", css="ground", x1=0, x2=100, y1=25, y2=25),
        element("line", css="whisker", x1=low, x2=high, y1=8, y2=8),
        element("rect", css="box", x=first, y=2, width=third - first, height=12),
        element("line", css="median", x1=median, x2=median, y1=2, y2=14),
        element(
            "path", css="cases", d="".join(dict.fromkeys(f"M{frame.at(value, 0.0)[0]:.1f} 17v7" for value in values))
        ),
    )
    return element(
        "div", element("span", name), drawing(100.0, 26.0, text, *marks, preserveAspectRatio="none"), css="row"
    )


def interval_bar(mean: float, low: float, high: float) -> Markup:
    """Draw a mean and its interval on a scale from 0 to 1."""
    return drawing(
        *(100.0, 14.0, f"{mean:.3f}, 95 % interval {low:.3f} to {high:.3f}"),
        element("line", css="ground", x1=0, x2=100, y1=7, y2=7),
        element("rect", css="box", x=100 * low, y=3, width=100 * (high - low), height=8),
        element("line", css="median", x1=100 * mean, x2=100 * mean, y1=1, y2=13),
        preserveAspectRatio="none",
    )


def line_chart(title: str, series: Mapping[str, Points], *, x_name: str, ends_at: Sequence[float] = ()) -> Markup:
    """Draw curves over one axis; dashes tell them apart where colour cannot. The y axis reaches ``ends_at``, too."""
    steps = [x for curve in series.values() for x, _ in curve]
    texts = ticks([*ends_at, *(y for curve in series.values() for _, y in curve)])
    frame = Frame(56.0, 8.0, 296.0, 164.0, (min(steps), max(steps)), (min(texts), max(texts)))
    looks = [{"stroke": colour, "stroke_width": 2, "stroke_dasharray": dash} for colour, dash in SERIES]
    styled = [(name, curve, looks[index % len(looks)]) for index, (name, curve) in enumerate(series.items())]
    text = f"{title}: " + "; ".join(
        f"{name} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}" for name, curve in series.items()
    )
    return element(
        "figure",
        element("figcaption", title),
        drawing(
            *(360.0, 200.0, text),
            *frame.levels(texts),
            *(frame.curve(_thinned(curve), **look) for _, curve, look in styled),
            *frame.x_ends(x_name),
            css="plot",
        ),
        legend({name: look for name, _, look in styled} if len(styled) > 1 else {}),
    )


def legend(lines: Mapping[str, Mapping[str, object]]) -> Markup:
    """What each kind of line stands for, beside a piece of it."""
    return element(
        "ul",
        *(
            element("li", drawing(28.0, 8.0, "", element("path", d="M0 4h28", fill="none", **look)), name)
            for name, look in lines.items()
        ),
        css="legend",
    )


def interval_plot(intervals: Mapping[str, tuple[float, float, float]], *, says: str) -> Markup:
    """Draw a line per job, from above: its mean and the 95 % interval, given as mean, low and high."""
    texts = ticks((end for _, *ends in intervals.values() for end in ends), most=5)
    bottom = len(intervals) * _ROW
    frame = Frame(_NAME_WIDTH + 8, 0.0, _PLOT_WIDTH - 16, bottom, (min(texts), max(texts)), (bottom, 0.0))
    parts = []
    for value, text in texts.items():
        x, y = frame.at(value, bottom)
        parts += [frame.line((value, 0.0), (value, bottom), css="ground"), label(text, x, bottom + 16, "middle")]
    for index, (title, (mean, low, high)) in enumerate(intervals.items()):
        level = (index + 0.5) * _ROW
        x, y = frame.at(mean, level)
        parts += [
            label(title, _NAME_WIDTH - 10, y + 4, "end", css="", room=_NAME_WIDTH),
            frame.line((low, level), (high, level), css="own", stroke_width=2),
            element("circle", css="dot", cx=x, cy=y, r=4),
            label(f"{mean:.3f} ({low:.3f}-{high:.3f})", _NAME_WIDTH + _PLOT_WIDTH + 8, y + 4),
        ]
    return _plot(_NAME_WIDTH + _PLOT_WIDTH + _VALUE_WIDTH, bottom + 24, says, parts)


def curve_plot(curves: Mapping[str, Points], *, x_name: str, y_name: str = "val/dice") -> Markup:
    """Draw a small panel per job: its own curve over those of all others, all on one scale."""
    drawn = {title: curve for title, curve in curves.items() if curve}
    if not drawn:
        return Markup("")
    lowest = max(0.0, min(curve[-1][1] for curve in drawn.values()) - _BELOW_THE_LAST)
    texts = ticks([lowest, *(y for curve in drawn.values() for _, y in curve if y > lowest)], most=5)
    texts = {value: text for value, text in texts.items() if value in (min(texts), max(texts))}
    ends = (0.0, max(curve[-1][0] for curve in drawn.values()) or 1.0), (min(texts), max(texts))
    panels = []
    for index, (title, curve) in enumerate(drawn.items()):
        left, top = 34.0 + (index % _COLUMNS) * (_PANEL + 44), 20.0 + (index // _COLUMNS) * (_PANEL_HEIGHT + 56)
        frame = Frame(left, top, _PANEL, _PANEL_HEIGHT, *ends)
        panels += [
            label(title, left, top - 7, css="", room=_PANEL),
            *frame.levels(texts),
            *frame.x_ends(x_name),
            *(frame.curve(other, css="other") for other in drawn.values()),
            frame.curve(curve, css="own", stroke_width=2.5),
            label(f"{curve[-1][1]:.3f}", left + _PANEL - 4, top + _PANEL_HEIGHT - 8, "end", css=""),
        ]
    columns, rows = min(_COLUMNS, len(drawn)), -(-len(drawn) // _COLUMNS)
    says = f"{y_name} over {x_name}: " + "; ".join(f"{title} ends at {c[-1][1]:.3f}" for title, c in drawn.items())
    return _plot(34 + columns * (_PANEL + 44), 12 + rows * (_PANEL_HEIGHT + 56), says, panels)


def cost_plot(points: Mapping[str, tuple[float, float]], *, x_name: str, y_name: str) -> Markup:
    """Draw a dot per job, such as its Dice over the cost of its step; the names beside the dots."""
    if not points:
        return Markup("")
    x_texts, y_texts = (ticks(point[axis] for point in points.values()) for axis in (0, 1))
    frame = Frame(60.0, 32.0, 490.0, 344.0, (min(x_texts), max(x_texts)), (min(y_texts), max(y_texts)))
    parts = frame.levels(y_texts)
    parts += [label(text, frame.at(value, 0.0)[0], 394.0, "middle") for value, text in x_texts.items()]
    line = -math.inf
    for index, (title, point) in enumerate(sorted(points.items(), key=lambda point: -point[1][1])):
        x, y = frame.at(*point)
        line = max(line + _LINE, y)  # names do not lie on each other
        parts += [
            element("circle", cx=x, cy=y, r=5, fill=SERIES[index % len(SERIES)][0]),
            element("line", css="ground", x1=x + 6, x2=x + 18, y1=y, y2=line),
            label(title, x + 21, line + 4, css="", room=170.0),
        ]
    parts += [label(x_name, 560.0, 412.0, "end"), label(y_name, 4.0, 12.0)]
    return _plot(720.0, max(376.0, line) + 44, f"{y_name} over {x_name} by job", parts)


def standalone(plot: str) -> str:
    """A plot for a file: with its style, on a sheet of its own, so that a dark page cannot swallow dark letters."""
    style = element("style", Markup(PLOTS)) + element("rect", css="sheet", width="100%", height="100%")
    head, _, rest = plot.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}'


def _plot(width: float, height: float, says: str, parts: Sequence[str]) -> Markup:
    fits = "max-width:100%;height:auto"
    return drawing(width, height, says, together(parts), css="plot", width=width, style=fits)


def _thinned(curve: Points) -> Points:
    step = -(-len(curve) // _MOST_POINTS)
    return [*curve[::step], curve[-1]] if step > 1 else curve
