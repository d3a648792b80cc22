"""Reading what is there: three dialects of dataset.json, and a sentence for everything that is wrong with them."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.datasets.case import Case, Dataset, dataset_json, read_case, read_dataset
from medseg.errors import DataError

HIPPOCAMPUS = Path(__file__).parents[2] / "../shared/data/Task04_Hippocampus"


def edit(root: Path, **changes) -> Path:
    """Change keys of a dataset.json; None removes a key."""
    file = root / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return root


def as_nnunet(root: Path, channels: int = 1, ending: str = ".nii.gz", **extra) -> Path:
    """Lay the toy cases out as nnU-Net's raw data."""
    new = root.parent / "Dataset001_Toy"
    for index in range(4):
        image, labels = toy_case(index)
        for channel in range(channels):
            name = f"toy_{index}_{channel:04d}{ending}"
            write_nifti(new / "imagesTr" / name, image + channel, oblique_affine(index))
        write_nifti(new / "labelsTr" / f"toy_{index}{ending}", labels, oblique_affine(index))
    write_nifti(new / "imagesTs" / f"toy_4_0000{ending}", toy_case(4)[0], oblique_affine(4))
    content = {
        "channel_names": {str(c): f"CT{c}" for c in range(channels)},
        "labels": {"background": 0, "liver": 1, "spleen": 5, "ignore": 9},
        "numTraining": 4,
        "file_ending": ending,
    }
    (new / "dataset.json").write_text(json.dumps(content | extra))
    return new


def as_plain(root: Path, **extra) -> Path:
    """Lay the toy cases out as two folders whose files share their names."""
    (root / "imagesTr").rename(root / "scans")
    (root / "labelsTr").rename(root / "masks")
    content = {"labels": {"liver": 1, "spleen": 5, "ignore": 9}, "image_folder": "scans", "label_folder": "masks"}
    (root / "dataset.json").write_text(json.dumps(content | extra))
    return root


@pytest.mark.parametrize(
    "layout",
    [
        lambda root: root,
        lambda root: root / "dataset.json",
        lambda root: edit(root, labels={"0": "background", "1": "liver", "5": "spleen", "9": "ignore"}),
        as_nnunet,
        lambda root: as_nnunet(root, ending=".nii"),
        as_plain,
    ],
    ids=["msd", "file", "msd-numbered", "nnunet", "nnunet-nii", "plain"],
)
def test_every_dialect_tells_the_same(toy_dataset, layout):
    dataset = read_dataset(layout(toy_dataset))
    assert dataset.labels == {"liver": 1, "spleen": 5}
    assert dataset.ignore == 9
    assert dataset.values == (0, 1, 5, 9)
    assert dataset.organs == ("liver", "spleen")
    assert [case.id for case in dataset.cases] == [f"toy_{i}" for i in range(4)]
    assert [case.id for case in dataset.test] == ["toy_4"]
    for index, case in enumerate(dataset.cases):
        image, labels = read_case(case, dataset)
        expected_image, expected_labels = toy_case(index)
        np.testing.assert_array_equal(image.array[0], expected_image)
        np.testing.assert_array_equal(labels.array[0], expected_labels)
        np.testing.assert_allclose(image.affine, oblique_affine(index), atol=1e-5)
    assert read_case(dataset.test[0], dataset)[1] is None


def test_a_real_dataset_as_downloaded():
    if not HIPPOCAMPUS.is_dir():
        pytest.skip("the Hippocampus task is not beside the checkout")
    dataset = read_dataset(HIPPOCAMPUS)
    assert len(dataset.cases) == 208
    assert dataset.labels == {"Anterior": 1, "Posterior": 2}
    assert dataset.modalities == ("MRI",)
    image, labels = read_case(dataset.cases[0], dataset)
    assert image.array.shape == labels.array.shape == (1, 35, 51, 35)


def test_channels_come_from_one_4d_file_or_from_several(toy_dataset):
    several = read_dataset(as_nnunet(toy_dataset, channels=3))
    stack = np.stack([toy_case(0)[0] + channel for channel in range(3)], axis=-1)
    write_nifti(toy_dataset / "imagesTr/toy_0.nii.gz", stack, oblique_affine(0))
    one = read_dataset(edit(toy_dataset, modality={"0": "T1", "1": "T2", "2": "FLAIR"}))
    assert len(several.cases[0].images) == 3
    assert one.modalities == ("T1", "T2", "FLAIR")
    image, _ = read_case(several.cases[0], several)
    np.testing.assert_array_equal(image.array, read_case(one.cases[0], one)[0].array)


