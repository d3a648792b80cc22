"""The language of losses: weighted sums of names with literal knobs, read from a syntax tree; nothing is run."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from typing import Any, get_type_hints

from medseg.errors import nearest
from medseg.losses.class_weights import tree_of
from medseg.losses.knobs import Real, checked_knobs
from medseg.losses.schedule import OPERATORS, SCHEDULES, Arithmetic, Constant, Weight, first_fault
from medseg.losses.table import Row, row_named, rows
from medseg.machine.typed import typed

GRAMMAR = "Write a sum such as: dice + 0.5 * focal(gamma=2)"


@dataclass(frozen=True)
class Term:
    """One summand: a loss with its knobs, times a weight that may change with the epoch."""

    weight: Weight
    row: Row
    knobs: dict[str, Any]


def parse(expression: str) -> list[Term]:
    """Read an expression into its terms.

    Args:
        expression: A sum of terms; each a name, a name with keyword literals, or a weight times a term (or times a
            sum in brackets). A name is one of the table or the dotted path of a function of one's own, which is
            imported. A weight is a number, a schedule (``linear(0, 1, epochs=50)``, ``increase(0.01)``), or
            arithmetic of those.

    Raises:
        ValueError: If it is anything else; the message names what was read and the nearest legal word.
        UsageError: A dotted path cannot be imported.

    Example:
        >>> [(term.weight(0), term.row.name, term.knobs) for term in parse("dice + 0.5 * focal(gamma=1)")]
        [(1.0, 'dice', {}), (0.5, 'focal', {'gamma': 1.0})]
    """
    _ = tree_of(expression)  # or it would be read in vain
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the loss {expression!r:.200} cannot be read ({error}). {GRAMMAR}") from error
    terms = _terms(tree, Constant(1.0))
    if isinstance(terms, list) and terms:
        return terms
    raise ValueError(f"the loss {expression!r:.200} names no loss, only a number. {GRAMMAR}")


def paths_in(expression: str) -> tuple[str, ...]:
    """The dotted paths that `parse` would import, however they are written; none of what cannot be read.

    Raises:
        ValueError: It is nested too deeply.

    Example:
        >>> paths_in("dice + 0.5 * (mine . losses).own(k=2)")
        ('mine.losses.own',)
    """
    dotted = [node for node in ast.walk(tree_of(expression)) if isinstance(node, ast.Attribute)]
    inner = {id(node.value) for node in dotted}
    return tuple(ast.unparse(node) for node in dotted if id(node) not in inner)


def _terms(node: ast.expr, weight: Weight) -> list[Term]:
    """Flatten a sum, carrying the weight that stands before it."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _terms(left, weight) + _terms(right, weight)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            if (factor := _weight(left)) is not None:
                return _terms(right, Arithmetic("Mult", weight, factor))
            if (factor := _weight(right)) is not None:
                return _terms(left, Arithmetic("Mult", weight, factor))
            raise ValueError(f"{ast.unparse(node)!r} multiplies two losses. A weight must be a number or a schedule.")
        case ast.Name() | ast.Attribute():
            return [_term(_path(node), [], weight)]
        case ast.Call(func=ast.Name() | ast.Attribute() as function, args=arguments, keywords=keywords):
            name = _path(function)
            if arguments:
                raise ValueError(
                    f"{ast.unparse(node)!r}: the knobs of {name} need their names, such as {_sample(name)}"
                )
            return [_term(name, keywords, weight)]
        case ast.BinOp(op=ast.Sub()) | ast.UnaryOp(op=ast.USub()):
            raise ValueError(
                f"{ast.unparse(node)!r} subtracts a loss: descending it would make that term worse. Add it instead."
            )
    raise ValueError(f"{ast.unparse(node)!r} is not a loss. {GRAMMAR}")


def _weight(node: ast.expr) -> Weight | None:
    """Read a number, a schedule or arithmetic of those; None if there is a loss in it."""
    match node:
        case ast.Constant(value=float() | int() as value) if not isinstance(value, bool):
            if not abs(value) <= sys.float_info.max:
                raise ValueError("a weight of the loss is too large to be a finite number")
            return Constant(float(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand) if (inner := _weight(operand)) is not None:
            return Arithmetic("Sub", Constant(0.0), inner)
        case ast.BinOp(left=left, op=op, right=right) if (sign := type(op).__name__) in OPERATORS:
            a, b = _weight(left), _weight(right)
            return None if a is None or b is None else Arithmetic(sign, a, b)
        case ast.Call(func=ast.Name(id=name)) if name in SCHEDULES:
            return _schedule(node)
    return None


def _schedule(node: ast.Call) -> Weight:
    schedule = SCHEDULES[ast.unparse(node.func)]
    positional = [literal(argument) for argument in node.args]
    try:
        given = inspect.signature(schedule).bind(*positional, **{str(k.arg): literal(k.value) for k in node.keywords})
    except TypeError as error:
        raise ValueError(
            f"{ast.unparse(node)!r} is not a schedule ({error}), such as linear(0, 1, epochs=50)"
        ) from error
    types, numbers = get_type_hints(inspect.unwrap(schedule)), {}
    for name, value in given.arguments.items():
        try:
            numbers[name] = typed(value, Real if types[name] is float else types[name])
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{ast.unparse(node)!r}: {name} is {value!r} ({error})") from None
    return schedule(**numbers)


def _path(node: ast.expr) -> str:
    """A name or a dotted path as it is written."""
    path = ast.unparse(node)
    if not all(name.isidentifier() for name in path.split(".")):
        raise ValueError(f"{path!r} is not a loss. {GRAMMAR}")
    return path


def _term(name: str, keywords: list[ast.keyword], weight: Weight) -> Term:
    table = rows()
    if "." not in name and name not in table:
        guess = nearest(name, [*table, *SCHEDULES])
        hint = f"Did you mean {guess!r}?" if guess else "`medseg losses` lists them."
        raise ValueError(f"there is no loss {name!r}. {hint} One of your own takes its dotted path, my_file.{name}.")
    if fault := first_fault(weight):
        raise ValueError(
            f"the weight of {name} is {fault[1]:g} at epoch {fault[0]}: it must be a finite number of at least 0, "
            "for descending a negative one would make that term worse"
        )
    if any(keyword.arg is None for keyword in keywords):
        raise ValueError(f"{name}(**...) is not a literal. Write the knobs out.")
    knobs = {str(keyword.arg): literal(keyword.value) for keyword in keywords}
    about = row_named(name)
    return Term(weight, about, checked_knobs(about, knobs))


def literal(node: ast.expr) -> Any:
    """A number, string, truth value, None, list or tuple; ``inf`` is one too."""
    if isinstance(node, ast.Name) and node.id == "inf":
        return float("inf")
    if isinstance(node, ast.Name) and node.id.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(node.id.lower())
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(
            f"{ast.unparse(node)!r} is not a literal: a knob takes a number, a string, True, False, None or a list"
        ) from error


def _sample(name: str) -> str:
    knobs = rows()[name].knobs if name in rows() else {}
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in list(knobs.items())[:2])})"
