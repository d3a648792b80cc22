"""What a person reads to choose a network: a line or a page each, from docstrings and signatures alone."""

from __future__ import annotations

import inspect
import re
from typing import Any

from medseg.errors import UsageError, meant
from medseg.machine.docstrings import arguments, prose, summary
from medseg.nets.table import NETS, list_nets


def rows() -> list[dict[str, Any]]:
    """Every network as plain data: name, summary, what it is for, knobs with defaults and meanings, paper."""
    return [_row(name) for name in list_nets()]


def overview() -> str:
    """The list of all networks as text, a paragraph each."""
    return "\n\n".join(f"{row['name']}\n    {row['summary']}\n    {row['paper']}" for row in rows())


def describe(name: str) -> str:
    """One network's page as text: what it is, when to take it, its knobs, its paper.

    Raises:
        UsageError: There is no such network; the nearest is named.

    Example:
        >>> print(describe("vnet").splitlines()[0])
        vnet: V-Net with its published width of 16 to 256 channels and four halvings (MONAI `VNet`).
    """
    if name not in NETS:
        raise UsageError(f"there is no network {name!r}{meant(name, list_nets())}", "See medseg nets for all of them")
    row = _row(name)
    knobs = [f"  {knob} = {told['default']!r}: {told['meaning']}" for knob, told in row["knobs"].items()]
    return "\n".join([f"{name}: {row['summary']}", "", *row["use"], "", "net_options:", *knobs, "", row["paper"]])


def _row(name: str) -> dict[str, Any]:
    text = inspect.getdoc(NETS[name]) or ""
    meanings = arguments(text)
    paper = re.search(r"\nPapers?: (.*?)(?:\n\n|\Z)", text, re.DOTALL)
    return {
        "name": name,
        "summary": summary(text),
        "use": prose(text),
        "knobs": {
            knob.name: {"default": knob.default, "meaning": meanings.get(knob.name, "")}
            for knob in inspect.signature(NETS[name]).parameters.values()
            if knob.kind is knob.KEYWORD_ONLY
        },
        "paper": " ".join(paper[1].split()) if paper else "",
    }
