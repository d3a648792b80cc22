"""What ``fit``, ``validate`` and ``test`` can be told, read from the sources of what takes it.

Lightning and torch take ten seconds to import: their signatures are read, not called, so that a misspelt option and a
question for help are answered at once. What the options mean is decided by `medseg.cli.config`.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import medseg
from medseg.checkpoints.origin import flat
from medseg.cli.command import METRIC, NSD_MM, SURFACES, TRUST, say
from medseg.cli.reading import PARTS, configs_in, merged, read_config
from medseg.cli.words import last_values, require_word
from medseg.errors import UsageError, nearest
from medseg.machine.docstrings import arguments

_LOGGERS = "tensorboard (the default), csv, wandb, mlflow, a class, a list of them, or false; metrics.csv comes always"
_SCORING: dict[str, tuple[Any, str]] = {
    "run": ("data/runs/latest", "folder of this run"),
    "trainer.logger": (None, _LOGGERS),
    "ckpt_path": (None, "best (the default), last or a file"),
    "trust": (None, TRUST),
    "on_training_cases": (False, "score cases that it was trained on too"),
}
OWN: dict[str, dict[str, tuple[Any, str]]] = {
    "fit": {
        **{name: _SCORING[name] for name in ("run", "trainer.logger")},
        "ckpt_path": (None, "go on from: last, best or a file"),
        "checkpoint_minutes": (5.0, "minutes between two writes of last.ckpt, beside that after each validation"),
    },
    "validate": _SCORING,
    "test": {
        **_SCORING,
        "metric": (None, METRIC),
        "nsd_mm": (2.0, NSD_MM),
        "surfaces": ("voxels", SURFACES),
    },
}
"""Per command, the options that are neither of data, task nor trainer: default and meaning."""

_OF_EVERY_COMMAND = ("config", "c", "help", "h", "help-all", "print_config", "seed_everything")
_OURS = {"model": ("training/task.py", "SegmentationTask"), "data": ("patches/datamodule.py", "VolumesDataModule")}
_USUAL = ("max_steps", "max_epochs", "max_time", "accelerator", "devices", "num_nodes", "precision", "logger")


def answer(words: Sequence[str]) -> bool:
    """Answer ``--help`` in short, and refuse what no option is called, before anything heavy is imported.

    Args:
        words: The command and what follows it.

    Returns:
        Whether that was all: help was asked for.

    Raises:
        UsageError: An option on the command line or in a config does not exist, or a config cannot be read.
    """
    command, *rest = words
    if {"-h", "--help"} & set(rest):
        say(short_help(command))
        return True
    configs, rest = configs_in(rest)
    legal = known(command)
    for word in rest:
        if word.startswith("--"):
            _require_known(word[2:].partition("=")[0].rstrip("+"), command, legal)
    said: Mapping[str, Any] = {}
    for path in configs:
        said = merged(said, read_config(path))
    for name, value in said.items():
        if command == "fit" or name in ("data", "trainer"):
            for key in [f"{name}.{inner}" for inner in value] if name in PARTS and value else [name]:
                _require_known(key, command, legal)
    if command == "fit" and "torch" not in sys.modules:  # else nothing is gained, and more may be filed than we ship
        for option, value in (flat(said) | last_values(rest)).items():
            require_word(option, value)
    return False


def _require_known(key: str, command: str, legal: Sequence[str]) -> None:
    """Look at the first two parts of a name: what lies deeper is known to its class alone."""
    shallow = ".".join(key.split(".")[:2])
    if shallow not in legal and shallow.split(".")[0] not in _OF_EVERY_COMMAND:
        raise unknown(key, command, [name for name in legal if "." in name or name not in PARTS])


@cache
def known(command: str) -> list[str]:
    """The options of a command, by their first two parts, such as ``run``, ``model`` and ``model.lr``."""
    groups = PARTS if command == "fit" else ("data", "trainer")
    inner = [f"{group}.{name}" for group in groups for name in (*_parameters(group), "help")]
    return sorted({*OWN[command], *_OF_EVERY_COMMAND, *groups, *inner} - {"model.plan"})


def switches() -> list[str]:
    """The options of ``fit`` that are true or false, such as ``model.compile``."""
    told = {f"{group}.{name}": default for group in PARTS for name, (default, _) in _parameters(group).items()}
    return [name for name, default in told.items() if default in ("True", "False")]


def unknown(key: str, command: str, legal: Sequence[str]) -> UsageError:
    """Say that there is no such option, and which was meant."""
    if command != "fit" and key.startswith("model."):
        return UsageError(f"{key} is no option of medseg {command}", "Leave it out: the network is the checkpoint's")
    name = key.rpartition(".")[2]
    legal = [word for word in legal if word.rpartition(".")[2] != "help"]
    likely = [word for word in legal if word.startswith(key) or word.rpartition(".")[2] in (name, f"max_{name}")]
    likely = likely or [word for word in [nearest(key, legal) or _nearest_part(key, legal)] if word]
    likely.sort(key=lambda word: word.count("."))
    hint = f", did you mean {' or '.join(map(repr, likely))}" if likely else ""
    return UsageError(f"there is no option {key!r}{hint}", f"See medseg {command} --help-all for all of them")


def _nearest_part(key: str, legal: Sequence[str]) -> str:
    """The legal key whose group or name is spelt most like the one given."""
    group, _, name = key.partition(".")
    groups = sorted({word.split(".")[0] for word in legal})
    ours = [word for word in legal if word.startswith(f"{nearest(group, groups)}.")]
    close = nearest(name, [word.partition(".")[2] for word in (ours or legal)])
    return next((word for word in (ours or legal) if close and word.partition(".")[2] == close), "")


def short_help(command: str) -> str:
    """What a person needs to know first: medseg's own options, each with its default and a sentence."""
    own = {name: told for name, told in OWN[command].items() if "." not in name}
    lines = [
        f"medseg {command} --config FILE [--config FILE ...] [--OPTION VALUE ...]",
        "",
        "  --config FILE: a config in YAML; later ones and options count for more. --print_config shows the sum.",
        *[_line(name, default, meaning) for name, (default, meaning) in own.items()],
    ]
    for group in ("data", "model") if command == "fit" else ("data",):
        lines += ["", {"data": "What it learns from:", "model": "What learns, and how:"}[group]]
        lines += [
            _line(f"{group}.{name}", *told)
            for name, told in _parameters(group).items()
            if (group, name) != ("model", "plan")
        ]
    usual = ", ".join(f"--trainer.{name}" for name in _USUAL)
    return "\n".join([*lines, "", f"Of Lightning's trainer, above all {usual}.", "", "--help-all lists every option."])


