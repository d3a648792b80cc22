"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseg.datasets.case import counted
from medseg.errors import few
from medseg.report.evaluate import Evaluation
from medseg.report.summary import OrganSummary, Summary

_LONGEST_NAME = 40  # letters in a line


def console_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", names: int = 1) -> Table:
    """A table whose first columns are ``names``, which may fold, and the others numbers, which stand to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, head in enumerate(heads):
        if column < names:
            table.add_column(head, overflow="fold", min_width=0 if column else 12, max_width=_LONGEST_NAME)
        else:
            table.add_column(head, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as its numbers are; where the terminal is narrower, it folds the lines, and none is cut."""
    before, console.width = console.width, 1000  # rich clamps every other way of asking
    console.width = max(before, table.__rich_measure__(console, console.options).maximum)
    console.print(table)
    console.width = before


def summary_table(summary: Summary) -> Table:
    """Lay out a row per organ: Dice with spread and interval, HD95, NSD, and how often it was missed or invented.

    Missed is counted out of the cases whose reference has the organ, false out of the others.
    """
    rows = ((name, *_cells(organ)) for name, organ in summary.organs.items())
    heads = ("organ", "Dice", "95 % interval", "HD95 mm", "NSD", "missed", "false")
    table = console_table(heads, rows, title=summary.counted)
    if summary.mean_dice is not None and summary.mean_dice_ci95 is not None:
        table.add_section()
        low, high = summary.mean_dice_ci95
        interval = f"{low:.3f}-{high:.3f}" if summary.cases > 1 else "-"
        table.add_row("mean", f"{summary.mean_dice:.3f}", interval, style="bold")
    return table


def dataset_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table of Dice per organ and merged dataset, with the cases that have the organ drawn."""
    parts = summary.datasets
    rows = []
    for organ, of_all in summary.organs.items():
        found = [part.organs.get(organ) for part in parts.values()]
        told = ["-" if one is None else f"{one.measures['dice'].mean:.3f} ({one.cases})" for one in found]
        rows.append([organ, *told, f"{of_all.measures['dice'].mean:.3f} ({of_all.cases})"])
    return ["organ", *parts, "all"], rows


def print_summary(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the table, then the first cases that failed and why, then where the files are."""
    console = console or Console()
    if evaluation.summary.cases:
        print_table(console, summary_table(evaluation.summary))
    if evaluation.summary.datasets:
        heads, rows = dataset_cells(evaluation.summary)
        print_table(console, console_table(heads, rows, title="Dice per dataset (cases that have the organ drawn)"))
    lines = []
    if evaluation.not_predicted:
        lines.append(f"{evaluation.not_predicted} further cases of the dataset were not predicted.")
    if same := sum(pair.prediction.samefile(pair.reference) for pair in evaluation.pairs if pair.prediction.exists()):
        predictions = counted(same, "prediction is the very file", "predictions are the very files")
        lines.append(f"{predictions} scored against: that says nothing of quality.")
    if evaluation.failures:
        lines.append(f"{counted(len(evaluation.failures), 'case')} could not be scored:")
        lines += [f"  {line}" for line in few([f"{one.case}: {one.reason}." for one in evaluation.failures])]
    tell(console, *lines, f"Written to {evaluation.output}")


def tell(console: Console, *lines: str) -> None:
    """Print lines as they are, not folded and without colours."""
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)


def _cells(organ: OrganSummary) -> list[str]:
    dice = organ.measures["dice"]
    return [
        dice.text(spread=organ.spread),
        f"{dice.ci95[0]:.3f}-{dice.ci95[1]:.3f}" if organ.spread else "-",
        organ.measures["hd95_mm"].text(".2f", spread=False),
        organ.measures["nsd"].text(spread=False),
        *(f"{count} of {all_}" if count else "-" for count, all_ in (organ.missed_of, organ.false_of)),
    ]
