"""Every way to store images and labels goes from verify to evaluate, and arrives at the same voxels."""

import json

import numpy as np
import pytest
from support.dialects import journey, prepared_labels, write_bids, write_objects
from support.toys import write_toy_dataset

from medseg.cli import main


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The prepared labels of the toy dataset as the Decathlon would store it."""
    folder = tmp_path_factory.mktemp("decathlon")
    assert main(["prepare", str(write_toy_dataset(folder)), "--out", str(folder / "store"), "--workers", "1"]) == 0
    return prepared_labels(folder / "store")


def assert_same_labels(store, expected):
    found = prepared_labels(store)
    assert len(found) == len(expected)
    for labels, theirs in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(labels, theirs)


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_objects_of_dicom_train_as_label_maps_do(form, expected, tmp_path):
    pytest.importorskip("highdicom")
    pytest.importorskip("SimpleITK")
    root = write_objects(tmp_path / "data", form)
    summary = journey(root, tmp_path)
    assert_same_labels(tmp_path / "store", expected)
    best = ["--ckpt", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "--input", str(root), "--all"]
    assert main(["predict", *best, "--device", "cpu", "--output", str(tmp_path / "objects"), "--format", form]) == 0
    words = ["--predictions", str(tmp_path / "objects"), "--references", str(root), "--output", str(tmp_path / "again")]
    assert main(["evaluate", *words]) == 0
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["organs"] == summary["organs"]


def test_bids_trains_as_label_maps_do(expected, tmp_path):
    journey(write_bids(tmp_path / "data"), tmp_path)
    assert_same_labels(tmp_path / "store", expected)
