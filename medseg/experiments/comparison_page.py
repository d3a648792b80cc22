"""The report of a comparison: tables per organ, curves, cost, and what failed, in one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medseg.experiments.results import Result
from medseg.experiments.sweep import JobEnd
from medseg.experiments.trainings import TRAINING_HEADS, Trainings, by_training, training_rows
from medseg.pictures.charts import curve_plot, interval_plot
from medseg.pictures.markup import Markup, element, together
from medseg.pictures.page import Tile, bad, bullets, definitions, listing, page, scrolled, soft, table
from medseg.report.ranking import MEAN, Entry, Ranking
from medseg.report.record import environment

RANKING_HEADS = (
    *("job", "rank", "Dice", "95 % interval", "HD95 mm", "NSD", "missed", "false", "median change"),
    *("higher / lower", "p (Holm)"),
)
COST_HEADS = ("job", "ms per step", "peak GiB", "minutes", "mean Dice")


@dataclass(frozen=True)
class JobComparison:
    """A finished comparison, some of whose jobs may have failed.

    Attributes:
        title: Heading.
        ends: What became of every job.
        results: The finished ones, in the order they were asked for.
        rankings: Of the mean over organs, then of every organ.
        baseline: Title of the job that all are tested against; None where it is the best of each organ.
        command: What to type to have it again.
        config: Text of the config files.
        shared: How many jobs ran on the machine at a time.
    """

    title: str
    ends: tuple[JobEnd, ...]
    results: tuple[Result, ...]
    rankings: tuple[Ranking, ...]
    baseline: str | None
    command: str
    config: str
    shared: int = 1

    @property
    def order(self) -> tuple[Result, ...]:
        """The first training of each loss or network, best mean Dice first."""
        ranks = {entry.title: entry.rank for entry in self.rankings[0].entries} if self.rankings else {}
        firsts = {result.job.compared: result for result in reversed(self.results)}.values()
        return tuple(sorted(firsts, key=lambda result: ranks.get(result.job.compared, len(self.results))))

    @property
    def trainings(self) -> tuple[Trainings, ...]:
        """Of each loss or network, where there are several."""
        return by_training(self.results, self.rankings[0].reference) if self.rankings else ()

    @property
    def dice(self) -> dict[str, float]:
        """Title of a loss or network -> its mean Dice over organs, cases and trainings."""
        return {entry.title: entry.measures["dice"].mean for entry in self.rankings[0].entries} if self.rankings else {}


def render_comparison(comparison: JobComparison) -> str:
    """Assemble the page."""
    overall, organs = comparison.rankings[:1], comparison.rankings[1:]
    not_scored = (
        (element("b", result.job.title), f", {failure.case}: {failure.reason}.")
        for result in comparison.results
        for failure in result.scores.failures
    )
    chapters = [
        ("failed", "Jobs without a result", failures(comparison.ends)),
        ("overall", "Mean over organs", together(map(_chapter, overall))),
        ("trainings", "One training beside another", _trainings(comparison)),
        *(
            (f"organ-{index}", ranking.organ, _chapter(ranking))
            for index, ranking in enumerate(organs if len(organs) > 1 else (), start=1)
        ),
        ("curves", "Learning curves", _curves(comparison.order)),
        ("cost", "Cost", table(COST_HEADS, cost_rows(comparison)) if comparison.results else Markup("")),
        ("cases", "Cases that could not be scored", bullets(not_scored)),
        ("config", "Config", listing(comparison.config)),
        ("environment", "Environment", definitions(environment().items())),
        ("repeat", "To have this again", listing(comparison.command)),
        ("reading", "How to read the numbers", definitions(explanations(comparison))),
    ]
    return page(comparison.title, _tiles(comparison), chapters)


def failures(ends: Sequence[JobEnd]) -> Markup:
    """Every job that failed, why, and where its log is; empty if none did."""
    return bullets(
        (element("b", end.job.title), f": {end.failure}. ", element("span", str(end.job.log), css="soft"))
        for end in ends
        if end.failure
    )


def explanations(comparison: JobComparison) -> list[tuple[str, str]]:
    """What each number of the tables means."""
    against = comparison.baseline or "the job with the highest mean"
    step = "Median over epochs of the median step, from batch to updated weights, without waiting for data."
    shared = "" if comparison.shared == 1 else f" {comparison.shared} jobs shared the machine."
    several = bool(comparison.trainings)
    chance = (
        "One split. A loss whose change over trainings has an interval around 0 is not told apart from the reference, "
        "whatever the test over cases says: of every case, that sees the mean of the trainings."
        if several
        else "One seed and one split: the intervals hold the chance of the cases, not that of another training."
    )
    told = [
        ("Same for all", "Data, network, seeds, budget and held-out cases; the jobs differ in what names them only."),
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
            f"{chance} A loss that needs another learning rate, or longer, is not shown at its best.",
        ),
        ("ms per step", step + shared),
        ("Peak memory", "Of a CUDA device its tensors, else all that was resident: interpreter, volumes and training."),
    ]
    if several:
        told.append(("Change over trainings", "Mean over seeds, each against the reference's; Student's t interval."))
    flattered = "It was chosen by the same cases, so its lead over the next is flattered a little."
    return told + ([("The best as reference", flattered)] if comparison.baseline is None else [])


def ranking_rows(ranking: Ranking, marked: Callable[[int], str] = str) -> list[list[str]]:
    """A row per job under `RANKING_HEADS`; ``marked`` writes the numbers that should be 0."""
    return [_cells(entry, ranking.reference, marked) for entry in ranking.entries]


def _cells(entry: Entry, reference: str, marked: Callable[[int], str]) -> list[str]:
    dice, low, high = entry.measures["dice"].text(), *entry.measures["dice"].ci95
    tested = [""] * 2
    if entry.p_holm is not None:
        tested = [f"{entry.higher} / {entry.lower}", f"{entry.p_holm:.2g}{' *' * entry.differs}"]
    change = "reference" * (entry.title == reference) if entry.median_change is None else f"{entry.median_change:+.4f}"
    hd95, nsd = entry.measures["hd95_mm"].text(".2f"), entry.measures["nsd"].text()
    named = [entry.title, str(entry.rank), dice, f"{low:.3f} to {high:.3f}", hd95, nsd]
    return [*named, marked(entry.missed), marked(entry.false), change, *tested]


def cost_rows(comparison: JobComparison) -> list[list[str]]:
    """A row per job under `COST_HEADS`, best first; empty where nobody measured it."""
    return [
        [
            result.job.compared,
            *("" if cost is None else f"{cost:.0f}" if cost >= 100 else f"{cost:.3g}" for cost in result.costs),
            f"{comparison.dice[result.job.compared]:.3f}" if result.job.compared in comparison.dice else "",
        ]
        for result in comparison.order
    ]


def dice_plot(ranking: Ranking) -> Markup:
    """The mean Dice and its interval of every job."""
    dice = {entry.title: entry.measures["dice"] for entry in ranking.entries}
    best = ranking.entries[0].title
    says = f"Mean Dice and 95 % interval of {ranking.organ} by job: best {best} with {dice[best].mean:.3f}"
    bars = {title: (one.mean, *one.ci95) for title, one in dice.items()}
    return interval_plot(bars, says=says)


def _tiles(comparison: JobComparison) -> list[Tile]:
    failed = sum(1 for end in comparison.ends if end.failure)
    tiles = [("jobs", str(len(comparison.ends)), ""), *([("failed", str(failed), "bad")] if failed else [])]
    if comparison.rankings:
        first, *others = comparison.rankings[0].entries
        tiles.insert(0, (f"best mean Dice: {first.title}", f"{first.measures['dice'].mean:.3f}", ""))
        if comparison.baseline is None:
            tiles.append(("not told apart from the best", str(sum(not entry.differs for entry in others)), ""))
        tiles.append(("held-out cases", str(first.cases), ""))
    return tiles


def _chapter(ranking: Ranking) -> Markup:
    counts = "organs" if ranking.organ == MEAN else "cases"
    said = f"Best first, over {ranking.entries[0].cases} cases; missed and false count {counts}. Tests are against "
    plot = scrolled(dice_plot(ranking), style="margin-top:1rem")
    return soft(said, element("b", ranking.reference), ".") + table(RANKING_HEADS, ranking_rows(ranking, bad)) + plot


def _trainings(comparison: JobComparison) -> Markup:
    trained = comparison.trainings
    return table(TRAINING_HEADS, training_rows(trained)) if trained else Markup("")


def _curves(results: Sequence[Result]) -> Markup:
    by_step = curve_plot({result.job.compared: result.dice_by_step for result in results}, x_name="step")
    by_minute = curve_plot({result.job.compared: result.dice_by_minute for result in results}, x_name="minutes")
    drawn = together(
        element("h3", heading) + scrolled(plot)
        for heading, plot in (("Over steps", by_step), ("Over minutes of training", by_minute))
        if plot
    )
    note = (
        "Mean Dice of the whole held-out volumes on the prepared grid, as training watched it; each panel shows one "
        "job over all others in grey."
    )
    return soft(note) + drawn if drawn else drawn
