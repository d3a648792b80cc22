"""Every way to store images and labels goes from verify to evaluate, and arrives at the same voxels."""

import json

import numpy as np
import pytest
from support.dialects import TINY, journey, prepared_labels, write_bids, write_objects, write_rated
from support.toys import write_toy_dataset

from medseg.cli import main
from medseg.store.store import Store


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


@pytest.mark.slow
@pytest.mark.sweep(4)
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


@pytest.mark.slow
@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("dialect", "raters"), [("lists", "mean"), ("nnunet", "majority"), ("folders", "mean"), ("bids", "majority")]
)
def test_several_raters_and_weights_train(dialect, raters, expected, tmp_path):
    root = write_rated(tmp_path / "data", dialect, raters)
    loss = "dice(soft_target=True) + cross_entropy" if raters == "mean" else "dice + cross_entropy"
    journey(root, tmp_path, "--model.loss", loss, "--model.deep_supervision", "true", "--data.augmentation", "full")
    assert_same_labels(tmp_path / "store", expected)  # two of three agree everywhere
    store = Store(tmp_path / "store")
    infos = [store.info(case) for case in store.ids]
    assert [info.weighted for info in infos] == [False, True, True, True]
    assert [info.soft for info in infos] == [raters == "mean"] * 4
    scores = [(tmp_path / part / "summary.json").read_text() for part in ("scores", "run/test")]
    assert all(json.loads(text)["failures"] == [] for text in scores)


def test_a_loss_without_a_meaning_for_fractions_is_refused_before_anything_is_written(tmp_path, capsys):
    root = write_rated(tmp_path / "data", "patterns", "mean")
    assert main(["prepare", str(root), "--out", str(tmp_path / "store"), "--workers", "1"]) == 0
    words = ["fit", "--data.store", str(tmp_path / "store"), "--run", str(tmp_path / "run"), *TINY]
    assert main([*words, "--model.loss", "dice + cross_entropy"]) == 2
    assert "the mean of several raters, and a term of the loss has no meaning for fractions" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.ckpt"))
