"""What a person reads to choose a loss: one page per loss and the table of all, from docstrings and rows alone."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from medseg.errors import nearest
from medseg.losses import table
from medseg.losses.knobs import knob_type
from medseg.losses.table import Row
from medseg.machine import docstrings
from medseg.machine.files import write_text
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
    return [
        {
            "name": row.name,
            "family": row.family,
            "summary": sections(row)["summary"],
            "modes": list(row.modes),
            "knobs": row.knobs,
            "handles": list(row.handles),
            "alone": row.alone,
            "soft_targets": row.soft if isinstance(row.soft, bool) else f"with {row.soft}=True",
            "cost": row.cost,
            "range": row.range,
            "paper": row.paper,
        }
        for row in table.rows().values()
        if family in (None, row.family)
    ]


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
        ValueError: If there is no such loss; the message names the nearest.

    Example:
        >>> print(describe("jaccard").splitlines()[0])
        jaccard (region): One minus intersection over union: dice that punishes a poor overlap harder.
    """
    known = table.rows()
    if name not in known:
        guess = nearest(name, list(known))
        raise ValueError(f"there is no loss {name!r}. " + (f"Did you mean {guess!r}?" if guess else ""))
    row = known[name]
    parts = sections(row)
    lines = [f"{name} ({row.family}): {parts['summary']}", "", *_indented(parts["equation"])]
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
        "Soft targets": f"with {row.soft}=True" if isinstance(row.soft, str) else "yes" if row.soft else "no",
        "Range": row.range,
        "Cost": COSTS[row.cost],
        "Paper": row.paper,
    }


def knob_lines(row: Row) -> list[str]:
    """Each knob with default, type and meaning."""
    meanings = {**SHARED_MEANINGS, **arguments(row)}
    return [
        f"  {name} = {value!r} ({words(knob_type(row, name))}): {meanings.get(name, '')}".rstrip(": ")
        for name, value in row.knobs.items()
    ]


