"""What a person reads to choose a loss: a page each and the list of all, from docstrings and rows alone."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from medseg.errors import UsageError, meant
from medseg.losses import table
from medseg.losses.knobs import SHARED, knob_type
from medseg.losses.table import Row
from medseg.machine import docstrings
from medseg.machine.typed import words

HANDLES = {"imbalance": "class imbalance", "small": "small organs", "boundary": "boundary", "missing": "missing labels"}
COSTS = {
    "streamed": "streamed: a gradient and a few numbers per voxel",
    "maps": "holds full probability maps",
    "distance": "holds full maps; distance transforms or skeletons on the CPU",
    "sort": "holds full maps; sorts every class",
}
FAMILIES = {
    "distribution": "Distribution: a penalty per voxel",
    "region": "Region: overlap of whole structures",
    "boundary": "Boundary and topology: surfaces and connections",
    "compound": "Compound: published sums",
}


def rows(family: str | None = None) -> list[dict[str, Any]]:
    """Every loss as plain data: name, family, summary, modes, knobs with defaults, what it handles, cost, paper."""
    columns = ("name", "family", "modes", "knobs", "handles", "alone", "cost", "range", "paper")
    return [
        {column: getattr(row, column) for column in columns}
        | {"summary": sections(row)["summary"], "soft_targets": row.soft if isinstance(row.soft, bool) else _soft(row)}
        for row in table.rows().values()
        if family in (None, row.family)
    ]


def _soft(row: Row) -> str:
    return f"with {row.soft}=True" if isinstance(row.soft, str) else "yes" if row.soft else "no"


def overview() -> str:
    """The list of all losses as text: a paragraph each, under its family."""
    lines = []
    for family, title in FAMILIES.items():
        lines += [title, ""]
        for row in table.rows().values():
            if row.family == family:
                knobs = ", ".join(f"{name}={value!r}" for name, value in row.knobs.items())
                lines += [f"  {row.name}({knobs})", f"      {sections(row)['summary']}", f"      {row.paper}", ""]
    return "\n".join(lines).rstrip()


def describe(name: str) -> str:
    """One loss's page as text: formula, when to use it, known trouble, what public code gets wrong, knobs, paper.

    Raises:
        UsageError: There is no such loss; the message names the nearest.

    Example:
        >>> print(describe("jaccard").splitlines()[0])
        jaccard (region): One minus intersection over union: dice that punishes a poor overlap harder.
    """
    known = table.rows()
    if name not in known:
        raise UsageError(f"there is no loss {name!r}{meant(name, known)}", "See medseg losses for all of them")
    row = known[name]
    parts = sections(row)
    lines = [f"{name} ({row.family}): {parts['summary']}", "", textwrap.indent(parts["equation"], "    ")]
    for paragraph in parts["prose"]:
        lines += ["", paragraph]
    lines += ["", "Knobs:", *knob_lines(row), ""]
    lines += [f"{title}: {text}" for title, text in facts(row).items()]
    return "\n".join(lines)


def facts(row: Row) -> dict[str, str]:
    """The columns of a row, in words."""
    handles = ", ".join(HANDLES[key] for key in row.handles) or "nothing in particular"
    return {
        "Modes": ", ".join(row.modes),
        "Made for": handles,
        "Trains alone": "yes" if row.alone else "no, add a region loss such as dice",
        "Soft targets": _soft(row),
        "Range": row.range,
        "Cost": COSTS[row.cost],
        "Paper": row.paper,
    }


def knob_lines(row: Row) -> list[str]:
    """Each knob with default, type and meaning."""
    meanings = {name: meaning for name, (_, meaning) in SHARED.items()} | MEANINGS | arguments(row)
    return [
        f"  {name} = {value!r} ({words(knob_type(row, name))}): {meanings.get(name, '')}".rstrip(": ")
        for name, value in row.knobs.items()
    ]


MEANINGS = {
    "smooth": "Added to numerator and denominator.",
    "smooth_nr": "Added to the numerator.",
    "smooth_dr": "Added to the denominator.",
    "lambda_dice": "Weight of Dice.",
    "lambda_gdl": "Weight of generalized_dice.",
    "lambda_ce": "Weight of cross-entropy, which in the sigmoid modes is bce.",
    "lambda_focal": "Weight of focal.",
    "lambda_topk": "Weight of topk_cross_entropy.",
    "lambda_skeleton": "Weight of skeleton_recall.",
    "iterations": "Erosions, at least the largest radius in voxels.",
    "connectivity": "Axes a step between neighbours may move along; None joins over corners too.",
    "class_reduction": "Average over the classes, or add them up.",
    "per_image": "Sort each sample on its own instead of the batch as one.",
}


def sections(row: Row) -> dict[str, Any]:
    """A docstring taken apart: the summary, the equation, and the paragraphs of prose after it."""
    text = inspect.getdoc(row.function) or ""
    head, _, rest = text.partition("Equation:\n")
    prose = re.split(r"\n(?:Args|Returns|Raises|Example):\n", rest)[0]
    equation, _, prose = prose.partition("\n\n")
    paragraphs = [" ".join(part.split()) for part in prose.split("\n\n") if part.strip()]
    return {"summary": " ".join(head.split()), "equation": inspect.cleandoc("\n" + equation), "prose": paragraphs}


def arguments(row: Row) -> dict[str, str]:
    """The Args section of a docstring, by name, and those of the parts."""
    inherited = {name: text for part in row.parts for name, text in arguments(part).items()}
    return {**inherited, **docstrings.arguments(inspect.getdoc(row.function))}
