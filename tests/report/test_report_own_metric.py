"""A metric of one's own by its dotted path: a column of every table, from the command that scores to the comparison."""

import csv
import json

import numpy as np
import pytest
from support.toys import write_nifti

from medseg.cli import main
from medseg.errors import UsageError
from medseg.metrics.table import take_in
from medseg.report.rows import read_rows

MINE = """
from medseg.metrics import OrganPair, metric


@metric(better="higher", best=1.0, empty="overlap", symmetric=True)
def size_similarity(x: OrganPair) -> float:
    \"\"\"One minus the difference of both sizes over their sum.\"\"\"
    return 1 - abs(x.counts.predicted - x.counts.reference) / (x.counts.predicted + x.counts.reference)


def plain(x):
    return 0.0
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two cases, predicted by half of their organ and by all of it, and a metric beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metric.py").write_text(MINE)
    for case, end in (("a", 4), ("b", 6)):
        voxels = np.zeros((8, 8, 8), np.uint8)
        voxels[2:6, 2:6, 2:6] = 1
        write_nifti(tmp_path / "references" / f"{case}.nii.gz", voxels, np.eye(4))
        voxels[end:] = 0
        write_nifti(tmp_path / "predictions" / f"{case}.nii.gz", voxels, np.eye(4))
    return tmp_path


def score(output, *words):
    return main(["evaluate", "--predictions", "predictions", "--references", "references", "--output", output, *words])


def test_it_is_a_column_a_measure_and_something_to_compare_by(place, capsys):
    assert score("before") == 0
    assert score("out", "--metric", "my_metric.size_similarity") == 0
    assert capsys.readouterr().err.splitlines() == ["scoring 1 of 2: a", "scoring 2 of 2: b"] * 2
    with (place / "out" / "cases.csv").open() as file:
        values = {row["case"]: float(row["size_similarity"]) for row in csv.DictReader(file)}
    assert values == pytest.approx({"a": 1 - 32 / 96, "b": 1.0}, rel=1e-5)
    summary = json.loads((place / "out" / "summary.json").read_text())["organs"]["label 1"]
    assert summary["size_similarity"]["mean"] == pytest.approx(1 - 16 / 96)
    assert "size similarity" in (place / "out" / "report.html").read_text()
    assert main(["compare-runs", "out", "out", "--measure", "size_similarity"]) == 0
    assert main(["compare-runs", "before", "out", "--measure", "size_similarity"]) == 2
    assert "'size_similarity' is no column of before/cases.csv" in capsys.readouterr().err


def test_scores_with_and_without_it_are_read_whoever_knows_it(place):
    assert score("out", "--metric", "my_metric.size_similarity") == 0
    path = place / "out" / "cases.csv"
    (first, _) = read_rows(path)
    assert first.value("size_similarity") == pytest.approx(1 - 32 / 96, rel=1e-5)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line},{note}" for line, note in zip(lines, ("note", "x", "y"), strict=True)))
    assert "note" not in read_rows(path)[0].scores.values


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("my_metric.plain", r"my_metric\.plain is no metric\. Put @medseg\.metrics\.metric above it"),
        ("my_metric.nothing", "my_metric has no nothing"),
        ("nowhere.size", "No module named 'nowhere'"),
        ("dice", "'dice' is no dotted path"),
    ],
)
def test_what_is_none_is_a_sentence_before_anything_is_scored(place, capsys, path, sentence):
    with pytest.raises(UsageError, match=sentence):
        take_in([path])
    assert score("out", "--metric", path) == 2
    assert not (place / "out").exists()
