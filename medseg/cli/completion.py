"""``medseg completion``: what a shell needs to complete commands, options, the words some options take, and files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from medseg.cli.command import Command, Options, say
from medseg.cli.options import known, switches
from medseg.cli.reading import COMMANDS
from medseg.cli.words import words_of
from medseg.machine.hardware import AUTO

_LIKE_FIT = ("compare", "cross-validate")
"""They hand what is not theirs to ``medseg fit``."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to write a script for")
    parser.epilog = (
        "For this session: source <(medseg completion bash). For all: that line in ~/.bashrc; of zsh, after compinit, "
        'eval "$(medseg completion zsh)" in ~/.zshrc.'
    )


def _run(options: Options) -> int:
    import shtab

    (commands,) = (action.choices for action in options.root._actions if isinstance(action.choices, dict))
    for name in (*COMMANDS, *_LIKE_FIT):
        there = {option for action in commands[name]._actions for option in action.option_strings}
        for option in known("fit" if name in _LIKE_FIT else name):
            if len(option) > 1 and f"--{option}" not in there:
                commands[name].add_argument(f"--{option}")
    words = _words()
    for name, parser in commands.items():
        for action in parser._actions:
            if action.choices is None and action.nargs != 0:
                action.choices = words.get(action.dest, words.get(f"{name} {action.dest}"))
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own
    say(shtab.complete(options.root, options.shell))
    return 0


def _words() -> Mapping[str, Sequence[str]]:
    """What an option may be, where that is a word: by its name, that of the command before it if need be."""
    return {
        **dict.fromkeys(switches(), ("true", "false")),
        **dict.fromkeys(("net", "nets", "nets name"), words_of("model.net")),
        **dict.fromkeys(("losses", "losses name"), words_of("model.loss")),
        **{option: words for option in known("fit") if (words := words_of(option))},
        "trainer.accelerator": (AUTO, "cpu", "gpu"),
    }


COMPLETION = Command(
    "print the script by which bash or zsh completes commands, options and their words, and files", _options, _run
)
