"""The report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.checkpoints.run import Run, Scores
from medseg.machine.files import write_text
from medseg.metrics.empty import Outcome
from medseg.pictures.charts import box_plot, interval_bar, line_chart
from medseg.pictures.markup import Markup, element, together
from medseg.pictures.page import Chapter, Tile, bad, bullets, definitions, folded, listing, page, soft, table
from medseg.pictures.style import SERIES
from medseg.report.cases_html import all_cases, picked_cases
from medseg.report.evaluate import Evaluation
from medseg.report.record import Curve, environment, read_curves
from medseg.report.rows import measures
from medseg.report.summary import OrganSummary, Summary
from medseg.report.tables import dataset_cells

_NAMES = {"dice": "Dice", "nsd": "Surface Dice (NSD)", "hd95_mm": "HD95 in mm"}
_HEADS = (
    *("organ", "Dice", "0 to 1", "95 % interval", "median", "HD95 mm", "NSD", "lesion F1", "volume error ml"),
    *("missed", "false", "absent"),
)
_ELEMENTS = {
    "voxels": "Boundary voxels, which all count alike, as in MONAI.",
    "areas": "Marching-cubes faces, which count by their area, as in deepmind's surface-distance.",
}


def write_report(evaluation: Evaluation, path: Path | None = None, **parts: Any) -> Path:
    """Write the report of an evaluation, as ``report.html`` beside summary.json if no path is given; see `render`."""
    path = path or Scores(evaluation.output).report
    write_text(path, render(evaluation, **parts))
    return path


def render(
    evaluation: Evaluation,
    *,
    run: Run | None = None,
    plan: str = "",
    config: str = "",
    commands: Sequence[str] = (),
    title: str = "Segmentation report",
    first: Sequence[Chapter] = (),
) -> str:
    """Assemble the page; chapters without content are left out, from the contents too.

    Args:
        evaluation: What is told.
        run: For training curves and config.
        plan: Text of the plan.
        config: Text of the config, where it is not in the run folder.
        commands: What to type to have this report again.
        title: Heading.
        first: Chapters to put before the others.
    """
    if run and run.config.is_file():
        config = config or run.config.read_text(encoding="utf-8")
    failures: list[tuple[str, ...]] = [(element("b", one.case), f": {one.reason}.") for one in evaluation.failures[:5]]
    if more := evaluation.failures[5:]:
        failures.append((f"and {len(more)} more, see summary.json",))
    chapters = (
        *first,
        ("failures", "Cases that could not be scored", bullets(failures)),
        ("organs", "Per organ", _organ_table(evaluation.summary)),
        ("datasets", "Per dataset", _dataset_table(evaluation.summary)),
        ("spread", "Spread over cases", _box_plots(evaluation)),
        ("cases", "Worst and best cases", picked_cases(evaluation)),
        ("all", "All cases", all_cases(evaluation.rows)),
        ("training", "Training", _curves(read_curves(run.metrics) if run else {})),
        ("plan", "Plan", listing(plan)),
        ("config", "Config", listing(config)),
        ("environment", "Environment", definitions(environment().items())),
        ("repeat", "To have this again", listing("\n".join(commands))),
        ("reading", "How to read the numbers", _explanations(evaluation)),
    )
    return page(title, _tiles(evaluation), chapters)


def _tiles(evaluation: Evaluation) -> list[Tile]:
    summary = evaluation.summary
    number, named = summary.counted.split()
    tiles = [(named, number, ""), ("organ" + "s" * (len(summary.organs) != 1), str(len(summary.organs)), "")]
    if summary.mean_dice is not None and summary.mean_dice_ci95 is not None:
        low, high = summary.mean_dice_ci95
        interval = f", 95 % interval {low:.3f} to {high:.3f}" if summary.cases > 1 else ""
        missed, present = map(sum, zip(*(organ.missed_of for organ in summary.organs.values()), strict=True))
        false, lacking = map(sum, zip(*(organ.false_of for organ in summary.organs.values()), strict=True))
        tiles.insert(0, (f"mean Dice{interval}", f"{summary.mean_dice:.3f}", ""))
        tiles += [
            ("missed, of the organs that references hold", f"{missed} of {present}", "bad" * bool(missed)),
            ("invented, of those that they lack", f"{false} of {lacking}", "bad" * bool(false)),
        ]
    if evaluation.failures:
        tiles.append(("cases not scored", str(len(evaluation.failures)), "bad"))
    return tiles


def _organ_table(summary: Summary) -> Markup:
    if summary.mean_dice is None or summary.mean_dice_ci95 is None:
        return element("p", "No case could be scored.")
    low, high = summary.mean_dice_ci95
    interval = f"{low:.3f}–{high:.3f}" if summary.cases > 1 else ""
    total = ("mean", f"{summary.mean_dice:.3f}", interval_bar(summary.mean_dice, low, high), interval, *[""] * 8)
    rows = [*((name, *_organ_cells(organ)) for name, organ in summary.organs.items()), total]
    text = f"Mean ± standard deviation over {summary.counted}; bootstrap interval of the mean."
    return soft(text) + table(_HEADS, rows, bars=(2,), total=True) + _more_measures(summary)


def _dataset_table(summary: Summary) -> Markup:
    """Dice per organ in each of several merged datasets; nothing where there is one."""
    if not summary.datasets:
        return Markup("")
    heads, rows = dataset_cells(summary)
    return soft("Mean Dice, and over how many cases: those that have the organ drawn.") + table(heads, rows)


def _more_measures(summary: Summary) -> Markup:
    """Tabulate the mean of every measure that the first table leaves out, folded away."""
    names = [name for name in measures() if name not in (*_NAMES, "volume_error_ml", "lesion_f1")]
    rows = (
        (organ, _number(one.measures["dice"].mean_where_present), *(_number(one.measures[name].mean) for name in names))
        for organ, one in summary.organs.items()
    )
    heads = ("organ", "dice where present", *(name.replace("_", " ") for name in names))
    return folded("More measures, means over cases", table(heads, rows))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _organ_cells(organ: OrganSummary) -> tuple[str, ...]:
    dice, spread = organ.measures["dice"], organ.spread
    low, high = dice.ci95
    return (
        dice.text(spread=spread),
        interval_bar(dice.mean, low, high),
        f"{low:.3f}–{high:.3f}" if spread else "",
        f"{dice.median:.3f}",
        organ.measures["hd95_mm"].text(".2f", spread=spread),
        organ.measures["nsd"].text(spread=spread),
        organ.measures["lesion_f1"].text(spread=False),
        organ.measures["volume_error_ml"].text("+.2f", spread=spread),
        *(bad(count) + f" of {all_}" if all_ else "" for count, all_ in (organ.missed_of, organ.false_of)),
        str(organ.absent),
    )


def _box_plots(evaluation: Evaluation) -> Markup:
    if not evaluation.rows:
        return Markup("")
    plots = []
    for measure, name in _NAMES.items():
        values: dict[str, list[float]] = {}
        for row in evaluation.rows:
            values.setdefault(row.organ, []).append(row.value(measure))
        # the axis spans the organs that were found, so that a missed one does not press the others together
        found = [row.value(measure) for row in evaluation.rows if row.scores.outcome is Outcome.FOUND]
        plots.append(box_plot(name, values, inside=[0.0 if measure == "hd95_mm" else 1.0, *found]))
    return soft(
        "Box: middle half of the cases. Bar: median. Whiskers: 1.5 interquartile ranges. Each tick below is one case. "
        "The axis spans the organs that were found; a missed or invented one lies at its worst end."
    ) + element("div", *plots, css="plots")


def _curves(curves: Mapping[str, Mapping[str, Curve]]) -> Markup:
    charts = together(
        line_chart(title, _legible(series), x_name="step", ends_at=(1.0,) if "dice" in title else ())
        for title, series in curves.items()
    )
    return element("div", charts, css="charts") if charts else charts


def _legible(series: Mapping[str, Curve]) -> Mapping[str, Curve]:
    """Of many lines keep the first, which is their mean, and those that end lowest."""
    if len(series) <= len(SERIES):
        return series
    first, *others = series
    lowest = sorted(others, key=lambda name: series[name][-1][1])[: len(SERIES) - 1]
    return {f"{first} and the {len(lowest)} lowest of {len(others)}": series[first], **{n: series[n] for n in lowest}}


def _explanations(evaluation: Evaluation) -> Markup:
    tolerance = evaluation.scoring.tolerance_mm
    text = (
        f"{tolerance:g} mm"
        if isinstance(tolerance, (int, float))
        else ", ".join(f"{name} {value:g} mm" for name, value in tolerance.items())
    )
    return definitions(
        (
            ("Dice", "Twice the shared volume over the sum of both volumes; 1 is perfect."),
            ("HD95", "95th percentile of surface distances, the larger of the two directions, in mm; 0 is perfect."),
            ("Surfaces", _ELEMENTS[evaluation.scoring.element]),
            ("NSD", f"Share of both surfaces that lies within a tolerance of the other ({text}); 1 is perfect."),
            (
                "Lesion F1",
                "Connected parts instead of voxels: a part is found where the prediction shares a voxel with it; twice "
                "the found over twice the found, the missed and the invented. Their numbers are among the measures.",
            ),
            ("Volume error", "Volume of the prediction minus volume of the reference."),
            (
                "Missed",
                "The reference has the organ, and the prediction shares no voxel with it: Dice 0. Where nothing was "
                "predicted, distances are the image diagonal. Counted out of the cases whose reference has it.",
            ),
            (
                "False",
                "The prediction has the organ, the reference does not: overlaps 0, distances the image diagonal. "
                "Counted out of the cases whose reference lacks it.",
            ),
            ("Absent", "Neither has the organ: they agree, overlaps 1, distances 0."),
            ("Interval", "Percentile bootstrap over cases, 10,000 resamples, fixed seed."),
        )
    )
