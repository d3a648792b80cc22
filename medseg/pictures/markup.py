"""HTML and SVG out of values: text is escaped, what is markup already stands as it is."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup as Markup  # handed on to whoever writes pages

_EMPTY = frozenset(("circle", "image", "line", "meta", "path", "polyline", "rect"))


def element(name: str, /, *content: str, **attributes: object) -> Markup:
    """An element with its content and attributes.

    Args:
        name: Its tag.
        content: Text, which is escaped, or markup.
        attributes: ``css`` stands for ``class`` and an underscore for a hyphen; None and "" are left out.

    Example:
        >>> element("text", "a < b", css="mute", x=1 / 3, text_anchor="end")
        Markup('<text class="mute" x="0.333333" text-anchor="end">a &lt; b</text>')
    """
    given = {"class" if key == "css" else key.replace("_", "-"): value for key, value in attributes.items()}
    said = together(
        Markup(' {}="{}"').format(key, f"{value:.6g}" if isinstance(value, float) else value)
        for key, value in given.items()
        if value not in (None, "")
    )
    if name in _EMPTY and not content:
        return Markup("<{}{}/>").format(name, said)
    return Markup("<{0}{1}>{2}</{0}>").format(name, said, together(content))


def together(parts: Iterable[str]) -> Markup:
    """Parts one after the other; those that are text are escaped."""
    return Markup("").join(parts)


def drawing(width: float, height: float, says: str, /, *content: str, **attributes: object) -> Markup:
    """An SVG picture of its own coordinates, with a text that says what it shows; without one it is decoration."""
    read = {"role": "img", "aria_label": says} if says else {"aria_hidden": "true"}
    return element("svg", *content, viewBox=f"0 0 {width:.6g} {height:.6g}", **read, **attributes)
