"""What the configs of a training say, read by our rules and merged in their order; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.checkpoints.origin import flat
from medseg.checkpoints.run import Run
from medseg.errors import DataError, UsageError
from medseg.machine.documents import parse_document, read_document

COMMANDS = ("fit", "validate", "test")
PARTS = ("data", "model", "trainer")

FOR_ONE_COMMAND = ("config", "run", "ckpt_path", "weights_only")
"""What one command is told for itself; it stands in no run's config, where another command would read it."""

KNOBS_OF = {"net_options": "net", "optimizer_options": "optimizer"}

NAMES = {"model": tuple(KNOBS_OF.values()), "data": ("augmentation",)}
"""What is named by a word and has knobs: those of another word mean nothing to it."""


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
        >>> merged({"augmentation": "light"}, {"augmentation": {"rotation_deg": 10}})
        {'augmentation': {'preset': 'light', 'rotation_deg': 10}}
    """
    renamed = {
        knobs
        for knobs, of in [*KNOBS_OF.items(), ("init_args", "class_path")]
        if of in old and new.get(of, old[of]) != old[of]
    }
    found = {key: value for key, value in old.items() if key not in renamed}
    for key, value in new.items():
        before = found.get(key)
        if key == "augmentation":
            found[key] = _augmentation(before, value)
        else:
            found[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def _augmentation(old: Any, new: Any) -> Any:
    """Settings lie over the preset that was named, by a word or in their table; those of another preset are gone."""
    if isinstance(new, str):
        return {"preset": new, **old} if isinstance(old, dict) and "preset" not in old else new
    before = {"preset": old} if isinstance(old, str) else old
    if not isinstance(before, dict) or not isinstance(new, dict):
        return new
    renamed = "preset" in before and new.get("preset", before["preset"]) != before["preset"]
    return new if renamed else merged(before, new)


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


def named_in(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What a command line says of `NAMES`, as a config would, and the other words.

    Example:
        >>> named_in(["--model.net=vnet", "--trust", "model.net", "--data.augmentation.blur.probability", "0.5"])
        ({'model': {'net': 'vnet'}, 'data': {'augmentation': {'blur': {'probability': 0.5}}}}, ['--trust', 'model.net'])
    """
    found: dict[str, Any] = {}
    rest, left = [], iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        part, name, setting = (*option.split(".", 2), "", "")[:3]
        part = part.removeprefix("--") if word.startswith("--") else ""
        if name not in NAMES.get(part, ()) or (setting and name != "augmentation"):
            rest.append(word)
            continue
        if not equals and (value := next(left, "--")).startswith("--"):  # there is none, as the parser will say
            rest += [word, value] if value != "--" else [word]
            continue
        found = merged(found, {part: {name: _set(setting, _typed(value)) if setting else _typed(value)}})
    return found, rest


def _set(key: str, value: Any) -> dict[str, Any]:
    """One setting as a table; an augmentation of one's own is named by a path with dots."""
    of, _, setting = key.rpartition(".")
    return {of: {setting: value}} if of and not isinstance(value, dict) else {key: value}


def _typed(text: str) -> Any:
    """A value by the rule of a config; the text where it is none, or nothing."""
    try:
        return parse_document(Path("value"), text) if text.strip() else text
    except DataError:
        return text