def test_modalities_are_ordered_by_number_not_by_text(toy_dataset):
    names = {str(index): f"m{index}" for index in reversed(range(11))}
    dataset = read_dataset(edit(toy_dataset, modality=names))
    assert dataset.modalities == tuple(f"m{index}" for index in range(11))


def test_lists_and_single_words_are_understood(toy_dataset):
    dataset = read_dataset(edit(toy_dataset, modality="CT", labels=["background", "liver", "spleen"]))
    assert dataset.modalities == ("CT",)
    assert dataset.labels == {"liver": 1, "spleen": 2}


def test_a_plain_folder_needs_no_test_images(toy_dataset):
    root = as_plain(toy_dataset)
    shutil.rmtree(root / "imagesTs")
    assert read_dataset(root).test == ()


def test_a_description_that_may_not_be_read(toy_dataset, monkeypatch):
    def refuse(self, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        read_dataset(toy_dataset)


def test_overlapping_regions_and_their_order(toy_dataset):
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    dataset = read_dataset(edit(toy_dataset, labels=regions, regions_class_order=[1, 2, 3]))
    assert dataset.labels == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    assert dataset.paint_order == (1, 2, 3)


def test_older_nnunet_lists_name_files_without_their_channel(toy_dataset):
    for path in (toy_dataset / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    assert read_dataset(toy_dataset).cases[0].images == (toy_dataset / "imagesTr/toy_0_0000.nii.gz",)


def test_nnunet_lists_may_point_anywhere(toy_dataset):
    listed = {f"toy_{i}": {"images": [f"imagesTr/toy_{i}.nii.gz"], "label": f"labelsTr/toy_{i}.nii.gz"} for i in (0, 1)}
    dataset = read_dataset(edit(toy_dataset, channel_names={"0": "CT"}, training=None, dataset=listed))
    assert [case.id for case in dataset.cases] == ["toy_0", "toy_1"]


def test_folders_tell_cases_apart_where_file_names_repeat(toy_dataset):
    entries = []
    for index in range(2):
        for part, name in (("imagesTr", "imaging"), ("labelsTr", "segmentation")):
            target = toy_dataset / f"case_{index}" / f"{name}.nii.gz"
            target.parent.mkdir(exist_ok=True)
            (toy_dataset / part / f"toy_{index}.nii.gz").rename(target)
        entries.append({"image": f"case_{index}/imaging.nii.gz", "label": f"case_{index}/segmentation.nii.gz"})
    dataset = read_dataset(edit(toy_dataset, training=entries))
    assert [case.id for case in dataset.cases] == ["case_0", "case_1"]


def test_files_are_matched_by_name_suffixes_stated(toy_dataset):
    root = as_plain(toy_dataset, label_suffix="_seg", modality=["T1", "T2"], test_folder="imagesTs")
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_seg.nii.gz")))
    for path in list((root / "scans").iterdir()):
        stem = path.name[: -len(".nii.gz")]
        (root / "scans" / f"{stem}_T2.nii.gz").write_bytes(path.read_bytes())
        path.rename(root / "scans" / f"{stem}_T1.nii.gz")
    case = read_dataset(root).cases[0]
    assert case.id == "toy_0"
    assert [path.name for path in case.images] == ["toy_0_T1.nii.gz", "toy_0_T2.nii.gz"]
    assert case.label is not None
    assert case.label.name == "toy_0_seg.nii.gz"


@pytest.mark.parametrize("layout", [lambda root: root, as_nnunet, as_plain], ids=["msd", "nnunet", "plain"])
def test_companions_that_macos_leaves_are_not_cases(toy_dataset, layout):
    root = layout(toy_dataset)
    for path in [*root.glob("*/toy_*.nii.gz")]:
        path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7")
    if "training" in (content := json.loads((root / "dataset.json").read_text(encoding="utf-8"))):
        name = "toy_0.nii.gz"
        ghost = {"image": f"./imagesTr/._{name}", "label": f"./labelsTr/._{name}"}
        edit(root, training=[ghost, *content["training"]])
    assert [case.id for case in read_dataset(root).cases] == [f"toy_{i}" for i in range(4)]


def test_a_test_folder_that_was_not_downloaded_is_no_error(toy_dataset):
    (toy_dataset / "imagesTs/toy_4.nii.gz").unlink()
    (toy_dataset / "imagesTs").rmdir()
    assert read_dataset(toy_dataset).test == ()


def test_patients_and_partial_annotation(toy_dataset):
    edit(toy_dataset, patients={"toy_0": "anna", "toy_1": "anna"}, annotated={"toy_1": ["liver"]})
    cases = {case.id: case for case in read_dataset(toy_dataset).cases}
    assert [cases[f"toy_{i}"].patient for i in range(3)] == ["anna", "anna", "toy_2"]
    assert cases["toy_1"].annotated == ("liver",)
    assert cases["toy_0"].annotated is None
    edit(toy_dataset, patients=None, patient=r"^(toy)_")
    assert {case.patient for case in read_dataset(toy_dataset).cases} == {"toy"}


JUST_TEXT = {
    "empty file": ("", "is empty"),
    "blank file": (" \n", "is empty"),
    "not JSON": ("{'labels': 1}", "not valid JSON"),
    "cut short": ('{"labels": {"liver"', "not valid JSON"),
    "a list": ("[]", "JSON list"),
    "an empty object": ("{}", "declares nothing"),
    "no labels": ('{"training": []}', 'no "labels"'),
    "empty labels": ('{"labels": {}, "training": []}', 'no "labels"'),
    "only background": ('{"labels": {"0": "background"}}', "no label besides background"),
    "no cases": ('{"labels": {"liver": 1}, "training": []}', "lists no cases"),
    "no folders either": ('{"labels": {"liver": 1}}', "no folder images or imagesTr"),
    "a key twice": ('{"labels": {"liver": 1, "liver": 2}}', "'liver' occurs twice"),
    "deeply nested": ("[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize(("text", "words"), JUST_TEXT.values(), ids=JUST_TEXT.keys())
def test_malformed_descriptions_are_answered_with_a_sentence(tmp_path, text, words):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_dataset(tmp_path)
    assert "dataset.json" in str(caught.value)


CHANGES = {
    "labels as text": ({"labels": "liver"}, 'no "labels"'),
    "a fractional value": ({"labels": {"liver": 1.5}}, "expected a whole number"),
    "a truth value": ({"labels": {"liver": True}}, "expected a whole number"),
    "an empty region": ({"labels": {"liver": []}}, "expected a whole number"),
    "a label with a line break": ({"labels": {"liver\nspleen": 1}}, "line break"),
    "a nameless label": ({"labels": {"1": " "}}, "without a name"),
    "two names for a value": ({"labels": {"liver": 1, "spleen": 1}}, "same value 1"),
    "two values for a name": ({"labels": {"1": "liver", "2": "liver"}}, "'liver' to two labels"),
    "a negative organ": ({"labels": {"liver": -1}}, "negative"),
    "an organ that is ignored": ({"labels": {"liver": [1, 9], "ignore": 9}}, "ignored"),
    "background ignored": ({"labels": {"liver": 1, "ignore": 0}}, "ignore"),
    "modality misspelt": ({"modality": {"CT": 0}}, "not channel numbers"),
    "no modality": ({"modality": {}}, "names no channels"),
    "paint order too short": ({"regions_class_order": [1]}, "one value for each"),
    "paint order foreign": ({"regions_class_order": [1, 3]}, "paints the value 3"),
    "training not a list": ({"training": {"a": 1}}, "not a list"),
    "an entry without image": ({"training": [{"label": "./labelsTr/toy_0.nii.gz"}]}, "has the entry"),
    "an entry of numbers": ({"training": [3]}, "has the entry"),
    "an entry without label": ({"training": ["./imagesTr/toy_0.nii.gz"]}, "without a label"),
    "an image that is missing": (
        {"training": [{"image": "./imagesTr/toy_7.nii.gz", "label": "./labelsTr/toy_0.nii.gz"}]},
        "toy_7.nii.gz is missing",
    ),
    "a label that is missing": (
        {"training": [{"image": "./imagesTr/toy_0.nii.gz", "label": "./labelsTr/toy_7.nii.gz"}]},
        "toy_7.nii.gz is missing",
    ),
    "a test image that is missing": ({"test": ["./imagesTs/toy_9.nii.gz"]}, "toy_9.nii.gz is missing"),
    "a case twice": (
        {"training": [{"image": "./imagesTr/toy_0.nii.gz", "label": "./labelsTr/toy_0.nii.gz"}] * 2},
        "more than once",
    ),
    "a patient of nobody": ({"patients": {"toi_0": "anna"}}, "did you mean 'toy_0'"),
    "patients as list": ({"patients": ["anna"]}, "not an object"),
    "a pattern without group": ({"patient": "toy"}, "0 groups"),
    "a broken pattern": ({"patient": "("}, "not a regular expression"),
    "a pattern of numbers": ({"patient": 3}, "int, not text"),
    "a pattern that misses": ({"patient": "^(anna)"}, "does not match case 'toy_0'"),
    "an unknown organ annotated": ({"annotated": {"toy_0": ["lver"]}}, "did you mean 'liver'"),
    "annotated as list": ({"annotated": ["liver"]}, "not an object of lists"),
    "an unknown case annotated": ({"annotated": {"toy_17": ["liver"]}}, "unknown case"),
    "labels without background": ({"labels": ["prostate", "landmark"]}, "gives 'prostate' the value 0"),
    "an organ of value 0": ({"labels": {"liver": 0, "spleen": 1}}, "gives 'liver' the value 0"),
    "a key misspelt": ({"anotated": {}}, "has the key 'anotated', which means nothing; did you mean 'annotated'"),
    "a key in capitals": ({"Patient": "(.)"}, "did you mean 'patient'"),
    "others of a third kind": ({"others": "drop"}, "says \"others\": 'drop'"),
    "images in another format": ({"channel_names": {"0": "CT"}, "file_ending": ".npy"}, "ending in '.npy'"),
    "nnU-Net without channel numbers": ({"channel_names": {"0": "CT"}}, "no channel number"),
    "nnU-Net list misshapen": ({"channel_names": {"0": "CT"}, "dataset": {"a": ["x"]}}, 'under "dataset"'),
    "a folder that is missing": ({"training": None, "image_folder": "scans"}, "scans is missing"),
}


@pytest.mark.parametrize(("changes", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_contradictions_are_answered_with_a_sentence(toy_dataset, changes, words):
    with pytest.raises(DataError, match=words):
        read_dataset(edit(toy_dataset, **changes))


@pytest.mark.parametrize(
    ("layout", "victim", "words"),
    [
        (as_nnunet, "labelsTr/toy_1.nii.gz", "labelsTr/toy_1.nii.gz is missing"),
        (as_nnunet, "imagesTr/toy_1_0000.nii.gz", "toy_1_0000.nii.gz is missing"),
        (lambda root: as_nnunet(root, channels=3), "imagesTr/toy_1_0002.nii.gz", "toy_1_0002.nii.gz is missing"),
        (as_plain, "masks/toy_1.nii.gz", "masks/toy_1.nii.gz is missing"),
        (as_plain, "scans/toy_1.nii.gz", "scans/toy_1.nii.gz is missing"),
    ],
)
def test_a_file_that_is_missing_is_named_unless_told_to_go_on(toy_dataset, layout, victim, words):
    root = layout(toy_dataset)
    (root / victim).unlink()
    with pytest.raises(DataError, match=words):
        read_dataset(root)
    assert len(read_dataset(root, missing_ok=True).cases) == 4


def test_a_folder_without_description(tmp_path, toy_dataset):
    with pytest.raises(DataError, match=r"does not exist\. Check the path"):
        dataset_json(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"Did you mean .*toy"):
        dataset_json(tmp_path)
    with pytest.raises(DataError, match="Write one, such as"):
        dataset_json(toy_dataset / "imagesTr")


def test_a_description_that_cannot_be_decoded(tmp_path):
    (tmp_path / "dataset.json").write_bytes('{"name": "Prüfung"}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_dataset(tmp_path)


def test_an_empty_nnunet_folder_has_no_cases(tmp_path):
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    content = {"channel_names": {"0": "CT"}, "labels": {"liver": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="lists no cases"):
        read_dataset(tmp_path)


def shifted(affine: np.ndarray, **changes) -> np.ndarray:
    new = affine.copy()
    if "origin" in changes:
        new[:3, 3] += changes["origin"]
    if "spacing" in changes:
        new[:3, :3] *= changes["spacing"]
    if "flip" in changes:
        new[:3, 0] *= -1
    if "turn" in changes:
        angle = np.radians(changes["turn"])
        new[:3, :3] = (
            np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ new[:3, :3]
        )
    return new


def spoil(root: Path, what: str) -> None:
    image, labels = toy_case(0)
    affine = oblique_affine(0)
    image_path, label_path = root / "imagesTr/toy_0.nii.gz", root / "labelsTr/toy_0.nii.gz"
    voxels = image.astype(np.float32)
    stray = labels.copy()
    stray[0, 0, :3] = 7
    spoilt = {
        "nan": lambda: write_nifti(image_path, np.where(labels == 5, np.nan, voxels), affine),
        "infinite": lambda: write_nifti(image_path, np.where(labels == 5, np.inf, voxels), affine),
        "shape": lambda: write_nifti(label_path, labels[:-1], affine),
        "origin": lambda: write_nifti(label_path, labels, shifted(affine, origin=5.0)),
        "spacing": lambda: write_nifti(label_path, labels, shifted(affine, spacing=1.1)),
        "flip": lambda: write_nifti(label_path, labels, shifted(affine, flip=True)),
        "turn": lambda: write_nifti(label_path, labels, shifted(affine, turn=3.0)),
        "channels": lambda: write_nifti(image_path, np.stack([image, image], axis=-1), affine),
        "stray": lambda: write_nifti(label_path, stray, affine),
        "fraction": lambda: write_nifti(label_path, labels + np.float32(0.25), affine),
        "truncated": lambda: image_path.write_bytes(image_path.read_bytes()[:-200]),
        "not nifti": lambda: image_path.write_text("hello"),
        "gone": image_path.unlink,
    }
    spoilt[what]()


SPOILT = {
    "nan": "toy_0.nii.gz holds 48 voxels that are NaN or infinite",
    "infinite": "holds 48 voxels that are NaN or infinite",
    "shape": r"labelsTr/toy_0.nii.gz has shape \(23, 20, 12\), but .*imagesTr/toy_0.nii.gz has \(24, 20, 12\)",
    "origin": r"another affine .*: origin \(-13, -10, -19\) mm, expected \(-18, -15, -24\) mm",
    "spacing": r"another affine .*: spacing \(1.65, 1.65, 4.4\) mm, expected \(1.5, 1.5, 4\) mm",
    "flip": "another affine .*: direction LAS, expected RAS",
    "turn": "another affine .*: direction turned by 3 degrees",
    "channels": r"has 2 channels, expected 1 \(CT\)",
    "stray": r'3 voxels with 1 value that no label names: 7\. Name the values under "labels"',
    "fraction": "not whole numbers",
    "truncated": "truncated or corrupt",
    "not nifti": "not a readable NIfTI file",
    "gone": "does not exist",
}


@pytest.mark.parametrize(("what", "words"), SPOILT.items(), ids=SPOILT.keys())
def test_a_case_is_read_whole_or_refused_with_a_sentence(toy_dataset, what, words):
    dataset = read_dataset(toy_dataset)
    spoil(toy_dataset, what)
    with pytest.raises(DataError, match=words):
        read_case(dataset.cases[0], dataset)


def test_rounding_of_the_affine_is_forgiven(toy_dataset):
    affine = oblique_affine(0) + 1e-4
    write_nifti(toy_dataset / "labelsTr/toy_0.nii.gz", toy_case(0)[1], affine)
    dataset = read_dataset(toy_dataset)
    assert read_case(dataset.cases[0], dataset)[1] is not None


def test_channels_must_share_their_grid(toy_dataset):
    dataset = read_dataset(as_nnunet(toy_dataset, channels=2))
    write_nifti(dataset.cases[0].images[1], toy_case(0)[0], shifted(oblique_affine(0), origin=9.0))
    with pytest.raises(DataError, match=r"toy_0_0001.nii.gz has another affine than toy_0_0000.nii.gz"):
        read_case(dataset.cases[0], dataset)
    assert isinstance(nib.load(dataset.cases[0].images[0]), nib.Nifti1Image)


def test_a_case_needs_an_image():
    dataset = Dataset("none", ("CT",), {"liver": 1}, None, ())
    case = Case("a", (), None, "a")
    with pytest.raises(ValueError, match="at least one image"):
        read_case(case, dataset)
    assert replace(dataset, ignore=3).values == (0, 1, 3)


WORDS = st.sampled_from(["0", "1", "liver", "background", "ignore", "CT", "", "./imagesTr/toy_0.nii.gz", "(x)", "-1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats(-2, 2) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.sampled_from(["image", "label"]), inner),
    max_leaves=8,
)
KEYS = ["labels", "training", "test", "modality", "channel_names", "file_ending", "dataset", "patient", "patients"]
KEYS += ["annotated", "regions_class_order", "image_folder", "label_folder", "test_folder", "label_suffix", "name"]
KEYS += ["image", "label", "test_image"]


@examples(50)
@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.booleans())
def test_whatever_a_description_holds_it_is_read_or_refused_with_a_sentence(content, sound_labels):
    if sound_labels:
        content["labels"] = {"0": "background", "1": "liver"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dataset.json"
        file.write_text(json.dumps(content))
        dataset = None
        with contextlib.suppress(DataError):
            dataset = read_dataset(file, missing_ok=True)
        assert dataset is None or (dataset.labels and (dataset.cases or dataset.test))
