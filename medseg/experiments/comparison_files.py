"""What a comparison leaves behind: compare.csv, report.html, and compare.md with its plots for documents."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from medseg.checkpoints.run import Scores
from medseg.experiments.comparison_page import (
    COST_HEADS,
    RANKING_HEADS,
    JobComparison,
    cost_rows,
    dice_plot,
    explanations,
    ranking_rows,
    render_comparison,
)
from medseg.experiments.results import Result
from medseg.experiments.trainings import TRAINING_HEADS, training_rows
from medseg.machine.files import write_text
from medseg.pictures.charts import cost_plot, curve_plot, standalone
from medseg.report.ranking import MEAN
from medseg.report.record import environment
from medseg.report.rows import cells_of, columns

_FACTS = ("loss", "net", "seed")


def write_comparison(comparison: JobComparison, output: Path) -> tuple[Path, ...]:
    """Write everything a reader needs; each file appears whole or not at all.

    Returns:
        The files: ``report.html``, ``compare.csv``, ``compare.md`` and the SVG plots that it shows.
    """
    plots = {name: plot for name, plot in _plots(comparison).items() if plot}
    for name, plot in plots.items():
        write_text(output / name, standalone(plot) + "\n")
    write_text(Scores(output).report, render_comparison(comparison))
    write_text(output / "compare.md", render_markdown(comparison, tuple(plots)))
    write_comparison_csv(output / "compare.csv", comparison.results)
    return Scores(output).report, *(output / name for name in ("compare.csv", "compare.md", *plots))


def write_comparison_csv(path: Path, results: Sequence[Result]) -> None:
    """Write a row per job, case and organ: the job, its loss, network and seed, then the columns of cases.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("job", *_FACTS, *columns()))
    for result in results:
        named = [result.job.run.name, *(result.job.facts.get(key, "") for key in _FACTS)]
        writer.writerows([*named, *cells_of(row)] for row in result.scores.rows)
    write_text(path, text.getvalue())


def _plots(comparison: JobComparison) -> dict[str, str]:
    order, dice = comparison.order, comparison.dice
    costs = {
        result.job.compared: (result.step_ms, dice[result.job.compared])
        for result in order
        if result.step_ms is not None and result.job.compared in dice
    }
    return {
        **{f"dice_{index}.svg": dice_plot(ranking) for index, ranking in enumerate(comparison.rankings)},
        "cost.svg": cost_plot(costs, x_name="ms per step", y_name="mean Dice"),
        "curves_steps.svg": curve_plot({result.job.compared: result.dice_by_step for result in order}, x_name="step"),
        "curves_minutes.svg": curve_plot({r.job.compared: r.dice_by_minute for r in order}, x_name="minutes"),
    }


def render_markdown(comparison: JobComparison, plots: Sequence[str] = ()) -> str:
    """The tables as a Markdown page that shows the plots lying beside it."""
    parts = [f"# {comparison.title}", f"```\n{comparison.command}\n```"]
    failed = [f"- `{end.job.title}`: {end.failure}" for end in comparison.ends if end.failure]
    if failed:
        parts += ["## Jobs without a result", "\n".join(failed)]
    for index, ranking in enumerate(comparison.rankings):
        parts.append(f"## {'Mean over organs' if ranking.organ == MEAN else ranking.organ}")
        parts.append(markdown_table(RANKING_HEADS, ranking_rows(ranking)))
        parts.append(f"![Mean Dice and 95 % interval, {ranking.organ}](dice_{index}.svg)")
    if comparison.trainings:
        parts += ["## One training beside another", markdown_table(TRAINING_HEADS, training_rows(comparison.trainings))]
    parts += ["## Cost", markdown_table(COST_HEADS, cost_rows(comparison))]
    shown = {
        "cost.svg": "Mean Dice over the cost of a step",
        "curves_steps.svg": "Validation Dice over steps",
        "curves_minutes.svg": "Validation Dice over minutes",
    }
    parts += [f"![{text}]({name})" for name, text in shown.items() if name in plots]
    told = "\n".join(f"- **{name}**: {text}" for name, text in explanations(comparison))
    parts += ["## How to read the numbers", told]
    parts += ["## Environment", ", ".join(f"{name} {version}" for name, version in environment().items())]
    return "\n\n".join(parts) + "\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table in Markdown, the first cell of each row as code; a bar in a cell stays a bar, a star a star.

    Example:
        >>> print(markdown_table(("a", "b"), [("1", "x|y *")]))
        | a | b |
        | --- | --- |
        | `1` | x\|y \* |
    """
    cells = [[f"`{name}`", *(cell.replace("*", r"\*") for cell in others)] for name, *others in rows]
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
