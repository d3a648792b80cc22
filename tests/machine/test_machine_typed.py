"""Plain data to typed values: by the annotation alone, and a sentence for what does not fit."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.machine.typed import Interval, fields_of, misspelt, to_plain, typed


@dataclass(frozen=True)
class Settings:
    name: str
    size: tuple[int, int, int]
    scale: float | tuple[float, float] = 1.0
    scheme: Literal["ct", "mr"] = "ct"


@given(st.recursive(st.integers() | st.text() | st.booleans() | st.none(), lambda inner: st.lists(inner)))
def test_anything_stays_itself(value):
    assert typed(value, Any) == value == to_plain(value)


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (2.0, int, 2),
        (2, float, 2.0),
        (True, bool, True),
        (7, str, "7"),
        (None, int | None, None),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ((1, 2), list[int], [1, 2]),
        ([1, 2], Sequence[float], [1.0, 2.0]),
        ([[1, "a"]], tuple[tuple[int, str], ...], ((1, "a"),)),
        ({"liver": [1, 2], "spleen": 3}, dict[str, int | tuple[int, ...]], {"liver": (1, 2), "spleen": 3}),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ("ct", Literal["ct", "mr"], "ct"),
        (1, Annotated[float, Interval(0.0, 1.0)], 1.0),
        (float("inf"), Annotated[float, Interval(0.0, float("inf"))] | None, float("inf")),
    ],
)
def test_values_of_a_type(value, wanted, expected):
    found = typed(value, wanted)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "wanted", "sentence"),
    [
        (True, int, "expected a whole number, got True"),
        (2.5, int, "expected a whole number, got 2.5"),
        (float("inf"), int, "expected a whole number, got inf"),
        (float("nan"), float, "expected a number, got nan"),
        ("1", float, "expected a number, got '1'"),
        (1, bool, "expected True or False, got 1"),
        (True, Literal[1, 2], "expected one of 1, 2, got True"),
        (None, str, "expected text, got None"),
        (1.5, Annotated[float, Interval(0.0, 1.0)], "expected a number in [0, 1], got 1.5"),
        (True, Annotated[float, Interval()], "expected a finite number, got True"),
        (float("nan"), Annotated[float, Interval(0.0)], "expected a number of at least 0, got nan"),
        ([-1], Sequence[Annotated[float, Interval(0.0)]], "expected a number of at least 0, got -1"),
        ("abc", tuple[str, ...], "expected a list (each text), got 'abc'"),
        ([1, 2], tuple[int, int, int], "expected a list of 3 (each a whole number), got [1, 2]"),
        ([1, "x"], tuple[int, ...], "expected a whole number, got 'x'"),
        ([1], dict[str, int], "expected a table (each a whole number), got [1]"),
        ("x", int | tuple[int, ...] | None, "expected a whole number or a list (each a whole number) or None, got 'x'"),
    ],
)
def test_what_does_not_fit_is_said(value, wanted, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        typed(value, wanted)


def test_a_table_becomes_the_arguments_of_a_dataclass():
    assert Settings(**fields_of(Settings, {"name": "a", "size": [1, 2, 3.0]}, "it")) == Settings("a", (1, 2, 3))
    for table, sentence in (
        ([], "the plan must be a table of keys and values, got []"),
        ({"nmae": "a"}, "key of the plan 'nmae' is not known, did you mean 'name'"),
        ({"size": [1, 2]}, "the plan's size: expected a list of 3"),
        ({"scheme": "pt"}, "the plan's scheme: expected one of 'ct', 'mr', got 'pt'"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            fields_of(Settings, table, "the plan")
    assert misspelt("knob", "zzz", ["a", "b"]) == "knob 'zzz' is not known, expected one of a, b"
