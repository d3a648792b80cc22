"""The words that an option of a training may be, read from the sources of the tables where they stand.

The tables import torch and Lightning, which takes seconds: a misspelt name is answered without.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import medseg
from medseg.errors import UsageError, meant
from medseg.machine.hardware import PRECISIONS, precision_named

_FILED = {"model.net": ("nets", "net"), "model.loss": ("losses", "loss")}
"""Option -> the package and the decorator that file a function under its own name."""

_LISTED = {
    "model.optimizer": ("training/optimise.py", "OPTIMIZERS"),
    "model.schedule": ("training/optimise.py", "SCHEDULES"),
    "data.augmentation": ("patches/settings.py", "_WHOLE_PRESETS"),
}
"""Option -> the module and the table whose keys they are."""


@cache
def words_of(option: str) -> tuple[str, ...]:
    """What an option may be, apart from what the user made; nothing where that is no word.

    Example:
        >>> words_of("model.schedule"), words_of("model.lr")
        (('poly', 'cosine', 'linear', 'constant'), ())
    """
    root = Path(medseg.__path__[0])
    if option == "trainer.precision":
        return PRECISIONS
    if option in _LISTED:
        file, table = _LISTED[option]
        return tuple(_keys(ast.parse((root / file).read_text(encoding="utf-8")), table))
    if option in _FILED:
        package, decorator = _FILED[option]
        trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted((root / package).glob("*.py")))
        return tuple(sorted(name for tree in trees for name in _decorated(tree, decorator)))
    return ()


def require_word(option: str, value: object) -> None:
    """Refuse what is plainly a misspelt word; whatever might be something else is left to those who build it.

    Raises:
        UsageError: It is; the nearest legal one is given.
    """
    if not isinstance(value, str | int) or value == "null":
        return
    if option == "trainer.precision":
        precision_named(value)
        return
    legal = words_of(option)
    names = _losses_in(str(value)) if option == "model.loss" else [str(value)]
    for name in names if legal else ():
        if name not in legal and name.isidentifier():
            noun = "network" if option == "model.net" else option.rpartition(".")[2]
            remedy = f"Choose one of {', '.join(legal)}" if len(legal) < 12 else "medseg losses lists them"
            problem = f"there is no {noun} {name!r}{meant(name, legal)}"
            raise UsageError(problem, f"{remedy}; what you wrote yourself takes its dotted path")


def _losses_in(text: str) -> list[str]:
    """The names in a sum of losses, without schedules and dotted paths; none where it cannot be read."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found, todo = [], [tree]
    while todo:
        match todo.pop():
            case ast.BinOp(left=left, right=right):
                todo += [right, left]
            case ast.UnaryOp(operand=operand):
                todo.append(operand)
            case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
                found.append(name)
    return [name for name in found if name not in _schedules()]


@cache
def _schedules() -> tuple[str, ...]:
    source = Path(medseg.__path__[0]) / "losses" / "schedule.py"
    return tuple(_keys(ast.parse(source.read_text(encoding="utf-8")), "SCHEDULES"))


def _keys(tree: ast.Module, table: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table and isinstance(node.value, ast.Dict):
            yield from (key.value for key in node.value.keys if isinstance(key, ast.Constant))  # type: ignore[misc]


def _decorated(tree: ast.Module, decorator: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and decorator in map(_name, node.decorator_list):
            yield node.name


def _name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def last_values(words: Sequence[str]) -> dict[str, str]:
    """The options of a command line that have a value, each with its last."""
    found = {}
    for word, after in pairwise([*words, "--"]):
        name, equals, value = word.partition("=")
        if name.startswith("--") and (equals or not after.startswith("--")):
            found[name[2:]] = value if equals else after
    return found
