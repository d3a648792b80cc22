"""The look of the report: one style sheet, light and dark, narrow and wide, legible without colour."""

from __future__ import annotations

from pathlib import Path

SERIES = (
    ("#0072b2", ""),
    ("#d55e00", "7 4"),
    ("#009e73", "2 3"),
    ("#cc79a7", "9 3 2 3"),
    ("#b8860b", "5 2"),
    ("#56b4e9", "1 2"),
)
"""Colour and dash of the lines of a chart, in order: Okabe and Ito's palette, told apart by colour-blind eyes and, by
the dash, on a black and white print."""

_FILES = ("plots.css", "page.css", "sort.js")

PLOTS, CSS, SORT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _FILES)
"""Of the plots, in plain colours: they stand in files of their own too, which not only browsers read; of the page; and
what sorts its tables, which are whole without it."""
