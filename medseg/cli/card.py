"""A model card: what a checkpoint is, how it was made and how it scored, and blanks for what only its maker knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medseg.checkpoints.facts import read_facts
from medseg.checkpoints.run import Run, Scores
from medseg.cli.info import describe_path
from medseg.datasets.case import counted
from medseg.errors import UsageError
from medseg.machine.files import read_json, write_text
from medseg.report.rows import read_rows
from medseg.report.summary import OrganSummary, Summary, summarise

BLANK = "*(to be filled in)*"
"""What nobody but the maker can say."""

_MAKING = ("loss", "optimizer", "training memory", "flips in training", "config", "packages", "commits", "written by")
_TEMPLATE = """# Model card: {name}

Written by `medseg model-card`. Numbers are read from the checkpoint and from the scores; what is marked {blank} is not
known to any file.

## What it does

{what}

* Made by, contact: {blank}
* Intended use, and by whom: {blank}
* It is not a medical device, and no clinical decision may rest on it.

## How to run it

```
medseg predict --ckpt {file} --input IMAGES --output PREDICTIONS
```

Images need the channels above, in that order; they are resampled to the plan's spacing, and labels come back on their
own grid. Nothing leaves the machine.

## Training data

* {data}
* Where it is from, who was scanned (age, sex, disease, scanners, sites), who drew the labels: {blank}
* Licence and consent of the data, and what they allow for a model trained on it: {blank}

## Scores

{scores}

## Limits

{limits}
* Other scanners, protocols, ages and diseases than those of the training data: {blank}

## How it was trained

{made}

## Licence of the model

{blank}
"""


def write_card(checkpoint: Path, scores: Path | None, out: Path) -> int:
    """Write the card of a checkpoint or run; the number of blanks in it.

    Args:
        checkpoint: Or a run, whose best it is.
        scores: Folder of an evaluation; None takes what `medseg test` wrote into the run, if it did.
        out: The file, which must not be there.

    Raises:
        DataError: As `render`.
        UsageError: The file is there.
    """
    if out.exists():  # with its blanks filled in, perhaps
        raise UsageError(f"{out} is there already", "Move it, or name another file with --out")
    tested = (Run.holding(checkpoint) if checkpoint.is_file() else Run(checkpoint)).test
    card = render(checkpoint, scores or (tested.path if tested.cases.is_file() else None))
    write_text(out, card)
    return card.count(BLANK) - 1


def render(checkpoint: Path, scores: Path | None) -> str:
    """The card as Markdown.

    Args:
        checkpoint: Or a run, whose best it is.
        scores: A folder with the ``cases.csv`` of an evaluation; None says that there is none.

    Raises:
        DataError: One of them is missing or no such thing.
    """
    file = checkpoint if checkpoint.is_file() else Run(checkpoint).checkpoint()
    facts = describe_path(file)
    summary = None if scores is None else summarise(read_rows(Scores(scores).cases))
    remarks = [] if scores is None else _remarks(Scores(scores).summary, read_facts(file).steps)
    told = {key: value for key, value in facts.items() if key not in (*_MAKING, "what", "scores", "data")}
    return _TEMPLATE.format(
        name=f"{facts['network']} for {facts['organs']}",
        blank=BLANK,
        what=_bullets(told.items()),
        file=file.name,
        data=f"{facts['dataset']}: {facts.get('data', 'the checkpoint does not say how many cases')}",
        scores="\n".join([_scores(summary), *(f"* {remark}" for remark in remarks)]),
        limits="\n".join(f"* {limit}" for limit in [*_limits(str(facts["organs"]), summary), *remarks]),
        made=_bullets((key, facts[key]) for key in _MAKING if key in facts),
    )


def _bullets(pairs: Iterable[tuple[str, object]]) -> str:
    return "\n".join(f"* {key}: {value}" for key, value in pairs)


def _remarks(file: Path, steps: int) -> list[str]:
    """What an evaluation says of its cases beside their scores, and whether it is of a checkpoint of other steps."""
    known = read_json(file) if file.is_file() else {}
    found = [str(known["note"])] if known.get("note") else []
    found += [f"{counted(len(failed), 'case')} had no score" for failed in [known.get("failures")] if failed]
    if known.get("steps", steps) != steps:
        found.append(f"the scores are those of step {known['steps']}, this checkpoint is of step {steps}")
    return found


def _scores(summary: Summary | None) -> str:
    if summary is None or summary.mean_dice is None or summary.mean_dice_ci95 is None:
        return f"None were given: `medseg test --run RUN`, then this command again, or {BLANK}"
    heads = ("organ", "Dice", "95 % interval", "HD95 mm", "NSD", "missed", "invented")
    rows = [heads, ("---", *["--:"] * (len(heads) - 1))]
    rows += [(name.replace("|", "\\|"), *_cells(organ)) for name, organ in summary.organs.items()]
    low, high = summary.mean_dice_ci95
    interval = f"{low:.3f}-{high:.3f}" if summary.cases > 1 else ""
    rows.append(("mean", f"{summary.mean_dice:.3f}", interval, "", "", "", ""))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    told = f"Over {summary.counted}, mean and bootstrap interval of the mean."
    return f"{told}\n\n{table}\n\n* Which cases these are, and whether anything was chosen by them: {BLANK}"


def _cells(organ: OrganSummary) -> Sequence[str]:
    dice = organ.measures["dice"]
    interval = "{:.3f}-{:.3f}".format(*dice.ci95) if organ.spread else ""
    missed, false = ("{} of {}".format(*pair) for pair in (organ.missed_of, organ.false_of))
    return dice.text(spread=False), interval, *(_text(organ, name) for name in ("hd95_mm", "nsd")), missed, false


def _text(organ: OrganSummary, measure: str) -> str:
    return organ.measures[measure].text(".2f" if measure.endswith("mm") else ".3f", spread=False)


def _limits(organs: str, summary: Summary | None) -> list[str]:
    """What follows from the numbers alone."""
    found = [f"It knows {organs} and calls all else background, also what it was never shown"]
    if summary is None or summary.mean_dice is None:
        return [*found, "It was not scored on cases that it never saw"]
    worst = min(summary.organs, key=lambda name: summary.organs[name].measures["dice"].mean)
    found.append(f"{worst} has the lowest Dice of its organs, {_cells(summary.organs[worst])[0]}")
    for name, organ in summary.organs.items():
        found += [f"{name} was missed in {organ.missed} of {organ.missed_of[1]} cases"] if organ.missed else []
        found += [f"{name} was invented in {organ.false} of {organ.false_of[1]} cases"] if organ.false else []
        found += [] if organ.false_of[1] else [f"no case lacked {name}, so nothing is known of cases that do"]
    if summary.cases < 20:
        found.append(f"{summary.counted} are few: the intervals say how little is known")
    return found
