"""Docstrings taken apart, for the pages that are made of them."""

from __future__ import annotations

import inspect
import re


def summary(docstring: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join(inspect.cleandoc(docstring or "").split("\n\n")[0].split())


def prose(docstring: str | None) -> list[str]:
    """The paragraphs between the first and the first section, such as ``Args:``, a line each."""
    text = re.split(r"\n(?:Args|Attributes|Returns|Raises|Example|Paper):", inspect.cleandoc(docstring or ""))[0]
    return [" ".join(part.split()) for part in text.split("\n\n")[1:] if part.strip()]


def arguments(docstring: str | None) -> dict[str, str]:
    r"""What the section ``Args:`` says of each name, on one line.

    Example:
        >>> arguments("Add.\n\nArgs:\n    a: One number.\n    b: Another,\n        of any size.\n")
        {'a': 'One number.', 'b': 'Another, of any size.'}
    """
    found = re.search(r"\nArgs:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(docstring or ""), re.DOTALL)
    entries = re.findall(r"^    (\*{0,2}\w+): (.*(?:\n     .*)*)", found[1] if found else "", re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}
