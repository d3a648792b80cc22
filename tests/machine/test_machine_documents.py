"""What people write in YAML and JSON is read as they mean it, and a key that stands twice is a mistake."""

import json

import pytest
import yaml

from medseg.errors import DataError
from medseg.machine.documents import read_document


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "line", "key"),
    [
        ("a.yaml", "model: {lr: 1}\ntrainer: {}\nmodel: {net: unet}\n", 3, "model"),
        ("a.yaml", "model:\n  lr: 1\n  net: unet\n  lr: 2\n", 4, "lr"),
        ("a.yaml", "- {train: [a]}\n- {val: [b], val: [c]}\n", 2, "val"),
        ("a.yaml", "a: {'b': 1,\n  \"b\": 2}\n", 2, "b"),
        ("a.json", '{"a": 1,\n\t"b": {"c": 1,\n\t"c": 2}}', 3, "c"),
        ("a.json", '[{"a": 1}, {"a": 1},\n\n {"a": 1, "a": 1}]', 3, "a"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path, name, text, line, key):
    with pytest.raises(DataError, match=rf"{name} is not .*\(line {line}: the key '{key}' occurs twice\)"):
        read_document(written(tmp_path, name, text))


def test_numbers_are_numbers_and_times_dates_and_names_of_cases_are_text(tmp_path):
    text = "[1e-3, 3e5, 1.5, .5, -7, 0, 0x1f, .inf, 1:00:00:00, 12:30:00, 2026-01-31, 007, 08, 1e3x, yes, null, '']"
    found = read_document(written(tmp_path, "a.yaml", text))
    numbers = [1e-3, 3e5, 1.5, 0.5, -7, 0, 31, float("inf")]
    assert found == [*numbers, "1:00:00:00", "12:30:00", "2026-01-31", "007", "08", "1e3x", True, None, ""]


@pytest.mark.parametrize(
    "text", ["{a: [", "a:\n\tb: 1", "a: &a [*a]", "!!python/object/apply:os.getcwd []", "{[1]: 2}", "[" * 100_000]
)
@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_what_is_neither_is_one_sentence(tmp_path, name, text):
    with pytest.raises(DataError, match=r"a\.\w+ is not (YAML|valid JSON) \(.+\)\. Write it anew\.$"):
        read_document(written(tmp_path, name, text), remedy="Write it anew")


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_document(tmp_path / "a.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        read_document(tmp_path / "b.yaml")


def test_what_is_written_by_the_usual_tools_is_read_back(tmp_path):
    value = {"a": [1, 2.5, 1e-3, True, None, "x: y", "1:00", "1e3x", "012"], "b": {"ü": {"c": []}}, "3": "01"}
    assert read_document(written(tmp_path, "a.json", "\ufeff" + json.dumps(value, indent="\t"))) == value
    assert read_document(written(tmp_path, "a.yaml", yaml.safe_dump(value, allow_unicode=True))) == value
