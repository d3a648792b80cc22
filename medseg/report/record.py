"""What a report tells beside the scores: the curves of the training, the versions and the machine."""

from __future__ import annotations

import csv
import math
import os
import platform
from pathlib import Path

from medseg import __version__
from medseg.checkpoints.origin import versions

Curve = tuple[tuple[float, float], ...]


def read_columns(path: Path) -> dict[str, Curve]:
    """What a metrics.csv says, by column: its numbers over steps; empty where there is no file."""
    if not path.is_file():
        return {}
    lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    columns: dict[str, Curve] = {}
    for column in lines[0] if lines else ():
        if column in ("step", "epoch", None):
            continue
        steps = (_number(line.get("step") or str(index)) for index, line in enumerate(lines))
        points = tuple(
            point
            for point in zip(steps, (_number(line[column]) for line in lines), strict=True)
            if all(map(math.isfinite, point))
        )
        if points:
            columns[column] = points
    return columns


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """A metrics.csv as charts: training loss, validation Dice, learning rate and what else was logged.

    Columns that share the first two parts of their name (``val/dice``, ``val/dice/liver``) share a chart, and so do all
    terms of the training loss. Validation comes first.
    """
    charts: dict[str, dict[str, Curve]] = {}
    for column, points in read_columns(path).items():
        charts.setdefault(_chart_of(column), {})[column] = points
    return dict(
        sorted(charts.items(), key=lambda chart: (not chart[0].startswith("val"), chart[0] != "train", chart[0]))
    )


def _chart_of(column: str) -> str:
    parts = column.split("/")
    if parts[0].startswith("lr"):
        return "learning rate"
    return "train" if parts[0] == "train" else "/".join(parts[:2])


def environment() -> dict[str, str]:
    """Name the versions and the machine that made the scores."""
    machine = {"System": platform.platform(terse=True), "Processors": str(os.cpu_count() or "?")}
    return {"medseg": __version__, **versions(), **machine}


def _number(cell: str | None) -> float:
    """Read a cell; one that is empty, or cut off in the middle of a crash, is no number."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan
