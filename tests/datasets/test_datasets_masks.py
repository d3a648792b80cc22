"""A label in a folder with a mask per organ means what the same organs in one map mean, to every command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.dialects import CASES, ORGANS, describe, prepared_labels
from support.toys import oblique_affine, toy_case, write_nifti, write_toy_dataset

from medseg.cli import main
from medseg.datasets.case import read_case, read_dataset
from medseg.errors import DataError


def write_masks(root, *, mark=1, place="{case}/drawn/{organ}.nii.gz", **content):
    for case, index in CASES.items():
        voxels, labels = toy_case(index)
        write_nifti(root / case / "ct.nii.gz", voxels, oblique_affine(index))
        for organ, value in ORGANS.items():
            mask = mark * (labels == value).astype(np.uint8)
            write_nifti(root / place.format(case=case, organ=organ), mask, oblique_affine(index))
    return describe(root, **{"image": "{case}/ct.nii.gz", "label": "{case}/drawn"} | content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("whole"))


def every_label(root):
    dataset = read_dataset(root)
    return {case.id: read_case(case, dataset)[1] for case in dataset.cases}


@pytest.mark.parametrize("mark", [1, 255])
def test_masks_are_the_map_they_were_taken_from(mark, whole, tmp_path):
    expected, found = every_label(whole), every_label(write_masks(tmp_path, mark=mark))
    for case, label in expected.items():
        np.testing.assert_array_equal(found[case].array, label.array)
        np.testing.assert_allclose(found[case].affine, label.affine)


def test_folders_of_masks_lie_beside_images_of_the_same_names(whole, tmp_path):
    plain = {"image": None, "label": None, "image_folder": "scans", "label_folder": "masks"}
    root = write_masks(tmp_path, place="masks/{case}/{organ}.nii.gz", **plain)
    (root / "scans").mkdir()
    for case in CASES:
        (root / case / "ct.nii.gz").rename(root / "scans" / f"{case}.nii.gz")
    found = every_label(root)
    assert all((found[case].array == label.array).all() for case, label in every_label(whole).items())


def test_the_commands_take_masks_as_they_take_a_map(whole, tmp_path, capsys):
    root = write_masks(tmp_path / "masks")
    for place, store in ((whole, "a"), (root, "b")):
        assert main(["prepare", str(place), "--out", str(tmp_path / store), "--workers", "1"]) == 0
    one, other = prepared_labels(tmp_path / "a"), prepared_labels(tmp_path / "b")
    assert all((one[case] == other[case]).all() for case in CASES)
    capsys.readouterr()
    assert main(["verify", str(root), "--workers", "1", "--figures", str(tmp_path / "figures")]) == 0
    assert "unreadable" not in capsys.readouterr().out
    predictions = tmp_path / "predictions"
    for case, index in CASES.items():  # as a network leaves them, without the value of what is ignored
        labels = toy_case(index)[1]
        write_nifti(predictions / f"{case}.nii.gz", labels * (labels != 9), oblique_affine(index))
    scored = ["--predictions", str(predictions), "--references", str(root), "--output", str(tmp_path / "scores")]
    assert main(["evaluate", *scored]) == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert {organ["dice"]["mean"] for organ in summary["organs"].values()} == {1.0}


def refused(root):
    dataset = read_dataset(root)
    with pytest.raises(DataError) as refusal:
        read_case(dataset.cases[0], dataset)
    return str(refusal.value)


def test_masks_of_what_nobody_declared_are_refused_or_background(tmp_path):
    root = write_masks(tmp_path, labels={"liver": 1, "ignore": 9})
    assert "no label names: spleen" in refused(root)
    describe(
        root, image="{case}/ct.nii.gz", label="{case}/drawn", labels={"liver": 1, "ignore": 9}, others="background"
    )
    assert set(np.unique(every_label(root)["toy_0"].array)) == {0, 1}


def test_what_overlaps_needs_a_value_of_its_own(tmp_path):
    root = write_masks(tmp_path)
    _, labels = toy_case(0)
    write_nifti(root / "toy_0/drawn/spleen.nii.gz", (labels > 0).astype(np.uint8), oblique_affine(0))
    assert "voxels that are liver and spleen at once" in refused(root)
    patterns = {"image": "{case}/ct.nii.gz", "label": "{case}/drawn"}
    describe(root, labels={"spleen": [1, 5], "liver": [1], "ignore": 9}, **patterns)
    dataset = read_dataset(root)
    assert (read_case(dataset.cases[0], dataset)[1].array[0] == labels).all()


@pytest.mark.parametrize(
    ("voxels", "affine", "told"),
    [
        (toy_case(0)[1], oblique_affine(0), "spleen.nii.gz holds values from 1 to 5"),
        ((toy_case(0)[1] == 5).astype(np.uint8), oblique_affine(1), "spleen.nii.gz has another affine than ignore"),
        (np.zeros((4, 4, 4), np.uint8), oblique_affine(0), "spleen.nii.gz has shape (4, 4, 4)"),
    ],
    ids=["a map", "another place", "another shape"],
)
def test_a_file_that_is_no_mask_of_the_case_is_named(voxels, affine, told, tmp_path):
    root = write_masks(tmp_path)
    write_nifti(root / "toy_0/drawn/spleen.nii.gz", voxels, affine)
    assert told in refused(root)


def test_a_case_without_its_masks_is_named(tmp_path):
    root = write_masks(tmp_path)
    for file in (root / "toy_1" / "drawn").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"toy_1/drawn.*needs it for case 'toy_1'"):
        read_dataset(root)
