"""The report of a comparison: tables per organ, curves, cost, and what failed, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from medseg.experiments.plots import curve_plot, interval_plot
from medseg.experiments.ranking import MEAN, Entry, Ranking
from medseg.experiments.results import Result
from medseg.experiments.sweep import Outcome
from medseg.pictures.page import Tile, bad, definitions, listing, page, table
from medseg.report.record import environment

_HEADS = (
    "rank",
    "Dice",
    "95 % interval",
    "HD95 mm",
    "NSD",
    "missed",
    "false",
    "median change",
    "higher / lower",
    "p (Holm)",
)


@dataclass(frozen=True)
class Comparison:
    """A finished comparison, some of whose jobs may have failed.

    Attributes:
        title: Heading.
        outcomes: What became of every job.
        results: The finished ones, in the order they were asked for.
        rankings: Of the mean over organs, then of every organ.
        baseline: Title of the job that all are tested against; None where it is the best of each organ.
        command: What to type to have it again.
        config: Text of the config files.
        shared: How many jobs ran on the machine at a time.
    """

    title: str
    outcomes: tuple[Outcome, ...]
    results: tuple[Result, ...]
    rankings: tuple[Ranking, ...]
    baseline: str | None
    command: str
    config: str
    shared: int = 1

    @property
    def order(self) -> tuple[Result, ...]:
        """The results, best mean Dice first."""
        ranks = {entry.title: entry.rank for entry in self.rankings[0].entries} if self.rankings else {}
        return tuple(sorted(self.results, key=lambda result: ranks.get(result.job.title, len(self.results))))


def render_comparison(comparison: Comparison) -> str:
    """Assemble the page."""
    overall, organs = comparison.rankings[:1], comparison.rankings[1:]
    chapters = [
        ("failed", "Jobs without a result", failures(comparison.outcomes)),
        ("overall", "Mean over organs", "".join(_chapter(ranking) for ranking in overall)),
        *(
            (f"organ-{index}", escape(ranking.organ), _chapter(ranking))
            for index, ranking in enumerate(organs if len(organs) > 1 else (), start=1)
        ),
        ("curves", "Learning curves", _curves(comparison.order)),
        ("cost", "Cost", _cost(comparison)),
        ("cases", "Cases that could not be scored", _not_scored(comparison.results)),
        ("config", "Config", listing(comparison.config)),
        ("environment", "Environment", definitions(environment().items())),
        ("repeat", "To have this again", listing(comparison.command)),
        ("reading", "How to read the numbers", definitions(explanations(comparison))),
    ]
    return page(comparison.title, _tiles(comparison), chapters)


def failures(outcomes: Sequence[Outcome]) -> str:
    """Every job that failed, why, and where its log is; empty if none did."""
    items = "".join(
        f"<li><b>{escape(outcome.job.title)}</b>: {escape(outcome.failure)}. "
        f'<span class="soft">{escape(str(outcome.job.log))}</span></li>'
        for outcome in outcomes
        if outcome.failure
    )
    return f"<ul>{items}</ul>" if items else ""


def explanations(comparison: Comparison) -> list[tuple[str, str]]:
    """What each number of the tables means, as plain text."""
    against = comparison.baseline or "the job with the highest mean"
    told = [
        ("Same for all", "Data, network, seed, budget and held-out cases; the jobs differ in what names them only."),
        ("Dice, HD95, NSD", "Means over the held-out cases, on the grid of the source images."),
        ("Interval", "Percentile bootstrap over cases, 10,000 resamples, fixed seed."),
        ("Median change, higher / lower", f"Dice case by case against {against}."),
        (
            "p (Holm)",
            f"Paired Wilcoxon signed-rank test of Dice against {against}, corrected for all tests of all organs by "
            "Holm's procedure; * marks values below 0.05. The mean over organs is corrected for itself.",
        ),
        (
            "What it does not say",
            "One seed and one split: the intervals hold the chance of the cases, not that of another training. "
            "A loss that needs another learning rate, or longer, is not shown at its best.",
        ),
        ("ms per step", _shared(comparison)),
        ("Peak memory", "Of a CUDA device its tensors, else all that was resident: interpreter, volumes and training."),
    ]
    if comparison.baseline is None:
        told.append(
            (
                "The best as reference",
                "It was chosen by the same cases, so its lead over the next is flattered a little.",
            )
        )
    return told


def _shared(comparison: Comparison) -> str:
    text = "Median over epochs of the median step, from batch to updated weights, without waiting for data."
    return text if comparison.shared == 1 else f"{text} {comparison.shared} jobs shared the machine."


def _tiles(comparison: Comparison) -> list[Tile]:
    failed = sum(1 for outcome in comparison.outcomes if outcome.failure)
    tiles = [("jobs", str(len(comparison.outcomes)), ""), *([("failed", str(failed), "bad")] if failed else [])]
    if comparison.rankings:
        first = comparison.rankings[0].entries[0]
        tied = [entry for entry in comparison.rankings[0].entries[1:] if not entry.differs]
        tiles.insert(0, (f"best mean Dice: {escape(first.title)}", f"{first.mean['dice']:.3f}", ""))
        if comparison.baseline is None:
            tiles.append(("not told apart from the best", str(len(tied)), ""))
        tiles.append(("held-out cases", str(first.cases), ""))
    return tiles


def _chapter(ranking: Ranking) -> str:
    named = "organs" if ranking.organ == MEAN else "cases"
    rows = [_cells(entry, ranking.reference) for entry in ranking.entries]
    return (
        f'<p class="soft">Best first, over {ranking.entries[0].cases} cases; missed and false count {named}. Tests are '
        f"against <b>{escape(ranking.reference)}</b>.</p>"
        + table(("job", *_HEADS), rows)
        + f'<div class="scroll" tabindex="0" style="margin-top:1rem">{interval_plot(ranking)}</div>'
    )


def _cells(entry: Entry, reference: str) -> list[str]:
    low, high = entry.ci95["dice"]
    change = "reference" if entry.title == reference else ""
    tested = entry.p_holm is not None and entry.median_change is not None
    return [
        escape(entry.title),
        str(entry.rank),
        f"{entry.mean['dice']:.3f} ± {entry.std['dice']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{entry.mean['hd95_mm']:.2f} ± {entry.std['hd95_mm']:.2f}",
        f"{entry.mean['nsd']:.3f} ± {entry.std['nsd']:.3f}",
        bad(entry.missed),
        bad(entry.false),
        f"{entry.median_change:+.4f}" if tested else change,
        f"{entry.higher} / {entry.lower}" if tested else "",
        f"{entry.p_holm:.2g}{' *' if entry.differs else ''}" if tested else "",
    ]


def _curves(results: Sequence[Result]) -> str:
    by_step = curve_plot({result.job.title: result.dice_by_step for result in results}, x_name="step")
    by_minute = curve_plot({result.job.title: result.dice_by_minute for result in results}, x_name="minutes")
    drawn = [
        f'<h3>{heading}</h3><div class="scroll" tabindex="0">{plot}</div>'
        for heading, plot in (("Over steps", by_step), ("Over minutes of training", by_minute))
        if plot
    ]
    note = (
        '<p class="soft">Mean Dice of the whole held-out volumes on the prepared grid, as training watched it; each '
        "panel shows one job over all others in grey.</p>"
    )
    return note + "".join(drawn) if drawn else ""


def _cost(comparison: Comparison) -> str:
    dice = {entry.title: entry.mean["dice"] for entry in comparison.rankings[0].entries} if comparison.rankings else {}
    rows = [
        [
            escape(result.job.title),
            *(number(value) for value in (result.step_ms, result.peak_gib, result.minutes)),
            f"{dice.get(result.job.title, 0.0):.3f}",
        ]
        for result in comparison.order
    ]
    return table(("job", "ms per step", "peak GiB", "minutes", "mean Dice"), rows) if rows else ""


def number(value: float | None) -> str:
    """A cost with three digits, empty where nobody measured it.

    Example:
        >>> number(1234.5), number(0.1234), number(None)
        ('1234', '0.123', '')
    """
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _not_scored(results: Sequence[Result]) -> str:
    items = "".join(
        f"<li><b>{escape(result.job.title)}</b>, {escape(failure.case)}: {escape(failure.reason)}.</li>"
        for result in results
        for failure in result.not_scored
    )
    return f"<ul>{items}</ul>" if items else ""
