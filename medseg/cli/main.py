"""The entry point: parses, dispatches, and turns failures into one sentence and an exit status."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import medseg
from medseg.cli.command import say
from medseg.cli.commands import COMMANDS
from medseg.errors import MedsegError, explaining, meant
from medseg.machine.dotted import see_working_directory

LIGHTNING_COMMANDS = {
    "fit": "train a network",
    "validate": "score a checkpoint on the validation cases, on the prepared grid",
    "test": "predict held-out cases on their own grid, score them per organ, write the report",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser that answers a misspelt option or command with the meant legal one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add one; an option of several values keeps those that it had when it is given again."""
        if settings.get("nargs") in ("+", "*") and names[0].startswith("-"):
            settings["action"] = "extend"
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what was probably meant; exit status 2."""
        legal = [option for action in self._actions for option in action.option_strings]
        chosen = re.search(r"invalid choice: '([^']+)'", message)
        if chosen:
            legal = [str(choice) for action in self._actions for choice in action.choices or ()]
        words = (
            [chosen.group(1)]
            if chosen
            else [word.split("=")[0].strip(",:") for word in message.split() if word[:2] == "--"]
        )
        hint = next((meant(word, legal) for word in words if word not in legal), "")
        self.exit(2, f"{self.prog}: {message}{hint}. See {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done, 1 the data or the result is at fault, 2 wrong usage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if _reads_the_script_again():
        return 0
    see_working_directory()
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # names no file; what matters of it we say ourselves
    try:
        with explaining():
            return _run(words)
    except MedsegError as error:
        sys.stderr.write(f"medseg: {error}\n")
        return error.exit_status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("medseg: stopped by the user\n")
        return 130


def _reads_the_script_again() -> bool:
    """Whether a script that calls `main` is only being read, by a process that its first reading has started.

    Loader workers are spawned, and begin by importing the script; where it does not ask for its ``__name__``, they
    arrive here. What it defines is needed; what it does must not be done again.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            atexit.register(_tell_of_the_guard)
            return True
    return False


def _tell_of_the_guard() -> None:
    """Say why a worker ended: where a script goes on to end its process, it ends the worker's too."""
    if "__mp_main__" not in sys.modules:  # it has never been read to its end
        sys.stderr.write(
            "medseg: this script ends the loader workers, which read it too. "
            'Put the call of medseg, and what comes after it, under if __name__ == "__main__":.\n'
        )


GREETING = """medseg trains 3D segmentation networks on your own volumes, predicts, and tells Dice per organ.

  medseg demo             all of it once, on volumes that it makes, in a few minutes
  medseg verify DATASET   what is wrong with your files; then plan, prepare, fit, test, predict
  medseg predict --ckpt RUN --input IMAGES --output FOLDER
  medseg losses, nets     what can be trained, and when to take it
  medseg --help           every command

Nothing leaves this machine, unless you ask for a logger that sends. It is no medical device."""


def _run(words: list[str]) -> int:
    if not words:
        say(GREETING)
        return 0
    if words and words[0] in LIGHTNING_COMMANDS:
        from medseg.cli.options import answer

        if answer(words):
            return 0
        from medseg.cli.training import run_lightning

        return run_lightning(words)
    options, strangers = build_parser().parse_known_args(words)
    if options.passes_on:
        options.overrides = strangers
    elif strangers:  # the parser of the command, not the one above it, knows what was meant
        options.parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    status: int = options.run_command(options)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; those of Lightning are listed and parsed by Lightning."""
    parser = _Parser(prog="medseg", description=(medseg.__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"medseg {medseg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, sentence in LIGHTNING_COMMANDS.items():
        commands.add_parser(name, help=sentence, add_help=False)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.sentence, description=command.sentence)
        command.add_options(subparser)
        subparser.set_defaults(run_command=command.run, parser=subparser, root=parser, passes_on=command.passes_on)
    return parser
