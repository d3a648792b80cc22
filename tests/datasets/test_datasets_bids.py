"""BIDS datasets, read by the suffix of their images and the derivative of their labels."""

import json

import pytest

from medseg.datasets.bids import entities
from medseg.datasets.case import read_dataset
from medseg.errors import DataError


def lay_out(root, files, **content):
    """Empty files, for no voxel is read, beside a description."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    described = {"labels": {"lesion": 1}, "suffix": "T1w", "derivative": "manual"} | content
    (root / "dataset.json").write_text(
        json.dumps({key: value for key, value in described.items() if value is not None})
    )
    return root


def image(said, suffix="T1w", ending=".nii.gz"):
    """Where BIDS puts it."""
    found, _ = entities(said)
    session = f"/ses-{found['ses']}" if "ses" in found else ""
    return f"sub-{found['sub']}{session}/anat/{said}_{suffix}{ending}"


def label(said, suffix="dseg", derivative="manual"):
    return f"derivatives/{derivative}/{image(said, suffix)}"


def test_sessions_and_runs_are_cases_of_one_patient(tmp_path):
    said = ["sub-01_ses-1_run-1", "sub-01_ses-1_run-2", "sub-01_ses-2", "sub-02"]
    files = [*map(image, said), *map(label, said), image("sub-03"), image("sub-01_ses-1", "bold"), "sub-01/ses-1/x.tsv"]
    dataset = read_dataset(lay_out(tmp_path, files))
    assert [case.id for case in dataset.cases] == said
    assert [case.patient for case in dataset.cases] == ["sub-01"] * 3 + ["sub-02"]
    assert [case.label for case in dataset.cases] == [tmp_path / label(one) for one in said]
    assert [case.id for case in dataset.test] == ["sub-03"]
    assert dataset.modalities == ("T1w",)


def test_a_label_may_say_more_or_less_than_its_image(tmp_path):
    files = [image("sub-1_acq-mprage"), label("sub-1_space-orig_desc-manual"), image("sub-2_run-1"), label("sub-2")]
    cases = read_dataset(lay_out(tmp_path, files)).cases
    assert [(case.id, case.label.name) for case in cases] == [
        ("sub-1", "sub-1_space-orig_desc-manual_dseg.nii.gz"),
        ("sub-2_run-1", "sub-2_dseg.nii.gz"),
    ]


def test_a_run_is_the_same_with_a_zero_before_it_and_a_subject_is_not(tmp_path):
    files = [
        image("sub-01_run-01"),
        image("sub-01_run-2"),
        label("sub-01_run-1"),
        label("sub-01_run-02"),
        image("sub-1"),
    ]
    cases = read_dataset(lay_out(tmp_path, files)).cases
    assert [(case.id, case.label.name) for case in cases] == [
        ("sub-01_run-01", "sub-01_run-1_dseg.nii.gz"),
        ("sub-01_run-2", "sub-01_run-02_dseg.nii.gz"),
    ]


def test_a_label_of_no_image_is_told(tmp_path, caplog):
    files = [image("sub-1_ses-1"), label("sub-1_ses-1"), image("sub-2_ses-1"), label("sub-2"), label("sub-3_ses-1")]
    assert [case.id for case in read_dataset(lay_out(tmp_path, files)).cases] == ["sub-1_ses-1"]
    assert "left out for want of an image (2): sub-2_dseg.nii.gz, sub-3_ses-1_dseg.nii.gz" in caplog.text


def test_images_of_a_kind_that_only_their_acquisition_tells_apart_are_cases(tmp_path):
    files = [image("sub-1_acq-a"), image("sub-1_acq-b"), label("sub-1_acq-b"), image("sub-2_acq-a"), label("sub-2")]
    dataset = read_dataset(lay_out(tmp_path, files))
    assert [case.id for case in dataset.cases] == ["sub-1_acq-b", "sub-2_acq-a"]
    assert [case.id for case in dataset.test] == ["sub-1_acq-a"]


def test_several_suffixes_are_channels_in_their_order(tmp_path):
    files = [image("sub-1_acq-fast", "FLAIR"), image("sub-1"), label("sub-1", "T1w_lesion_mask"), label("sub-1", "x")]
    (case,) = read_dataset(lay_out(tmp_path, files, suffix=["T1w", "FLAIR"], label_suffix="lesion_mask")).cases
    assert [path.name for path in case.images] == ["sub-1_T1w.nii.gz", "sub-1_acq-fast_FLAIR.nii.gz"]
    lay_out(tmp_path, [image("sub-2"), label("sub-2", "lesion_mask")])
    lay_out(tmp_path, [], suffix=["T1w", "FLAIR"], label_suffix="lesion_mask")
    with pytest.raises(DataError, match=r"sub-2_FLAIR.nii.gz is missing"):
        read_dataset(tmp_path)


def test_organs_are_named_by_the_table_of_the_derivative(tmp_path):
    root = lay_out(tmp_path, [image("sub-1"), label("sub-1")], labels=None)
    (root / "derivatives/manual/desc-manual_dseg.tsv").write_text(
        "index\tname\tcolor\n0\tbackground\t#0\n7\tlesion\t#1\n"
    )
    assert read_dataset(root).labels == {"lesion": 7}
    (root / "dseg.tsv").write_text("index\tname\n1\tlesion\n")
    with pytest.raises(DataError, match=r"desc-manual_dseg.tsv and dseg.tsv differ|dseg.tsv and .* differ"):
        read_dataset(root)
    for table in (
        "name\tvalue\nlesion\t1\n",
        "index\tname\n1\n",
        "index\tname\n1.0\tlesion\n",
        "index,name\n1,lesion\n",
    ):
        (root / "dseg.tsv").write_text(table)
        with pytest.raises(DataError, match=r"dseg.tsv does not say which value is which organ"):
            read_dataset(root)
    (root / "dseg.tsv").write_bytes("index\tname\n1\tläsion\n".encode("latin1"))
    with pytest.raises(DataError, match=r"dseg.tsv is not a text file in UTF-8"):
        read_dataset(root)
    (root / "dseg.tsv").write_text("index\tname\n1\tlesion\n2\tlesion\n")
    with pytest.raises(DataError, match=r"dseg.tsv gives the name 'lesion' to two values"):
        read_dataset(root)


BAD = {
    "no suffix": ({"suffix": None}, [], 'no "suffix" of its images'),
    "suffix of nothing": ({"suffix": "T2w"}, [], r"finds no image sub-\*_T2w .* there are T1w"),
    "suffix of another type": ({"suffix": 3}, [], 'no "suffix" of its images'),
    "no derivative": ({"derivative": "nobody"}, [], r"'nobody', but there is no such folder.*There are manual"),
    "misspelt": ({"derivatives": "manual", "derivative": None}, [], "did you mean 'derivative'"),
    "labels of nobody": ({"label_suffix": "roi"}, [], "finds no label in"),
    "two labels": ({}, [label("sub-1_desc-b")], r"could both be the label of sub-1.*label_suffix"),
    "a label of two runs": ({}, [image("sub-4_run-1"), image("sub-4_run-2"), label("sub-4")], "could be the label of"),
    "names of other channels": ({"modality": ["T1", "T2"]}, [], r'has 2 in "modality", but the "suffix" T1w'),
    "suffix twice": ({"suffix": ["T1w", "T1w"]}, [], 'names a "suffix" twice'),
    "two formats": ({}, [image("sub-1", ending=".nii")], "could both be T1w of sub-1.*Keep one"),
    "derivative of another type": ({"derivative": ["manual"]}, [], "There are manual: name one of them"),
    "derivative with its folder": (
        {"derivative": "derivatives/manual", "labels": None},
        [],
        "There are manual: name one",
    ),
    "empty derivative": ({"derivative": ""}, [], "There are manual: name one of them"),
    "weights of nobody": ({"weight_suffix": "w"}, [], 'names as "weight_suffix"'),
    "two weights": (
        {"weight_suffix": "w"},
        [label("sub-1_desc-a", "w"), label("sub-1_desc-b", "w")],
        "could both be the weight map of one case",
    ),
    "no names": ({"labels": None}, [], 'has no "labels"'),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_refused(name, tmp_path):
    content, files, sentence = BAD[name]
    lay_out(tmp_path, [image("sub-1"), label("sub-1"), *files], **content)
    with pytest.raises(DataError, match=sentence):
        read_dataset(tmp_path)


def test_a_link_to_nowhere_is_told(tmp_path):
    root = lay_out(tmp_path, [image("sub-1"), label("sub-1")])
    (root / image("sub-1")).unlink()
    (root / image("sub-1")).symlink_to(root / ".git/annex/objects/x")
    with pytest.raises(DataError, match=r"sub-1_T1w.nii.gz is missing: a link leads to"):
        read_dataset(root)
