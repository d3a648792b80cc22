"""Plots of a comparison as SVG files that need no style sheet: they stand in the report and in documents alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from medseg.experiments.ranking import Ranking
from medseg.pictures.charts import Points
from medseg.pictures.style import SERIES

_STYLE = (
    "<style>.mp{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}.mp text{fill:#1b1f24}"
    ".mp .mute{fill:#59636e}.mp .ground{stroke:#d0d7de}.mp .other{stroke:#c3cad2}.mp .own{stroke:#0072b2}"
    ".mp .dot{fill:#0072b2}.mp .bar{stroke:#0072b2}.mp .sheet{fill:#fff}"
    "@media (prefers-color-scheme:dark){.mp text{fill:#e6edf3}"
    ".mp .mute{fill:#9aa6b2}.mp .ground{stroke:#3a434d}.mp .other{stroke:#3f4852}.mp .own,.mp .bar{stroke:#6cb6e8}"
    ".mp .dot{fill:#6cb6e8}.mp .sheet{fill:#0d1117}}</style>"
)
_SHEET = '<rect class="sheet" width="100%" height="100%"/>'
_ROW, _NAME_WIDTH, _PLOT_WIDTH, _VALUE_WIDTH = 22.0, 300.0, 340.0, 130.0
_PANEL, _PANEL_HEIGHT, _GAP, _COLUMNS = 200.0, 120.0, 24.0, 4
_LINE = 14.0
_LETTER = 6.6  # mean width of a letter of 12 px
_BELOW_THE_LAST = 0.15  # how much of a learning curve below the worst end is worth showing


def interval_plot(ranking: Ranking, measure: str = "dice", *, name: str = "Dice") -> str:
    """Draw a line per job: its mean and the 95 % interval, best first.

    Args:
        ranking: Of one organ.
        measure: A key of `medseg.experiments.ranking.Entry.mean`.
        name: What the axis is called.
    """
    entries = ranking.entries
    ticks = _nice([entry.ci95[measure][0] for entry in entries], [entry.ci95[measure][1] for entry in entries], most=5)
    low, high = ticks[0], ticks[-1]
    bottom = len(entries) * _ROW
    width = _NAME_WIDTH + _PLOT_WIDTH + _VALUE_WIDTH

    def place(value: float) -> float:
        return _NAME_WIDTH + 8 + (value - low) / (high - low) * (_PLOT_WIDTH - 16)

    parts = []
    for index, entry in enumerate(entries):
        y, (first, last), mean = (index + 0.5) * _ROW, entry.ci95[measure], entry.mean[measure]
        parts.append(
            f'<text x="{_NAME_WIDTH - 10:g}" y="{y + 4:g}" text-anchor="end">{_short(entry.title, _NAME_WIDTH)}</text>'
            f'<line class="bar" x1="{place(first):.1f}" x2="{place(last):.1f}" y1="{y:g}" y2="{y:g}" stroke-width="2"/>'
            f'<circle class="dot" cx="{place(mean):.1f}" cy="{y:g}" r="4"/>'
            f'<text class="mute" x="{_NAME_WIDTH + _PLOT_WIDTH + 8:g}" y="{y + 4:g}">{mean:.3f} '
            f"({first:.3f}-{last:.3f})</text>"
        )
    for tick in ticks:
        parts.append(
            f'<line class="ground" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="0" y2="{bottom:g}"/>'
            f'<text class="mute" x="{place(tick):.1f}" y="{bottom + 16:g}" text-anchor="middle">{tick:.3g}</text>'
        )
    best = f"best {entries[0].title} with {entries[0].mean[measure]:.3f}" if entries else "nothing"
    text = f"Mean {name} and 95 % interval of {ranking.organ} by job: {best}"
    return _svg(width, bottom + 24, text, "".join(parts[len(entries) :] + parts[: len(entries)]))


def curve_plot(curves: Mapping[str, Points], *, x_name: str, y_name: str = "val/dice") -> str:
    """Draw a small panel per job: its own curve over those of all others, all on one scale.

    Args:
        curves: Title -> points; the order of the panels.
        x_name: Unit of the horizontal axis.
        y_name: What is drawn.
    """
    drawn = {title: curve for title, curve in curves.items() if curve}
    if not drawn:
        return ""
    x_high = max(curve[-1][0] for curve in drawn.values()) or 1.0
    last = [curve[-1][1] for curve in drawn.values()]
    y_low = max(0.0, math.floor(10 * (min(last) - _BELOW_THE_LAST)) / 10)
    y_high = max(y_low + 0.1, math.ceil(20 * max(y for curve in drawn.values() for _, y in curve)) / 20)

    def path(curve: Points) -> str:
        places = ((x / x_high * _PANEL, _PANEL_HEIGHT * (1 - (y - y_low) / (y_high - y_low))) for x, y in curve)
        return " ".join(f"{x:.1f},{min(y, _PANEL_HEIGHT):.1f}" for x, y in places)

    paths = {title: path(curve) for title, curve in drawn.items()}
    others = "".join(f'<polyline class="other" points="{points}" fill="none"/>' for points in paths.values())
    step_x, step_y = _PANEL + _GAP + 20, _PANEL_HEIGHT + 2 * _GAP + 8
    panels = []
    for index, (title, curve) in enumerate(drawn.items()):
        left, top = 34 + (index % _COLUMNS) * step_x, 20 + (index // _COLUMNS) * step_y
        panels.append(
            f'<g transform="translate({left:g} {top:g})"><text y="-7">{_short(title, _PANEL)}</text>'
            f'<line class="ground" x1="0" x2="{_PANEL:g}" y1="{_PANEL_HEIGHT:g}" y2="{_PANEL_HEIGHT:g}"/>'
            f'<line class="ground" x1="0" x2="{_PANEL:g}" y1="0" y2="0"/>'
            f'<text class="mute" x="-5" y="4" text-anchor="end">{y_high:.3g}</text>'
            f'<text class="mute" x="-5" y="{_PANEL_HEIGHT + 4:g}" text-anchor="end">{y_low:.3g}</text>'
            f'<text class="mute" x="0" y="{_PANEL_HEIGHT + 17:g}">0</text>'
            f'<text class="mute" x="{_PANEL:g}" y="{_PANEL_HEIGHT + 17:g}" text-anchor="end">'
            f"{x_name} {_tick(x_high)}</text>"
            f'{others}<polyline class="own" points="{paths[title]}" fill="none" stroke-width="2.5"/>'
            f'<text x="{_PANEL - 4:g}" y="{_PANEL_HEIGHT - 8:g}" text-anchor="end">{curve[-1][1]:.3f}</text></g>'
        )
    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // _COLUMNS)
    text = f"{y_name} over {x_name}: " + "; ".join(f"{title} ends at {c[-1][1]:.3f}" for title, c in drawn.items())
    return _svg(34 + columns * step_x, 12 + rows * step_y, text, "".join(panels))


def standalone(drawing: str) -> str:
    """A plot for a file: on a sheet of its own, so that a dark page cannot swallow dark letters."""
    return drawing.replace("</style>", f"</style>{_SHEET}", 1)


def cost_plot(points: Mapping[str, tuple[float, float]], *, x_name: str, y_name: str) -> str:
    """Draw a dot per job, such as its Dice over the cost of its step; the names beside the dots.

    Args:
        points: Title -> (x, y).
        x_name: Label of the horizontal axis.
        y_name: Label of the vertical axis.
    """
    if not points:
        return ""
    width, top, height, left = 720.0, 32.0, 376.0, 60.0
    x_ticks = _nice([x for x, _ in points.values()], [x for x, _ in points.values()], most=4)
    y_ticks = _nice([y for _, y in points.values()], [y for _, y in points.values()], most=4)
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]
    parts = []
    for tick in y_ticks:
        y = height - (tick - y_low) / (y_high - y_low) * (height - top)
        parts.append(
            f'<line class="ground" x1="{left:g}" x2="{width - 160:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="mute" x="{left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    for tick in x_ticks:
        x = left + (tick - x_low) / (x_high - x_low) * (width - left - 170)
        parts.append(f'<text class="mute" x="{x:.1f}" y="{height + 18:g}" text-anchor="middle">{_tick(tick)}</text>')
    line = -math.inf
    for index, (title, (across, up)) in enumerate(sorted(points.items(), key=lambda point: -point[1][1])):
        x = left + (across - x_low) / (x_high - x_low) * (width - left - 170)
        y = height - (up - y_low) / (y_high - y_low) * (height - top)
        line = max(line + _LINE, y)  # names do not lie on each other
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{SERIES[index % len(SERIES)][0]}"/>'
            f'<line class="ground" x1="{x + 6:.1f}" x2="{x + 18:.1f}" y1="{y:.1f}" y2="{line:.1f}"/>'
            f'<text x="{x + 21:.1f}" y="{line + 4:.1f}">{_short(title, 170.0)}</text>'
        )
    parts.append(
        f'<text class="mute" x="{width - 160:g}" y="{height + 36:g}" text-anchor="end">{escape(x_name)}</text>'
    )
    parts.append(f'<text class="mute" x="4" y="12">{escape(y_name)}</text>')
    return _svg(width, max(height, line) + 44, f"{y_name} over {x_name} by job", "".join(parts))


def _tick(value: float) -> str:
    """Three digits, and never a power of ten.

    Example:
        >>> _tick(0.25), _tick(1234.0)
        ('0.25', '1234')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _short(title: str, width: float) -> str:
    """As much of a title as fits; the whole of it is said when pointed at."""
    room = int(width / _LETTER)
    shown = title if len(title) <= room else f"{title[: room - 1]}…"
    return f"{escape(shown)}<title>{escape(title)}</title>"


def _nice(lows: Sequence[float], highs: Sequence[float], *, most: int) -> list[float]:
    """Round ticks from below the lowest to above the highest, and no further: a Dice has no 1.2.

    Example:
        >>> _nice([0.38], [0.935], most=5)
        [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = min(lows, default=0.0), max(highs, default=1.0)
    rough = max(high - low, 1e-6) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * magnitude
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
    return [low, high]


def _svg(width: float, height: float, text: str, content: str) -> str:
    return (
        f'<svg class="mp" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" style="max-width:100%;height:auto" role="img" aria-label="{escape(text)}">'
        f"{_STYLE}{content}</svg>"
    )
