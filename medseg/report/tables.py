"""The result as a table in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseg.report.evaluate import Evaluation
from medseg.report.summary import OrganSummary, Summary


def summary_table(summary: Summary) -> Table:
    """Lay out a row per organ: Dice with spread and interval, HD95, NSD, and how often it was missed or invented."""
    table = Table(
        title=summary.counted,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("organ", overflow="fold", min_width=14)
    for heading in ("Dice", "95 % interval", "HD95 mm", "NSD", "missed", "false"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, organ in summary.organs.items():
        table.add_row(escape(name), *_cells(organ))
    if summary.mean_dice is not None and summary.mean_dice_ci95 is not None:
        table.add_section()
        low, high = summary.mean_dice_ci95
        table.add_row("mean", f"{summary.mean_dice:.3f}", f"{low:.3f}-{high:.3f}", style="bold")
    return table


def print_summary(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the table, then every case that failed and why, then where the files are."""
    console = console or Console()
    if evaluation.summary.cases:
        console.print(summary_table(evaluation.summary))
    if evaluation.not_predicted:
        console.print(f"{evaluation.not_predicted} further cases of the dataset were not predicted.")
    if evaluation.failures:
        plural = "s" * (len(evaluation.failures) != 1)
        console.print(f"[bold]{len(evaluation.failures)} case{plural} could not be scored:[/bold]")
        for failure in evaluation.failures:
            console.print(f"  {escape(failure.case)}: {escape(failure.reason)}.", soft_wrap=True, highlight=False)
    console.print(f"Written to {escape(str(evaluation.output))}", soft_wrap=True, highlight=False)


def _cells(organ: OrganSummary) -> list[str]:
    dice, hd95, nsd = (organ.measures[measure] for measure in ("dice", "hd95_mm", "nsd"))
    return [
        f"{dice.mean:.3f} ± {dice.std:.3f}" if organ.spread else f"{dice.mean:.3f}",
        f"{dice.ci95[0]:.3f}-{dice.ci95[1]:.3f}" if organ.spread else "-",
        f"{hd95.mean:.2f}",
        f"{nsd.mean:.3f}",
        *(str(count) if count else "-" for count in (organ.missed, organ.false)),
    ]
