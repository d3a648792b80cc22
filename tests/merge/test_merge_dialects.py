"""Sets that keep their images and labels in different ways, as one dataset, from verify to evaluate."""

import csv

import numpy as np
import pytest
from support.dialects import (
    ORGANS,
    describe,
    journey,
    prepared_labels,
    write_bids,
    write_itk,
    write_object,
    write_objects,
    write_rated,
)
from support.toys import toy_case

from medseg.cli import main
from medseg.datasets.case import read_case, read_dataset
from medseg.dicom.series import series_of
from medseg.store.store import Store

pytest.importorskip("highdicom")
pytest.importorskip("SimpleITK")

SETS = {
    "seg": lambda root, cases: write_objects(root, "dicom-seg", cases),
    "outlines": lambda root, cases: write_objects(root, "rtstruct", cases),
    "itk": lambda root, cases: write_itk(root, cases, labels={"background": 0, "LIVER": 4, "milz": 2, "ignore": 7}),
    "bids": write_bids,
    "raters": lambda root, cases: write_rated(root, "bids", "majority", cases=cases),
    "weights": lambda root, cases: write_rated(root, "nnunet", "majority", cases=cases),
}
"""Two cases in each, of which no two show the same."""


def cases_of(name):
    first = 2 * list(SETS).index(name)
    return {f"toy_{index}": index for index in (first, first + 1)}


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """All of them as one, prepared."""
    folder = tmp_path_factory.mktemp("dialects")
    for name, write in SETS.items():
        write(folder / name, cases_of(name))
    words = ["merge", *(str(folder / name) for name in SETS), "--out", str(folder / "all"), "--workers", "1"]
    assert main([*words, "--rename", "milz=spleen", "--rename", "T1w=CT"]) == 0
    assert main(["prepare", str(folder / "all"), "--out", str(folder / "store"), "--workers", "1"]) == 0
    return folder


def test_every_case_says_what_was_drawn_in_its_own_set(merged):
    dataset = read_dataset(merged / "all")
    assert dataset.labels == {"liver": 1, "spleen": 2}
    assert {case.dataset for case in dataset.cases} == set(SETS)
    for case in dataset.cases:
        index = int(case.id.removesuffix("_ses-1").rsplit("toy", 1)[1].strip("_"))
        image, labels = read_case(case, dataset)
        voxels, drawn = toy_case(index)
        np.testing.assert_array_equal(image.array[0], voxels)
        expected = np.select([drawn == 1, drawn == 5, drawn == 9], [1, 2, dataset.ignore], 0)
        np.testing.assert_array_equal(labels.array[0], expected, case.id)


def test_the_store_has_their_labels_and_weights(merged):
    store = Store(merged / "store")
    weighted = {case for case in store.ids if store.info(case).weighted}
    assert {case.split("_")[0] for case in weighted} == {"raters", "weights"}
    assert len(prepared_labels(merged / "store")) == 2 * len(SETS)


@pytest.mark.slow
def test_every_set_is_trained_on_predicted_and_scored(merged):
    journey(merged / "all", merged / "journey")
    rows = {}
    for part in ("run/test", "scores"):
        with (merged / "journey" / part / "cases.csv").open(newline="") as file:
            rows[part] = {(row["case"], row["organ"], row["dataset"]) for row in csv.DictReader(file)}
    assert {dataset for *_, dataset in rows["scores"]} == set(SETS)
    assert rows["run/test"] <= rows["scores"]


def test_raters_may_draw_objects_and_outlines_on_one_series(tmp_path):
    """Two segmentation objects that agree against a structure set that does not, merged with label maps."""
    root, cases = tmp_path / "raters", cases_of("seg")
    write_objects(root, "dicom-seg", cases)
    (root / "outlines").mkdir()
    entries = []
    for case, index in cases.items():
        shifted = np.roll(toy_case(index)[1], 1, axis=0)
        masks = {organ: shifted == value for organ, value in ORGANS.items()}
        write_object(root / "outlines" / f"{case}.dcm", "rtstruct", masks, series_of(root / "series" / case))
        labels = [f"{folder}/{case}.dcm" for folder in ("drawn", "outlines", "drawn")]
        entries.append({"image": f"series/{case}", "label": labels})
    describe(root, raters="majority", training=entries)
    write_itk(tmp_path / "itk", cases_of("itk"))
    words = ["merge", str(root), str(tmp_path / "itk"), "--out", str(tmp_path / "all"), "--workers", "1"]
    assert main(words) == 0
    dataset = read_dataset(tmp_path / "all")
    for case in dataset.cases[2:]:
        assert len(case.drawn) == 3
        _, labels = read_case(case, dataset)
        drawn = toy_case(int(case.id[-1]))[1]
        expected = np.select([drawn == 1, drawn == 5, drawn == 9], [1, 2, dataset.ignore], 0)
        np.testing.assert_array_equal(labels.array[0], expected)
