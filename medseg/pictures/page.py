"""What every page is made of: head and contents, tiles, chapters, listings and definitions, in one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from html import escape

from medseg import __version__
from medseg.pictures.style import CSS

Chapter = tuple[str, str, str]
"""Anchor, heading and content of a part of a page."""

Tile = tuple[str, str, str]
"""Name, value and CSS class of a large number."""


def page(title: str, tiles: Sequence[Tile], chapters: Iterable[Chapter]) -> str:
    """Assemble a page that needs nothing else, not even a network; empty chapters are left out, from the contents too.

    Args:
        title: Heading, as plain text.
        tiles: The few numbers on top.
        chapters: In order; their content is HTML.
    """
    filled = [chapter for chapter in chapters if chapter[2]]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in filled)
    body = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>' for anchor, heading, content in filled
    )
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><header><h1>{escape(title)}</h1>"
        f'<p class="soft">medseg {escape(__version__)}, {made}</p>{_tiles(tiles)}'
        f'<nav aria-label="Contents">{links}</nav></header><main>{body}</main></body></html>\n'
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, bars: Sequence[int] = (), total: bool = False) -> str:
    """A table that scrolls sideways where the page is narrow.

    Args:
        heads: Column headings, as HTML.
        rows: Cells, as HTML; the first of each row names it.
        bars: Columns that hold drawings.
        total: Whether the last row sums up the others.
    """
    columns = "".join(f"<th scope=col>{head}</th>" for head in heads)
    lines = [_row(cells, bars) for cells in rows]
    if total and lines:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="total">', 1)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _row(cells: Sequence[str], bars: Sequence[int]) -> str:
    name, *others = cells
    inner = "".join(
        f'<td class="bar">{cell}</td>' if index in bars else f"<td>{cell}</td>"
        for index, cell in enumerate(others, start=1)
    )
    return f"<tr><th scope=row>{name}</th>{inner}</tr>"


def listing(text: str) -> str:
    """Text as it is, such as a config; nothing where it is blank."""
    return f'<pre tabindex="0">{escape(text.rstrip())}</pre>' if text.strip() else ""


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they mean, as plain text."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def bad(count: int) -> str:
    """A number that should be 0."""
    return f'<span class="bad">{count}</span>' if count else "0"


def _tiles(tiles: Sequence[Tile]) -> str:
    cells = "".join(
        f'<div class="tile"><b class="{mark}">{value}</b><span class="soft">{name}</span></div>'
        for name, value, mark in tiles
    )
    return f'<div class="tiles">{cells}</div>'
