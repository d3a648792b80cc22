"""Documents that people write, in YAML or JSON: read by one rule, in which a key that occurs twice is a mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import DataError

_TAG = "tag:yaml.org,2002:"


def read_document(path: Path, *, remedy: str = "Correct that file") -> Any:
    """What a file holds: JSON if it is called so, else YAML.

    Unlike in YAML 1.1, ``1e-3`` is a number, and ``1:00:00:00``, ``2026-01-31`` and ``007`` are text.

    Args:
        path: The file, in UTF-8.
        remedy: What a user whose file cannot be read should do.

    Raises:
        DataError: The file is missing or unreadable, is not what its name says, or holds a key twice.
    """
    return parse_document(path, read_text(path, remedy=remedy), remedy=remedy)


def read_text(path: Path, *, remedy: str) -> str:
    """The text of a file in UTF-8.

    Raises:
        DataError: The file is missing or unreadable.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(path, "is not a text file in UTF-8", remedy) from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", remedy) from None


def parse_document(path: Path, text: str, *, remedy: str = "Correct that file") -> Any:
    """As `read_document`, of text that was read already."""
    json_wanted = path.suffix == ".json"
    try:
        found = _json(text) if json_wanted else yaml.load(text, _Loader)
        json.dumps(found, default=str, skipkeys=True)  # which refuses what holds itself
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(path, f"is not {'valid JSON' if json_wanted else 'YAML'} ({_told(error)})", remedy) from None
    return found


def _told(error: Exception) -> str:
    """What is wrong and in which line, without the parser's own view of it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else str(error)


class _Loader(yaml.SafeLoader):
    """YAML whose keys occur once, without dates and numbers of base 60 or 8, with the floats of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own attribute
        first: [
            (tag, of) for tag, of in known if tag not in {f"{_TAG}{kind}" for kind in ("timestamp", "int", "float")}
        ]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As YAML's own, but for keys that repeat."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} occurs twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"[-+]?(0x[0-9a-fA-F]+|0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?([0-9]+\.[0-9]*|\.?[0-9]+(?=[eE])|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"),
    list("-+0123456789."),
)


def _json(text: str) -> Any:
    """JSON whose keys occur once; where one does not, YAML, of which JSON is a part, knows the line."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _RepeatedKeyError:
        yaml.load(text.replace("\t", " "), _Loader)
        raise


class _RepeatedKeyError(ValueError):
    """A key of a JSON object occurs twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys occur once."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return table
