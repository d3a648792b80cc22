"""The commands that only tell: the losses, the networks, what a file is, what a shell can complete."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

from medseg.cli.command import Command, Options, lines, say
from medseg.cli.completion import COMPLETION


def _listed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one of them, in full")
    parser.add_argument("--json", action="store_true", help="for machines")


def _losses(options: Options) -> int:
    from medseg.losses import catalogue

    return _list(options, catalogue)


def _nets(options: Options) -> int:
    from medseg.nets import catalogue

    return _list(options, catalogue)


def _list(options: Options, catalogue: ModuleType) -> int:
    if options.json:
        say(json.dumps(catalogue.rows(), indent=1))
    else:
        say(catalogue.describe(options.name) if options.name else catalogue.overview())
    return 0


def _info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a checkpoint, a run, a store, an exported network or a dataset")
    parser.add_argument("--net", default="unet", help="for a store, the network to say the cost of (default: unet)")
    parser.add_argument("--json", action="store_true", help="for machines")


def _info(options: Options) -> int:
    from medseg.cli.info import describe_path

    facts = describe_path(options.path, options.net)
    say(json.dumps(facts, indent=1) if options.json else "\n".join(lines(facts)))
    return 0


def _card_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run, of which the best is meant")
    parser.add_argument("--scores", type=Path, help="folder of an evaluation (default: what medseg test wrote)")
    parser.add_argument("--out", type=Path, default=Path("MODEL_CARD.md"), help="the card (default: MODEL_CARD.md)")


def _card(options: Options) -> int:
    from medseg.cli.card import write_card

    blanks = write_card(options.checkpoint, options.scores, options.out)
    say(f"Written to {options.out}; {blanks} blanks in it are yours to fill")
    return 0


TOLD = {
    "losses": Command("list the losses, or explain one", _listed_options, _losses),
    "nets": Command("list the networks, or explain one", _listed_options, _nets),
    "model-card": Command("write a model card with its numbers, and blanks for what you know", _card_options, _card),
    "completion": COMPLETION,
    "info": Command("say what a checkpoint, a store or a dataset is", _info_options, _info),
}
