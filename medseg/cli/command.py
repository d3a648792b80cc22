"""What every short command is made of: a sentence, its options, the function that does it, how it speaks."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import few

Options = argparse.Namespace


@dataclass(frozen=True)
class Command:
    """One line of ``medseg --help``.

    Attributes:
        sentence: What it does.
        add_options: Tells a parser its options.
        run: Does it; returns the exit status.
        passes_on: Whether options that it does not know are those of `medseg fit`, handed to it as ``overrides``.
    """

    sentence: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Options], int]
    passes_on: bool = False


def dataset_option(parser: argparse.ArgumentParser) -> None:
    """The dataset, as every command that reads one takes it."""
    parser.add_argument("dataset", type=Path, help="folder with a dataset.json (MSD, nnU-Net raw, or your own)")


TRUST = "a class outside medseg that the checkpoint names and that you trust, such as mynet.Plain; may be repeated"


NSD_MM = "tolerance of the surface Dice in mm (default: 2)"
SURFACES = "what surfaces are made of: voxels, as in MONAI, or areas, as in surface-distance (default: voxels)"


def trust_option(parser: argparse.ArgumentParser) -> None:
    """What a checkpoint may name."""
    parser.add_argument("--trust", action="append", metavar="PATH", help=TRUST)


METRIC = "a metric of your own to score too, such as mine_metric.size_similarity; may be repeated"


def workers_option(parser: argparse.ArgumentParser) -> None:
    """How many processes share the work."""
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")


def positive(text: str) -> int:
    """A whole number of 1 or more, as an option."""
    number = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0, as an option."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def minutes(text: str) -> float:
    """A time of a second or more, as an option."""
    number = above_zero(text)
    if number * 60 < 1:
        raise argparse.ArgumentTypeError(f"expected a second or more, got {60 * number:g} s")
    return number


def report_failures(failures: Sequence[Exception]) -> int:
    """A line for each of the first failures on the standard error; the exit status that follows."""
    for line in few([str(failure) for failure in failures]):
        sys.stderr.write(f"medseg: {line}\n")
    return 1 if failures else 0


def say(text: str) -> None:
    """A line on the standard output."""
    sys.stdout.write(f"{text}\n")


def show(renderable: Any) -> None:
    """A table of rich's on the standard output."""
    from rich.console import Console

    Console().print(renderable)


def lines(facts: dict[str, Any]) -> list[str]:
    """Aligned ``key  value`` lines."""
    width = max(map(len, facts), default=0)
    return [f"{key:<{width}}  {value}" for key, value in facts.items()]
