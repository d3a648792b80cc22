"""What every page is made of: head and contents, tiles, chapters, listings and definitions, in one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from medseg import __version__
from medseg.pictures.markup import Markup, element, together
from medseg.pictures.style import CSS, PLOTS, SORT

Chapter = tuple[str, str, Markup]
"""Anchor, heading and content of a part of a page."""

Tile = tuple[str, str, str]
"""Name, value and CSS class of a large number."""


def page(title: str, tiles: Sequence[Tile], chapters: Iterable[Chapter]) -> str:
    """Assemble a page that needs nothing else, not even a network; empty chapters are left out, of the contents too."""
    filled = [chapter for chapter in chapters if chapter[2]]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(CSS + PLOTS)),
    )
    top = element(
        "header",
        element("h1", title),
        soft(f"medseg {__version__}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"),
        element("div", *(_tile(*tile) for tile in tiles), css="tiles"),
        element("nav", *(element("a", name, href=f"#{anchor}") for anchor, name, _ in filled), aria_label="Contents"),
    )
    body = (element("section", element("h2", name), content, id=anchor) for anchor, name, content in filled)
    script = element("script", Markup(SORT))
    whole = element("html", head, element("body", top, element("main", *body), script), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _tile(name: str, value: str, css: str) -> Markup:
    return element("div", element("b", value, css=css), element("span", name, css="soft"), css="tile")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    bars: Sequence[int] = (),
    total: bool = False,
    sortable: bool = False,
) -> Markup:
    """A table whose rows begin with their names.

    Args:
        heads: Of the columns.
        rows: A cell for each.
        bars: Columns of drawings.
        total: Whether the last row is one.
        sortable: Whether a click on a heading, of numbers but for the first, sorts the rows by it.
    """
    looks = ["bar" if column in bars else "" for column in range(len(heads))]
    names = (element("button", head, type="button") if sortable else head for head in heads)
    columns = (element("th", name, scope="col", css=css) for name, css in zip(names, looks, strict=True))
    cells = [
        (
            element("th", name, scope="row"),
            *(element("td", cell, css=css) for cell, css in zip(others, looks[1:], strict=True)),
        )
        for name, *others in rows
    ]
    lines = [element("tr", *row, css="total" * (total and row is cells[-1])) for row in cells]
    return scrolled(element("table", element("thead", element("tr", *columns)), element("tbody", *lines)))


def scrolled(content: str, **look: object) -> Markup:
    """What scrolls sideways where the page is narrow."""
    return element("div", content, css="scroll", tabindex=0, **look)


def soft(*text: str) -> Markup:
    """A paragraph that explains."""
    return element("p", *text, css="soft")


def folded(summary: str, content: str) -> Markup:
    """What is seen on demand."""
    return element("details", element("summary", summary), content)


def bullets(items: Iterable[Sequence[str]]) -> Markup:
    """A list, each item of one or several parts; nothing where there is no item."""
    listed = [element("li", *parts) for parts in items]
    return element("ul", *listed) if listed else Markup("")


def listing(text: str) -> Markup:
    """Text as it is, such as a config; nothing where it is blank."""
    return element("pre", text.rstrip(), tabindex=0) if text.strip() else Markup("")


def definitions(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they mean."""
    return element("dl", together(element("dt", name) + element("dd", value) for name, value in pairs))


def bad(count: int) -> str:
    """A number that should be 0."""
    return element("span", str(count), css="bad") if count else "0"
