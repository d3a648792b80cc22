"""What a checkpoint may be made of: plain data and tensors, which are read again without a line of code being run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medseg.errors import UsageError

_PLAIN = {f"builtins.{kind}" for kind in ("NoneType", "bool", "int", "float", "str")} | {"torch.Size"}
_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.device"}
_TABLES = {"builtins.dict", "collections.OrderedDict", "collections.Counter"}
_LISTS = {"builtins.list", "builtins.tuple"}
_DEEPEST = 16  # a pickle may hold a list that holds itself

_OWNERS = {
    "hyper_parameters": "the task's hyperparameters",
    "datamodule_hyper_parameters": "the data module's hyperparameters",
    "callbacks": "the callbacks' state",
}


def not_plain(
    value: Any, *, tensors: bool = False, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What in some value is neither plain data nor made of it: where it is, by keys, and of what class.

    Args:
        value: Anything.
        tensors: Let tensors pass, and keys that are no text.
        place: Where the value itself is.

    Example:
        >>> list(not_plain({"a": [1, {2}]}))
        [(('a', '1'), 'builtins.set')]
    """
    kind = name_of(value)
    if len(place) > _DEEPEST:
        yield place, kind
    elif kind in _TABLES:
        for key, item in value.items():
            if isinstance(key, str) or (tensors and name_of(key) in _PLAIN):
                yield from not_plain(item, tensors=tensors, place=(*place, str(key)))
            else:
                yield (*place, repr(key)), name_of(key)
    elif kind in _LISTS:
        for number, item in enumerate(value):
            yield from not_plain(item, tensors=tensors, place=(*place, str(number)))
    elif kind not in _PLAIN and not (tensors and kind in _TENSORS):
        yield place, kind


def require_plain(content: Mapping[str, Any]) -> None:
    """Refuse to write a checkpoint that could not be read again.

    Args:
        content: Of the checkpoint, or some entries of it.

    Raises:
        UsageError: Something in it is no plain data; the sentence says what and whose.
    """
    for entry, value in content.items():
        for place, kind in not_plain(value, tensors=entry != "hyper_parameters", place=(entry,)):
            owner = _OWNERS.get(entry)
            told = f"{'.'.join(place[1:])} in {owner}" if owner else ".".join(place)
            raise UsageError(
                f"no checkpoint could be read again with {told}, which is a {kind}",
                "Make it numbers, text, lists or tables of these" + (", or a tensor" * (entry != "hyper_parameters")),
            )


def name_of(value: Any) -> str:
    """The class of a value, as pickles have it."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