SHARED_MEANINGS = {
    "smooth_nr": "Added to the numerator.",
    "smooth_dr": "Added to the denominator.",
    "include_background": "Whether channel 0 counts (multiclass; the other modes have no such channel).",
    "weight": "One number per class, background included.",
    "weight_mode": "Divide by the sum of the weights (normalized) or by the number of classes (plain).",
    "absent": "Whether a class without a target voxel counts (keep) or not (ignore).",
    "normalize": "Divide by the number of voxels, or by the sum of their class weights.",
    "batch": "Whether sums run over the batch, on all ranks, before the ratio is taken.",
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


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


def comparison_table(family: str | None = None) -> str:
    """A Markdown table of all losses: family, what each handles, cost, range, paper."""
    head = ["loss", "family", *HANDLES.values(), "alone", "cost", "range", "paper"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in table.rows().values():
        if family not in (None, row.family):
            continue
        marks = ["✓" if key in row.handles else "" for key in HANDLES]
        cells = [f"[`{row.name}`](#{row.name})", row.family, *marks, "✓" if row.alone else "", row.cost, row.range]
        lines.append("| " + " | ".join([*cells, row.paper.split(",")[0]]) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole of docs/losses.md."""
    parts = [INTRODUCTION, "## All losses\n", comparison_table(), ""]
    for family, title in FAMILIES.items():
        parts += [f"## {title}\n"]
        parts += [_entry(row) for row in table.rows().values() if row.family == family]
    return "\n".join(parts) + "\n"


def _entry(row: Row) -> str:
    text = sections(row)
    lines = [f"### {row.name}\n", text["summary"], "", "```text", text["equation"], "```", ""]
    for paragraph in text["prose"]:
        lines += [re.sub(r"^(Use|Known trouble(?: and public code)?|Public code)\b", r"**\1**", paragraph), ""]
    lines += [f"* {line.strip()}" for line in knob_lines(row)]
    lines += ["", " · ".join(f"{title}: {value}" for title, value in facts(row).items()), ""]
    return "\n".join(lines)


def write_page(path: Path) -> None:
    """Write docs/losses.md anew."""
    write_text(path, page())


INTRODUCTION = """# Losses

Generated from the docstrings in `medseg/losses` by `python -m medseg.losses.catalogue docs/losses.md`.

A loss is an expression: a weighted sum of names with knobs.

```python
from medseg.losses import build_loss

loss = build_loss("dice(include_background=False) + 0.5 * focal(gamma=2)", mode="multiclass", ignore_index=255)
value = loss(logits, labels)  # raw logits (b, c, i, j[, k]); labels (b, i, j[, k])
```

The same text goes into a config (`loss: dice + cross_entropy`) and on the command line (`--model.loss`).

**Modes.** `multiclass`: softmax over the channels, channel 0 is background. `binary`: one channel, sigmoid.
`multilabel`: a sigmoid per channel, no background.

**Targets.** Class indices `(b, *s)` or `(b, 1, *s)`, one-hot `(b, c, *s)` (a column of zeros is an ignored voxel);
fractions where an entry below says so. `ignore_index` may be any number, a class included.

**Who counts.** Class weights always hold one number per channel, background included. `voxel_weight` says how many
voxels a voxel counts as, in every numerator and denominator: 0 is the same as ignored. It is a constant: a weight that
wants a gradient is refused; soft targets get one. Precomputed `instances`, `skeleton` and `distance_map` spare the
losses that need them the work.

**Undrawn classes.** `class_mask` (b, c) says which classes were annotated in a sample. In multiclass mode its
background then means "background or one of the others", so their probabilities are added to the background's before
any loss sees them, and their own terms are left out (the marginal loss of Shi et al. 2021, arXiv 2007.03868; its other
half is the loss `exclusion`). In the sigmoid modes their channels are left out.

**Absent classes.** A region loss keeps a class without a target voxel at a cost near 1, as MONAI and nnU-Net do;
`absent="ignore"` leaves it out. With `batch=True` absence is decided over the batch of all ranks.

**Many GPUs.** With `batch=True` the sums are added over the ranks, with gradient: two ranks with half the batch each
have the loss and, after DistributedDataParallel's average, the gradients of one rank with all of it. So are the
volumes that `balanced_cross_entropy` and `exp_log` take their prices from. Means over voxels and classes are divided by
what counts on all ranks. Losses that are not linear in such means are each rank's own, and their average over ranks is
not the loss of the whole batch: `topk_cross_entropy`, `dice_topk`, the Lovász losses, `log_hausdorff_dt`,
`log_cosh_dice` and `penalty_generalized_dice`; and, where ranks hold unequally many samples, `generalized_dice`, its
compounds and `generalized_wasserstein_dice`. Without gradients every rank evaluates alone.

**Schedules.** A weight may change with the epoch: `dice + linear(0.01, 1, epochs=100) * boundary`, or the boundary
loss's own `dice + increase(0.01) * boundary` and `(1 - increase(0.01)) * dice + increase(0.01) * boundary`
("rebalance"). Call `loss.set_epoch(epoch)` at the start of each epoch.

**Sources.** [Errata](errata.md) tells where papers and public code are wrong or disagree, and what is done here.

**Precision.** Everything is computed in single precision (double for double logits), whatever autocast says, forward
and backward; sums over voxels are kept in double precision until the last ratio.

**Derivatives.** Second derivatives are exact. `torch.func.grad` works unless a loss measures shapes on the CPU; what
cannot be had (`torch.vmap`, forward mode of streamed sums) is refused in a sentence. Losses pickle.

**Your own.** A function from a `Comparison` is named by its dotted path: `dice + 0.5 * my_losses.mine(k=2)`.
"""

if __name__ == "__main__":
    import sys

    write_page(Path(sys.argv[1]))
