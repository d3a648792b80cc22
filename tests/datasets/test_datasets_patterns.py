"""Datasets whose files are named by a pattern, and what is said of folders whose names follow no known rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.verify.verify import verify


def lay_out(root: Path, files: list[str], **content: object) -> Path:
    """Empty files, for no voxel is read, beside a description."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "dataset.json").write_text(json.dumps({"labels": {"liver": 1}, "modality": ["CT"]} | content))
    return root


def named(*patterns: str, cases: tuple[str, ...] = ("1", "2", "10")) -> list[str]:
    return [pattern.replace("*", case) for pattern in patterns for case in cases]


KITS = {"image": "{case}/imaging.nii.gz", "label": "{case}/segmentation.nii.gz"}
LITS = {"image": "./volume-{case}.nii", "label": "segmentation-{case}.nii"}
TWO = {"modality": ["t1", "flair"]}
BRATS = TWO | {"image": "{case}/{case}_{modality}.nii.gz", "label": "{case}/{case}_seg.nii.gz"}
BRATS_FILES = named("BraTS_*/BraTS_*_t1.nii.gz", "BraTS_*/BraTS_*_flair.nii.gz", "BraTS_*/BraTS_*_seg.nii.gz")
NUMBERED = TWO | {"image": "[a]/{case}_{modality}.nii.gz", "label": "[b]/{case}.nii.gz"}
FOUND = {
    "a folder for each case": (KITS, named("*/imaging.nii.gz", "*/segmentation.nii.gz"), "1/segmentation.nii.gz"),
    "all in one folder": (LITS, named("volume-*.nii", "segmentation-*.nii", "._volume-*.nii"), "segmentation-1.nii"),
    "modalities by name": (BRATS, [*BRATS_FILES, "BraTS_1/BraTS_2_t1.nii.gz"], "BraTS_1/BraTS_1_seg.nii.gz"),
    "modalities by number": (
        NUMBERED,
        named("[a]/*_0000.nii.gz", "[a]/*_0001.nii.gz", "[b]/*.nii.gz"),
        "[b]/1.nii.gz",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_files_are_found_by_the_pattern_of_their_paths(name, tmp_path):
    content, files, label = FOUND[name]
    root = lay_out(tmp_path, files, **content)
    cases = read_dataset(root).cases
    assert len(cases) == 3
    assert cases[0].label == root / label
    assert len(cases[0].images) == len(content.get("modality", "1"))
    assert cases[0].images[0].name.endswith(("imaging.nii.gz", "volume-1.nii", "_t1.nii.gz", "1_0000.nii.gz"))


def test_images_of_a_test_have_a_pattern_of_their_own(tmp_path):
    root = lay_out(tmp_path, [*BRATS_FILES, "new/9_t1.nii.gz", "new/9_flair.nii.gz"], **BRATS)
    assert read_dataset(root).test == ()
    lay_out(root, [], **BRATS, test_image="new/{case}_{modality}.nii.gz")
    (test,) = read_dataset(root).test
    assert (test.id, [path.name for path in test.images]) == ("9", ["9_t1.nii.gz", "9_flair.nii.gz"])
    assert test.label is None


SUFFIXED = named("images/*_img.nii.gz", "labels/*_seg.nii.gz")
CHANNELS = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}
NNUNET = named("imagesTr/a*_0000.nii.gz", "imagesTr/a*_0001.nii.gz", "labelsTr/a*.nii.gz")
MISSING = {
    "another field": (KITS | {"image": "{patient}/ct.nii.gz"}, [], r'has a "image" that has the field {patient}'),
    "no field": (
        KITS | {"label": "seg.nii.gz"},
        [],
        r'has a "label" that lacks {case}\. Write a path with {case} in it',
    ),
    "an absolute path": (KITS | {"image": "/{case}.nii"}, [], "does not begin at the folder"),
    "a number": (KITS | {"image": 3}, [], "is int, not text"),
    "half of it": ({"image": "{case}.nii"}, [], 'lacks "label", the pattern'),
    "nothing that fits": (KITS, ["1/scan.nii.gz"], 'finds no file that fits "image": "{case}/imaging.nii.gz"'),
    "a label": (KITS, named("*/imaging.nii.gz"), "1/segmentation.nii.gz is missing, .*correct the patterns"),
    "an image": (KITS, [*named("*/imaging.nii.gz"), "x/segmentation.nii.gz"], "1/segmentation.nii.gz is missing"),
    "a modality": (BRATS, BRATS_FILES[1:], "BraTS_1/BraTS_1_t1.nii.gz is missing"),
    "the rule of the names": (
        {},
        SUFFIXED,
        r"finds no label for any image: 10_img.nii.gz in images, 10_seg.nii.gz in labels\. Say how they are called: "
        r'"image": "images/{case}_img.nii.gz", "label": "labels/{case}_seg.nii.gz"',
    ),
    "folders of that name": ({}, ["a/ct.nii.gz"], r'"image": "{case}/ct.nii.gz", "label": "{case}/organs.nii.gz"'),
    "anything but DICOM": ({}, ["images/1.dcm", "labels/1.dcm"], r"lists no cases; (images|labels)/1.dcm is no image"),
    "an ending in small letters": ({}, ["images/1.NII.GZ", "labels/1.nii.gz"], "1.NII.GZ has capitals in its ending"),
    "labels": (CHANNELS, NNUNET[:6], "labelsTr is missing. Put the labels of imagesTr there"),
    "a channel": (CHANNELS, [*NNUNET[:5], "imagesTr/a10_0002.nii.gz", *NNUNET[6:]], "a10_0001.nii.gz is missing"),
    "one of two channels": (CHANNELS, NNUNET[1:], "a1_0000.nii.gz is missing"),
    "a known format": (CHANNELS | {"file_ending": ".dcm"}, NNUNET, "Convert them, and write one of .nii.gz, .nii, "),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_told_with_the_way_out(name, tmp_path):
    content, files, words = MISSING[name]
    with pytest.raises(DataError, match=words):
        read_dataset(lay_out(tmp_path, files, **content))


def test_verify_tells_the_same_remedies(tmp_path):
    report = verify(lay_out(tmp_path, [*NNUNET[:-1], "imagesTs/a_0000.nii.gz"], **CHANNELS), workers=1)
    (missing,) = (problem for problem in report.problems if problem.kind == "missing")
    assert (missing.problem, missing.remedy) == ("is missing", "Add it, or remove the other files of this case")


def test_images_to_predict_are_a_dataset_too(tmp_path):
    dataset = read_dataset(lay_out(tmp_path, ["imagesTs/a_0000.nii.gz"], channel_names={"0": "CT"}))
    assert (len(dataset.cases), len(dataset.test)) == (0, 1)


def test_lists_may_be_written_on_windows(tmp_path):
    entry = {"image": ".\\imagesTr\\a.nii.gz", "label": ".\\labelsTr\\a.nii.gz"}
    root = lay_out(tmp_path, ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], training=[entry])
    assert [case.id for case in read_dataset(root).cases] == ["a"]


def test_ignore_may_begin_with_a_capital(tmp_path):
    files = ["images/a.nii.gz", "labels/a.nii.gz"]
    dataset = read_dataset(lay_out(tmp_path, files, labels={"liver": 1, "Ignore": 255}))
    assert (dataset.organs, dataset.ignore) == (("liver",), 255)


def test_a_pattern_without_an_ending_finds_images_and_no_notes(tmp_path):
    """As the clinic exports: a folder per patient, with the slices and what was drawn on them in it."""
    dicom = b"\0" * 128 + b"DICM"
    root = lay_out(tmp_path, ["README.md", "anna/1.dcm", "anna/RS.1.dcm"], image="{case}", label="{case}/RS*.dcm")
    for name in ("1.dcm", "RS.1.dcm"):
        (root / "anna" / name).write_bytes(dicom)
    (case,) = read_dataset(root).cases
    assert (case.id, case.images, case.label) == ("anna", (root / "anna",), root / "anna" / "RS.1.dcm")
