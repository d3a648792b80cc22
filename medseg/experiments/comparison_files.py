"""What a comparison leaves behind: compare.csv, report.html, and compare.md with its plots for documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.checkpoints.run import Scores
from medseg.experiments.comparison import write_comparison_csv
from medseg.experiments.comparison_page import Comparison, explanations, number, render_comparison
from medseg.experiments.plots import cost_plot, curve_plot, interval_plot, standalone
from medseg.experiments.ranking import MEAN, Entry, Ranking
from medseg.machine.files import write_text
from medseg.report.record import environment


def write_comparison(comparison: Comparison, output: Path) -> tuple[Path, ...]:
    """Write everything a reader needs; each file appears whole or not at all.

    Args:
        comparison: What is to be told.
        output: Folder to write to.

    Returns:
        The files: ``report.html``, ``compare.csv``, ``compare.md`` and the SVG plots that it shows.
    """
    plots = {name: drawing for name, drawing in _plots(comparison).items() if drawing}
    for name, drawing in plots.items():
        write_text(output / name, standalone(drawing) + "\n")
    write_text(Scores(output).report, render_comparison(comparison))
    write_text(output / "compare.md", render_markdown(comparison, tuple(plots)))
    write_comparison_csv(output / "compare.csv", comparison.results)
    return tuple(output / name for name in ("report.html", "compare.csv", "compare.md", *plots))


def _plots(comparison: Comparison) -> dict[str, str]:
    order = comparison.order
    dice = {entry.title: entry.mean["dice"] for entry in comparison.rankings[0].entries} if comparison.rankings else {}
    costs = {
        result.job.title: (result.step_ms, dice[result.job.title])
        for result in order
        if result.step_ms is not None and result.job.title in dice
    }
    organs = {f"dice_{index}.svg": interval_plot(ranking) for index, ranking in enumerate(comparison.rankings)}
    return {
        **organs,
        "curves_steps.svg": curve_plot({result.job.title: result.dice_by_step for result in order}, x_name="step"),
        "curves_minutes.svg": curve_plot({r.job.title: r.dice_by_minute for r in order}, x_name="minutes"),
        "cost.svg": cost_plot(costs, x_name="ms per step", y_name="mean Dice"),
    }


def render_markdown(comparison: Comparison, plots: Sequence[str] = ()) -> str:
    """The tables as a Markdown page that shows the plots lying beside it."""
    parts = [f"# {comparison.title}", f"```\n{comparison.command}\n```"]
    failed = [f"- `{o.job.title}`: {o.failure}" for o in comparison.outcomes if o.failure]
    if failed:
        parts += ["## Jobs without a result", "\n".join(failed)]
    for index, ranking in enumerate(comparison.rankings):
        parts += [f"## {'Mean over organs' if ranking.organ == MEAN else ranking.organ}", _ranking_table(ranking)]
        if f"dice_{index}.svg" in plots:
            parts.append(f"![Mean Dice and 95 % interval, {ranking.organ}](dice_{index}.svg)")
    parts += ["## Cost", _cost_table(comparison)]
    for name, text in (
        ("cost.svg", "Mean Dice over the cost of a step"),
        ("curves_steps.svg", "Validation Dice over steps"),
        ("curves_minutes.svg", "Validation Dice over minutes"),
    ):
        if name in plots:
            parts.append(f"![{text}]({name})")
    parts += [
        "## How to read the numbers",
        "\n".join(f"- **{name}**: {text}" for name, text in explanations(comparison)),
    ]
    parts += ["## Environment", ", ".join(f"{name} {version}" for name, version in environment().items())]
    return "\n\n".join(parts) + "\n"


def _ranking_table(ranking: Ranking) -> str:
    heads = ("", "job", "Dice", "95 % interval", "HD95 mm", "NSD", "missed", "false", "median change", "p (Holm)")
    return markdown_table(heads, [_cells(entry) for entry in ranking.entries])


def _cells(entry: Entry) -> list[str]:
    low, high = entry.ci95["dice"]
    tested = entry.p_holm is not None and entry.median_change is not None
    return [
        str(entry.rank),
        f"`{entry.title}`",
        f"{entry.mean['dice']:.3f} ± {entry.std['dice']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{entry.mean['hd95_mm']:.2f}",
        f"{entry.mean['nsd']:.3f}",
        str(entry.missed),
        str(entry.false),
        f"{entry.median_change:+.4f}" if tested else "reference",
        (f"{entry.p_holm:.2g}" + r" \*" * entry.differs) if tested else "",
    ]


def _cost_table(comparison: Comparison) -> str:
    rows = [
        [f"`{result.job.title}`", *(number(cost) for cost in (result.step_ms, result.peak_gib, result.minutes))]
        for result in comparison.order
    ]
    return markdown_table(("job", "ms per step", "peak GiB", "minutes"), rows)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table in Markdown; a bar in a cell stays a bar.

    Example:
        >>> print(markdown_table(("a", "b"), [("1", "x|y")]))
        | a | b |
        | --- | --- |
        | 1 | x\|y |
    """
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
