"""What the configs of a training say, read by our rules and merged in their order; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.checkpoints.origin import flat
from medseg.checkpoints.run import Run
from medseg.errors import DataError, UsageError
from medseg.machine.documents import read_document

COMMANDS = ("fit", "validate", "test")
PARTS = ("data", "model", "trainer")

FOR_ONE_COMMAND = ("config", "run", "ckpt_path", "weights_only")
"""What one command is told for itself; it stands in no run's config, where another command would read it."""

KNOBS_OF = {"net_options": "net", "optimizer_options": "optimizer"}


def read_config(path: Path) -> dict[str, Any]:
    """What a config says.

    The config of a run says what was trained, not where to and from which checkpoint: that was for its own command.

    Raises:
        UsageError: It cannot be read, or is no table of options.
    """
    try:
        found = read_document(path)
    except DataError as error:
        raise UsageError(f"{error.path} {error.problem}", error.remedy) from None
    found = {} if found is None else found
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"{path} is no table of options", "Write it as model: {lr: 0.01}, or compare with configs/")
    if nested := found.keys() & set(COMMANDS):  # as Lightning's own command line writes it
        raise UsageError(f"{path} has its options below {min(nested)}:", "Write model: and data: at the margin")
    of_a_run = path.name == Run(path.parent).config.name and Run(path.parent).checkpoints.is_dir()
    return _nested(path, {key: value for key, value in found.items() if not (of_a_run and key in FOR_ONE_COMMAND)})


def _nested(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose dotted keys are tables, as the others are."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        group, *names = key.split(".")
        for name in reversed(names):
            value = {name: value}
        if group in PARTS and not isinstance(value, dict | None):
            raise UsageError(f"{path}: {group} is {value!r}, expected a table", f"Write it as {group}: {{name: value}}")
        said = {group: value or {}} if group in PARTS else {group: value}
        if twice := flat(found).keys() & flat(said).keys():
            raise UsageError(f"{path} says {min(twice)} twice", "Keep one of the two")
        found = merged(found, said)
    return found


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one, in which the newer wins; the knobs of what it names anew are not those of before.

    Example:
        >>> merged({"net": "unet", "net_options": {"features": [8]}}, {"net_options": {"dropout": 0.1}})
        {'net': 'unet', 'net_options': {'features': [8], 'dropout': 0.1}}
        >>> merged({"net": "unet", "net_options": {"features": [8]}}, {"net": "vnet"})
        {'net': 'vnet'}
    """
    renamed = {
        knobs
        for knobs, of in [*KNOBS_OF.items(), ("init_args", "class_path")]
        if of in old and new.get(of, old[of]) != old[of]
    }
    found = {key: value for key, value in old.items() if key not in renamed}
    for key, value in new.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def configs_in(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The configs that are named on a command line, wherever they stand, and the other words."""
    configs, rest, left = [], [], iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name not in ("--config", "-c"):
            rest.append(word)
            continue
        value = value if equals else next(left, "")
        if not value:
            raise UsageError("--config is empty", "Give the path of a file")
        configs.append(Path(value))
    return configs, rest
