"""The plan as a value and as a file: what it derives, what it refuses, and with which sentence."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from medseg.errors import DataError
from medseg.plan.plan import Normalisation, Plan, read_plan, write_plan

CT = Normalisation("ct", lower=-100.0, upper=300.0, mean=80.5, std=40.0)


def a_plan(**changes):
    values = {
        "name": "toy",
        "modalities": ("CT", "PET"),
        "labels": {"liver": 1, "spleen": 5},
        "orientation": "RAS",
        "spacing_mm": (1.0, 1.0, 2.5),
        "patch_size": (32, 16, 8),
        "batch_size": 2,
        "normalisation": (CT, Normalisation()),
        "strides": ((1, 1, 1), (2, 2, 1)),
        "kernels": ((3, 3, 1), (3, 3, 3)),
        "features": (8, 16),
        "ignore": 9,
    }
    return Plan(**(values | changes))


REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}


def test_exclusive_labels():
    plan = a_plan(labels={"spleen": 5, "kidney": (2, 1)})
    assert (plan.exclusive, plan.mode, plan.num_classes) == (True, "multiclass", 3)
    assert plan.atoms == (5, 2)
    assert plan.atom_of_value == {0: 0, 5: 1, 2: 2, 1: 2, 9: -1}
    np.testing.assert_array_equal(plan.membership, np.eye(3))


def test_overlapping_regions():
    plan = a_plan(labels=REGIONS, paint_order=(1, 2, 3), ignore=None)
    assert (plan.exclusive, plan.mode, plan.num_classes, plan.atoms) == (False, "multilabel", 3, (1, 2, 3))
    assert plan.atom_of_value == {0: 0, 1: 1, 2: 2, 3: 3}
    np.testing.assert_array_equal(plan.membership, [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "plan", [a_plan(), a_plan(labels=REGIONS, paint_order=(1, 2, 3), swap_labels=(("whole", "core"),))]
)
def test_plain_data_and_files_give_the_plan_back(plan, tmp_path):
    assert Plan.from_dict(plan.to_dict()) == plan
    write_plan(tmp_path / "deep" / "plan.yaml", plan)
    assert read_plan(tmp_path / "deep" / "plan.yaml") == plan
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["plan.yaml"]


def test_plain_data_load_under_weights_only():
    file = io.BytesIO()
    torch.save(a_plan().to_dict(), file)
    file.seek(0)
    assert Plan.from_dict(torch.load(file, weights_only=True)) == a_plan()


def test_comments_say_why_and_survive_reading_and_writing(tmp_path):
    why = {
        "spacing_mm": "The median of 41 cases, " + "which says a lot " * 12 + "indeed.",
        "normalisation": "CT: unit.",
    }
    write_plan(tmp_path / "a.yaml", a_plan(reasons=why))
    text = (tmp_path / "a.yaml").read_text(encoding="utf-8")
    assert "# The median of 41 cases, which" in text
    assert max(map(len, text.splitlines())) <= 120
    assert (
        text.index("# The median")
        < text.index("spacing_mm:")
        < text.index("# CT: unit.")
        < text.index("normalisation:")
    )
    again = read_plan(tmp_path / "a.yaml")
    assert again.reasons == why
    write_plan(tmp_path / "b.yaml", again)
    assert (tmp_path / "b.yaml").read_text(encoding="utf-8") == text


def test_reasons_follow_an_edit(tmp_path):
    why = {name: f"Good for {name}." for name in ("spacing_mm", "patch_size", "strides", "mirror_axes")}
    write_plan(tmp_path / "a.yaml", a_plan(reasons=why))
    text = (tmp_path / "a.yaml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("spacing_mm:")]
    (tmp_path / "a.yaml").write_text(text.replace(line, "spacing_mm: [7.0, 7.0, 7.0]"), encoding="utf-8")
    edited = read_plan(tmp_path / "a.yaml")
    assert edited.reasons["spacing_mm"] == "Edited by hand."
    assert edited.reasons["mirror_axes"] == why["mirror_axes"]
    for name in ("patch_size", "strides"):
        assert edited.reasons[name] == f"Chosen before spacing_mm was edited: {why[name]}"
    write_plan(tmp_path / "b.yaml", edited)
    assert read_plan(tmp_path / "b.yaml").reasons == edited.reasons


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patchsize": [32, 16, 8]}, "'patchsize' is not known, did you mean 'patch_size'"),
        ({"qqqq": 1}, "'qqqq' is not known, expected one of"),
        ({"normalisation": [{"scheme": "zsocre"}, {}]}, "did you mean 'zscore'"),
        (
            {"normalisation": [{"schema": "ct"}, {}]},
            "normalisation 'schema' is not known, did you mean 'scheme'",
        ),
        (
            {"normalisation": [{"scheme": "ct", "lower": "low"}, {}]},
            "normalisation's lower: expected a number, got 'low'",
        ),
        ({"normalisation": [{"scheme": "ct", "lower": 3, "upper": 2}, {}]}, "needs lower < upper"),
        ({"normalisation": [{"scheme": "none"}]}, "one entry per modality: 2 modalities, 1 entries"),
        ({"normalisation": ["ct", "ct"]}, "must be a table"),
        ({"schema": 99}, "has schema 99, this medseg reads 1"),
        ({"labels": {}}, "names no organ"),
        ({"labels": {"liver": 0}}, "'liver' must have one or more distinct positive values"),
        ({"labels": {"liver": []}}, "'liver' must have"),
        ({"labels": ["liver"]}, "labels: expected a table"),
        ({"labels": None}, "labels: expected a table"),
        ({"modalities": "CT"}, "modalities: expected a list (each text), got 'CT'"),
        ({"labels": {"liver": 9}}, "ignore 9 is also a label"),
        ({"paint_order": [1]}, "paint_order needs a value per organ (2), got 1"),
        ({"swap_labels": [["livr", "spleen"]]}, "did you mean 'liver'"),
        ({"swap_labels": [["liver"]]}, "swap_labels: expected a list of 2 (each text), got ['liver']"),
        ({"swap_labels": [["liver", "liver"]]}, "pairs of different names"),
        (
            {"normalisation": [{"scheme": "ct", "lower": 0, "upper": 1, "mean": float("nan")}]},
            "expected a number, got nan",
        ),
        ({"normalisation": [{"scheme": "ct", "lower": 0, "upper": float("inf")}]}, "expected a number, got inf"),
        ({"orientation": "RAX"}, "orientation must have"),
        ({"spacing_mm": [1, 1, 0]}, "three positive numbers"),
        ({"spacing_mm": [1, 1]}, "spacing_mm: expected a list of 3 (each a number), got [1, 1]"),
        ({"spacing_mm": [1, 1, -1]}, "three positive numbers"),
        ({"spacing_mm": [1, 1, float("inf")]}, "expected a number, got inf"),
        ({"spacing_mm": [True, 1, 1]}, "expected a number, got True"),
        ({"spacing_mm": "1, 1, 1"}, "expected a list of 3"),
        ({"spacing_mm": None}, "expected a list of 3 (each a number), got None"),
        ({"mirror_axes": [0, 3]}, "mirror_axes must be distinct axes"),
        ({"features": [8]}, "one entry per stage"),
        ({"batch_size": 0}, "must be positive"),
        ({"batch_size": 2.5}, "expected a whole number, got 2.5"),
        ({"batch_size": float("inf")}, "expected a whole number, got inf"),
        ({"batch_size": "two"}, "expected a whole number, got 'two'"),
        ({"strides": [[2, 2, 2], [2, 2, 1]]}, "strides must begin with [1, 1, 1]"),
        ({"kernels": [[3, 3, 3], [3, 2, 3]]}, "kernels must be odd"),
        ({"patch_size": [33, 16, 8]}, "must be a multiple of [2, 2, 1]"),
    ],
)
def test_a_wrong_file_is_answered_with_a_sentence(changes, sentence, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(a_plan().to_dict() | changes))
    with pytest.raises(DataError) as caught:
        read_plan(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", r"is not YAML \(line 1: "),
        ("name: toy\n\tbatch_size: 2", r"is not YAML \(line 2: found character '\\t'"),
        ("name: toy\nname: story", r"is not YAML \(line 2: the key 'name' occurs twice\)"),
        ("name: !!python/object/apply:os.getcwd []", r"is not YAML \(line 1: could not determine a constructor"),
        ("just words", "must be a table"),
        ("", "must be a table"),
        ("name: toy", "lacks modalities, labels"),
    ],
)
def test_what_is_no_plan_at_all(text, sentence, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_plan(path)


def test_what_is_no_text(tmp_path):
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match=r"is not a text file in UTF-8\."):
        read_plan(tmp_path / "plan.yaml")


def test_letters_stay_letters(tmp_path):
    write_plan(tmp_path / "plan.yaml", replace(a_plan(), name="Größe 肝"))
    assert "name: Größe 肝\n" in (tmp_path / "plan.yaml").read_text(encoding="utf-8")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"plan\.yaml cannot be written"):
        write_plan(tmp_path / "file" / "deeper" / "plan.yaml", a_plan())


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "plan.yaml").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_plan(tmp_path / "plan.yaml", a_plan())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
