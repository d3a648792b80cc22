"""``medseg completion``: what a shell needs to complete medseg's commands and options."""

from __future__ import annotations

import argparse

from medseg.cli.command import Command, Options, say
from medseg.cli.options import known
from medseg.cli.reading import COMMANDS


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to write a script for")


def _run(options: Options) -> int:
    import shtab

    (commands,) = (action.choices for action in options.root._actions if isinstance(action.choices, dict))
    for name in COMMANDS:
        for option in known(name):
            if len(option) > 1:
                commands[name].add_argument(f"--{option}")
    say(shtab.complete(options.root, options.shell))
    return 0


COMPLETION = Command("print the script by which bash or zsh completes commands and options", _options, _run)
