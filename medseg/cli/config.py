"""What a training was told, in configs and on the command line: read as one, parsed, and answered in sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, Namespace, set_loader
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger

from medseg.checkpoints.run import Run
from medseg.cli.options import OWN, unknown
from medseg.cli.reading import KNOBS_OF, NAMES, PARTS, configs_in, merged, named_in, read_config
from medseg.errors import DataError, UsageError, nearest
from medseg.machine.documents import parse_document
from medseg.metrics.table import Element
from medseg.patches.datamodule import VolumesDataModule
from medseg.plan.plan import Plan
from medseg.training.fit import LoggerName, Trainer
from medseg.training.ranges import require_in_range
from medseg.training.task import SegmentationTask

GROUPS = {"trainer": Trainer, "data": VolumesDataModule, "model": SegmentationTask}

_OF_THE_MACHINE = ("accelerator", "devices", "num_nodes", "precision", "strategy")


class MedsegCLI(LightningCLI):
    """Lightning's command line for ``fit``, ``validate`` or ``test``: what it was told, and what is built of that.

    Its configs are merged in their order and read by our rules, and the trainer is built by `medseg.training.fit`.

    Args:
        command: One of `COMMANDS`.
        words: What follows it.

    Attributes:
        config: The options.

    Raises:
        UsageError: A config cannot be read, an option is unknown or missing, or its value cannot be.
    """

    def __init__(self, command: str, words: Sequence[str]) -> None:
        self.command = command
        set_loader("yaml", _value, (yaml.YAMLError,))
        super().__init__(
            SegmentationTask,
            VolumesDataModule,
            trainer_class=Trainer,
            seed_everything_default=0 if command == "fit" else False,  # what scores draws nothing
            save_config_callback=None,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": f"medseg {command}", "exit_on_error": False, "allow_abbrev": False},
            args=["--help" if word == "--help-all" else word for word in words],
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Those of trainer, data and, for ``fit``, task; the network of the other commands is their checkpoint's."""
        for name in GROUPS if self.command == "fit" else ("trainer", "data"):
            kind = GROUPS[name]
            parser.add_class_arguments(
                kind, name, instantiate=kind is not Trainer, sub_configs=True, fail_untyped=False, skip={"logger"}
            )
        parser.set_defaults({"trainer.enable_model_summary": False})  # the task says it in a line

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Those of `OWN`; the plan of the data is the task's."""
        for name, (default, meaning) in OWN[self.command].items():
            repeated = {"action": "append", "metavar": "PATH"} if name in ("trust", "metric") else {}
            parser.add_argument(f"--{name}", type=_KINDS_OF_OWN[name], default=default, help=meaning, **repeated)
        if self.command == "fit":
            parser.link_arguments("data.plan", "model.plan", compute_fn=Plan.to_dict, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """What the configs say, merged, then what the command line says."""
        configs, words = configs_in(args)
        config: dict[str, Any] = _named_by_default()
        for path in configs:
            config = merged(config, read_config(path))
        before = config.get("model") or {}
        if self.command != "fit":
            config, words = _of_a_finished_run(self.command, config, words, given=bool(configs))
        named, words = named_in(words)
        config = merged(config, named)
        try:
            self.config = parser.parse_args(["--config", yaml.safe_dump(config), *words])
        except ArgumentError as error:
            raise explain(str(error), self.command, sorted(action.dest for action in parser._actions)) from None
        if self.command == "fit":
            _tell_replaced(before, self.config.as_dict()["model"])
        if self.config.seed_everything is True:  # of which Lightning would make 0 with a warning, or another run's
            self.config.seed_everything = 0
        require_in_range(self.config.as_dict())
        if self.config.trainer.default_root_dir is not None:
            raise UsageError("trainer.default_root_dir is the folder of the run here", "Name it with --run")

    def instantiate_classes(self) -> None:
        """Nothing yet: the options are looked at first, then `built` does."""

    def built(self) -> Namespace:
        """Data and task; the trainer's options stay options, with loggers and callbacks built.

        Raises:
            UsageError: A plan, a loss expression or a setting cannot be; its own sentence says why.
        """
        try:
            return self.parser.instantiate_classes(self.config)
        except ValueError as error:
            raise UsageError(str(error).rstrip(".?"), "Correct the config") from None


def _named_by_default() -> dict[str, Any]:
    """What the knobs of a config are those of, where it names nothing."""
    told = {part: signature(GROUPS[part]).parameters for part in NAMES}
    return {part: {name: told[part][name].default for name in names} for part, names in NAMES.items()}


def _tell_replaced(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say which knobs of a config are gone: the command line has written or named others in their place."""
    for knobs in KNOBS_OF:
        if set(before.get(knobs) or ()) - set(now[knobs] or ()):
            rank_zero_info(f"model.{knobs} is {now[knobs]}: the command line replaces the config's {before[knobs]}")


def _value(text: str) -> Any:
    """A value as it is typed, by the rule of a config."""
    try:
        return parse_document(Path("value"), text)
    except DataError as error:
        raise yaml.YAMLError(error.problem) from None


_LoggerOption = LoggerName | Logger | bool | list[LoggerName | Logger] | None
_KINDS_OF_OWN: dict[str, Any] = {
    "run": str,
    "trainer.logger": _LoggerOption,
    "ckpt_path": str | None,
    "checkpoint_minutes": float,
    "trust": str,
    "on_training_cases": bool,
    "metric": str,
    "nsd_mm": float,
    "surfaces": Element,
}


def _of_a_finished_run(
    command: str, config: dict[str, Any], words: list[str], *, given: bool
) -> tuple[dict[str, Any], list[str]]:
    """What ``test`` and ``validate`` take of a training's config: its data, and the devices that it asks for."""
    run, checkpoint = (_value_of(words, name) for name in ("--run", "--ckpt_path"))
    if not given and not {"-h", "--help"} & set(words):
        of = Run(Path(run)) if run else Run.holding(checkpoint or ".")
        if not of.config.is_file():
            if run:
                problem = "holds no config.yaml" if of.path.is_dir() else "does not exist"
                remedy = "Name with --run the folder that medseg fit trained in"
                raise UsageError(f"{of.path} is no run: it {problem}", remedy)
            raise UsageError(f"{command} needs the run it is about", "Name its folder with --run, or give a --config")
        config = read_config(of.config)
        words = [*words, *([] if run else ["--run", str(of.path)])]
    data, model, trainer = ({**part} if isinstance(part := config.get(name), dict) else {} for name in PARTS)
    net = str(model.get("net", ""))
    if "." in net and (given or run):  # who names a config, or the run that it lies in, has named what it names
        rank_zero_info(f"the network {net} is imported, which the config names")
        words = [*words, "--trust", net]
    data.pop("augmentation", None)  # nothing is augmented here, and its functions might be somebody's own
    for name in ("store", "split"):
        if data.get(name) and run:
            data[name] = str(_near(Path(str(data[name])), Path(run)))
    kept = {name: value for name, value in trainer.items() if name in _OF_THE_MACHINE and not isinstance(value, dict)}
    return {"data": data, "trainer": kept}, words


def _value_of(words: Sequence[str], name: str) -> str:
    """The last value of an option on the command line; empty where it has none."""
    found = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        given, equals, value = word.partition("=")
        found = (value if equals else after) if given == name else found
    return found


def _near(path: Path, run: Path) -> Path:
    """A relative path of a run's config, seen from where its training was started: a folder above the run."""
    above = run.resolve().parents
    return path if path.exists() else next((place / path for place in above if (place / path).exists()), path)


def explain(message: str, command: str, legal: Sequence[str]) -> UsageError:
    """Turn a parser's message into our sentence, with the nearest legal key where one was misspelt.

    Example:
        >>> print(explain("Group 'model' does not accept option 'los'", "fit", ["model.loss", "data.store"]))
        there is no option 'model.los', did you mean 'model.loss'. See medseg fit --help-all for all of them.
    """
    text = " ".join(message.split())
    for pattern, answer in _ANSWERS.items():
        found = re.search(pattern, text)
        if found:
            return answer(found, command, legal)
    return UsageError(text.rstrip("."), "Correct the config or the command line")


def _unknown(found: re.Match[str], command: str, legal: Sequence[str]) -> UsageError:
    return unknown(".".join(filter(None, found.groups())), command, legal)


def _missing_of_class(found: re.Match[str], command: str, legal: Sequence[str]) -> UsageError:
    key, kind, names = found.groups()
    options = ", ".join(f"--{key}.{name}" for name in names.split(", "))
    return UsageError(f"{key}: {kind.rpartition('.')[2]} lacks {names}", f"Give it with {options}, or as its init_args")


def _wrong(found: re.Match[str], command: str, legal: Sequence[str]) -> UsageError:
    key, reason = found.groups()
    _, _, value = reason.rpartition("value: ")
    problem = re.search(r"Problem with given class_path '([^']+)': (.+?)(?= - Expected| Given value|$)", reason)
    kinds = _in_words(_hints(key))
    if problem:
        return UsageError(f"{key}: {problem[1]}: {problem[2].rstrip('.')}", "Correct that value")
    if not value or not kinds:
        return UsageError(f"{key}: {reason.rstrip('.')}", "Correct that value")
    close = next((kind for kind in kinds if kind.startswith(value)), nearest(value, kinds))
    told = f"{key} is {value!r}, expected {' or '.join(kinds) if len(kinds) < 3 else 'one of ' + ', '.join(kinds)}"
    return UsageError(told, f"Did you mean {close}" if close else "Correct that value")


def _hints(key: str) -> Any:
    """The annotation of an option."""
    group, _, name = key.partition(".")
    if key == "trainer.logger":
        return _LoggerOption
    kinds = GROUPS[group].__mro__[:2] if group in GROUPS else ()
    found = [get_type_hints(vars(kind)["__init__"]).get(name) for kind in kinds]
    return next((hint for hint in found if hint is not None), None)


def _in_words(kind: Any) -> list[str]:
    """What an annotation allows, a phrase each.

    Example:
        >>> _in_words(Literal["auto"] | int | tuple[int, int] | None)
        ['auto', 'a whole number', 'a list of 2 whole numbers']
    """
    origin, of = get_origin(kind), [part for part in get_args(kind) if part not in (type(None), ...)]
    if kind in _KINDS:
        return [_KINDS[kind]]
    if origin is Literal:
        return list(dict.fromkeys(map(str, of)))
    if origin in (Union, UnionType):
        return list(dict.fromkeys(phrase for part in of for phrase in _in_words(part)))
    if origin is dict:
        return ["a table {name: value}"]
    if origin is not None and of and not isinstance(of[0], list):  # a function, which nobody writes there
        return [f"a list of {f'{len(of)} ' if origin is tuple else ''}{_in_words(of[0])[0].removeprefix('a ')}s"]
    return [f"a {kind.__name__}"] if isinstance(kind, type) else []


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_ANSWERS: dict[str, Callable[[re.Match[str], str, Sequence[str]], UsageError]] = {
    r"Group '([^']+)' does not accept option '([^']+)'": _unknown,
    r"^Option '([^']+)' is not accepted|unrecognized arguments: --([^\s=]+)": _unknown,
    r"unrecognized arguments: (\S+)": lambda found, command, legal: UsageError(
        f"{found[1]} is no option", "Give a config with --config FILE, and values behind the name of their option"
    ),
    r"argument (\S+): expected one argument": lambda found, command, legal: UsageError(
        f"{found[1]} has no value", "Write one behind it"
    ),
    r"^Parser key \"([^\"]+)\":.*class_path '([^']+)': the following arguments are required: ([\w, ]+?)(?= -|$)": (
        _missing_of_class
    ),
    r"^the following arguments are required: (.+)": lambda found, command, legal: UsageError(
        f"{', '.join(f'--{name}' for name in found[1].split(', '))} is missing",
        "Give it on the command line or in the config",
    ),
    r"^Parser key \"([^\"]+)\":\s*(.+)": _wrong,
}
"""How the parser says it -> how we do."""
