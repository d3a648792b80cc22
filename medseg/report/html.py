"""The report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from medseg.checkpoints.run import Run, Scores
from medseg.machine.files import write_text
from medseg.metrics.empty import Outcome
from medseg.pictures.charts import box_plot, interval_bar, line_chart, overlap_axis, round_end
from medseg.pictures.page import Chapter, Tile, bad, definitions, listing, page
from medseg.pictures.style import SERIES
from medseg.report.cases_html import all_cases, picked_cases
from medseg.report.evaluate import Evaluation
from medseg.report.record import Curve, RunRecord, read_record
from medseg.report.rows import MEASURES
from medseg.report.summary import OrganSummary, Summary

_NAMES = {"dice": "Dice", "nsd": "Surface Dice (NSD)", "hd95_mm": "HD95 in mm"}
_ELEMENTS = {
    "voxels": "Boundary voxels, which all count alike, as in MONAI.",
    "areas": "Marching-cubes faces, which count by their area, as in deepmind's surface-distance.",
}


def write_report(
    evaluation: Evaluation,
    path: Path | None = None,
    *,
    run: Run | None = None,
    plan: str = "",
    config: str = "",
    commands: Sequence[str] = (),
    title: str = "Segmentation report",
    first: Sequence[Chapter] = (),
) -> Path:
    """Write the report of an evaluation as one self-contained HTML file.

    Args:
        evaluation: What `medseg.report.evaluate.evaluate` returned.
        path: Target; None takes ``report.html`` beside summary.json.
        run: For training curves and config.
        plan: Text of the plan.
        config: Text of the config, where it is not in the run folder.
        commands: What to type to have this report again.
        title: Heading.
        first: Chapters to put before the others.

    Returns:
        Where it was written.
    """
    path = path or Scores(evaluation.output).report
    record = read_record(run, plan=plan, config=config, commands=commands)
    write_text(path, render(evaluation, record, title=title, first=first))
    return path


def render(evaluation: Evaluation, record: RunRecord, *, title: str, first: Sequence[Chapter] = ()) -> str:
    """Assemble the page; chapters without content are left out, from the contents too."""
    chapters = (
        *first,
        ("failures", "Cases that could not be scored", _failures(evaluation)),
        ("organs", "Per organ", _organ_table(evaluation.summary)),
        ("spread", "Spread over cases", _box_plots(evaluation)),
        ("cases", "Worst and best cases", picked_cases(evaluation)),
        ("all", "All cases", all_cases(evaluation.rows)),
        ("training", "Training", _curves(record)),
        ("plan", "Plan", listing(record.plan)),
        ("config", "Config", listing(record.config)),
        ("environment", "Environment", definitions(record.environment.items())),
        ("repeat", "To have this again", listing("\n".join(record.commands))),
        ("reading", "How to read the numbers", _explanations(evaluation)),
    )
    return page(title, _tiles(evaluation), chapters)


def _tiles(evaluation: Evaluation) -> list[Tile]:
    summary = evaluation.summary
    missed = sum(organ.missed for organ in summary.organs.values())
    false = sum(organ.false for organ in summary.organs.values())
    number, named = summary.counted.split()
    tiles = [(named, number, ""), ("organ" + "s" * (len(summary.organs) != 1), str(len(summary.organs)), "")]
    if summary.mean_dice is not None and summary.mean_dice_ci95 is not None:
        low, high = summary.mean_dice_ci95
        interval = f", 95 % interval {low:.3f} to {high:.3f}" if summary.cases > 1 else ""
        tiles.insert(0, (f"mean Dice{interval}", f"{summary.mean_dice:.3f}", ""))
        tiles += [
            ("missed organs", str(missed), "bad" * bool(missed)),
            ("invented organs", str(false), "bad" * bool(false)),
        ]
    if evaluation.failures:
        tiles.append(("cases not scored", str(len(evaluation.failures)), "bad"))
    return tiles


def _organ_table(summary: Summary) -> str:
    if not summary.organs:
        return "<p>No case could be scored.</p>"
    heads = (
        "organ",
        "Dice",
        "0 to 1",
        "95 % interval",
        "median",
        "HD95 mm",
        "NSD",
        "lesion F1",
        "volume error ml",
        "missed",
        "false",
        "absent",
    )
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th>{_organ_cells(organ)}</tr>" for name, organ in summary.organs.items()
    )
    columns = "".join(f"<th scope=col{' class=bar' * (head == '0 to 1')}>{head}</th>" for head in heads)
    total = ""
    if summary.mean_dice is not None and summary.mean_dice_ci95 is not None:
        low, high = summary.mean_dice_ci95
        total = (
            f'<tr class="total"><th scope=row>mean</th><td>{summary.mean_dice:.3f}</td>'
            f'<td class="bar">{interval_bar(summary.mean_dice, low, high)}</td>'
            f"<td>{f'{low:.3f}–{high:.3f}' if summary.cases > 1 else ''}</td>" + "<td></td>" * 8 + "</tr>"
        )
    return (
        f'<p class="soft">Mean ± standard deviation over {summary.counted}; bootstrap interval of the mean.</p>'
        f'<div class="scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{rows}{total}</tbody></table></div>{_more_measures(summary)}"
    )


def _more_measures(summary: Summary) -> str:
    """Tabulate the mean of every measure that the first table leaves out, folded away."""
    names = [name for name in MEASURES if name not in (*_NAMES, "volume_error_ml", "lesion_f1")]
    heads = "".join(f"<th scope=col>{head}</th>" for head in ("organ", "dice where present", *names))
    rows = "".join(
        f"<tr><th scope=row>{escape(organ)}</th><td>{_number(one.measures['dice'].mean_where_present)}</td>"
        + "".join(f"<td>{_number(one.measures[name].mean)}</td>" for name in names)
        + "</tr>"
        for organ, one in summary.organs.items()
    )
    return (
        '<details><summary>More measures, means over cases</summary><div class="scroll" tabindex="0"><table><thead>'
        f"<tr>{heads.replace('_', ' ')}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _organ_cells(organ: OrganSummary) -> str:
    dice, hd95, nsd, error = (organ.measures[name] for name in ("dice", "hd95_mm", "nsd", "volume_error_ml"))
    low, high = dice.ci95

    def spread(text: str) -> str:
        return text if organ.spread else ""

    cells = (
        f"{dice.mean:.3f}{spread(f' ± {dice.std:.3f}')}",
        interval_bar(dice.mean, low, high),
        spread(f"{low:.3f}–{high:.3f}"),
        f"{dice.median:.3f}",
        f"{hd95.mean:.2f}{spread(f' ± {hd95.std:.2f}')}",
        f"{nsd.mean:.3f}{spread(f' ± {nsd.std:.3f}')}",
        f"{organ.measures['lesion_f1'].mean:.3f}",
        f"{error.mean:+.2f}{spread(f' ± {error.std:.2f}')}",
        bad(organ.missed),
        bad(organ.false),
        str(organ.absent),
    )
    return "".join(
        f'<td class="bar">{cell}</td>' if index == 1 else f"<td>{cell}</td>" for index, cell in enumerate(cells)
    )


def _box_plots(evaluation: Evaluation) -> str:
    if not evaluation.rows:
        return ""
    plots = []
    for measure, name in _NAMES.items():
        values: dict[str, list[float]] = {}
        for row in evaluation.rows:
            values.setdefault(row.organ, []).append(row.value(measure))
        plots.append(box_plot(name, values, axis=_axis(evaluation, measure)))
    return (
        '<p class="soft">Box: middle half of the cases. Bar: median. Whiskers: 1.5 interquartile ranges. Each tick '
        "below is one case. The axis spans the organs that were found; a missed or invented one lies at its worst "
        "end.</p>"
        f'<div class="plots">{"".join(plots)}</div>'
    )


def _axis(evaluation: Evaluation, measure: str) -> tuple[float, float]:
    """Span the organs that were found, so that a missed one does not press the others together."""
    found = [row.value(measure) for row in evaluation.rows if row.scores.outcome is Outcome.FOUND]
    return (0.0, round_end(max(found, default=0.0))) if measure == "hd95_mm" else overlap_axis(found)


def _curves(record: RunRecord) -> str:
    charts = "".join(line_chart(title, _legible(series), x_name="step") for title, series in record.curves.items())
    return f'<div class="charts">{charts}</div>' if charts else ""


def _legible(series: Mapping[str, Curve]) -> Mapping[str, Curve]:
    """Of many lines keep the first, which is their mean, and those that end lowest."""
    if len(series) <= len(SERIES):
        return series
    first, *others = series
    lowest = sorted(others, key=lambda name: series[name][-1][1])[: len(SERIES) - 1]
    return {f"{first} and the {len(lowest)} lowest of {len(others)}": series[first], **{n: series[n] for n in lowest}}


def _failures(evaluation: Evaluation) -> str:
    items = "".join(
        f"<li><b>{escape(failure.case)}</b>: {escape(failure.reason)}.</li>" for failure in evaluation.failures
    )
    return f"<ul>{items}</ul>" if items else ""


def _explanations(evaluation: Evaluation) -> str:
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
                "The reference has the organ, the prediction does not: overlaps 0, distances the image diagonal.",
            ),
            ("False", "The prediction has the organ, the reference does not: scored as missed."),
            ("Absent", "Neither has the organ: they agree, overlaps 1, distances 0."),
            ("Interval", "Percentile bootstrap over cases, 10,000 resamples, fixed seed."),
        )
    )