def _line(name: str, default: Any, meaning: str) -> str:
    shown = str(default).lower() if str(default) in ("True", "False") else str(default)
    told = meaning if default in (None, "None", "") or "(default" in meaning else f"{meaning} (default: {shown})"
    return textwrap.fill(f"--{name}: {told}", width=100, initial_indent="  ", subsequent_indent="      ")


@cache
def _parameters(group: str) -> dict[str, tuple[str, str]]:
    """What a part takes: the default as it is written, and the first sentence of what its docstring says of it."""
    if group == "trainer":
        spec = find_spec("pytorch_lightning")  # found, not imported
        places = spec.submodule_search_locations if spec else None
        return dict(_signature(Path((places or [""])[0]) / "trainer" / "trainer.py", "Trainer"))
    file, name = _OURS[group]
    return dict(_signature(Path(medseg.__path__[0]) / file, name))


def _signature(path: Path, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    made = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    told = _meanings(ast.get_docstring(made) or ast.get_docstring(found) or "")
    positional = made.args.args[1:]
    defaults = [None] * (len(positional) - len(made.args.defaults)) + list(made.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True)]
    for argument, default in pairs:
        shown = ast.unparse(default).strip("'") if default else ""
        yield argument.arg, (shown, told.get(argument.arg, ""))


def _meanings(docstring: str) -> dict[str, str]:
    """The first sentence about each argument."""
    told = arguments(docstring)
    return {name: text.split(". ")[0].split("; ")[0].rstrip(".").replace("`", "") for name, text in told.items()}
