"""What files are called: whose case each is, for every command alike, and a sentence where two could be meant."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from support.prediction import PLAN

from medseg.datasets.case import read_dataset
from medseg.datasets.matching import match, read_references
from medseg.datasets.names import by_channel, volumes
from medseg.errors import DataError
from medseg.inference.images import find_cases
from medseg.plan.plan import Plan
from medseg.verify.verify import verify


def lay_out(root: Path, files: str, **content: object) -> Path:
    """Empty files, for no voxel is read, beside a description."""
    for name in files.split():
        path = root / name.replace("~", " ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    labels = {"labels": {"liver": 1}, "modality": ["CT"]}
    (root / "dataset.json").write_text(json.dumps(labels | content))
    return root


def plan_of(*modalities: str) -> Plan:
    """A plan for images of these."""
    return replace(PLAN, modalities=modalities, normalisation=PLAN.normalisation * len(modalities))


def told(root: Path) -> dict[str, tuple[list[str], str]]:
    """Case -> what its images and its label are called."""
    cases = read_dataset(root).cases
    return {case.id: ([path.name for path in case.images], case.label.name if case.label else "") for case in cases}


IN_ONE = {"image_folder": "all", "label_folder": "all", "label_suffix": "_gt"}
BY_PATTERN = {"image": "all/{case}.nii.gz", "label": "all/{case}_gt.nii.gz"}
TWO = {"modality": ["T1", "T1_Gd"]}
ONE_IMAGE = {"a": (["a.nii.gz"], "a_gt.nii.gz"), "b": (["b.nii.gz"], "b_gt.nii.gz")}
NUMBERS = {name: ([f"{name}.nii.gz"], f"{name}.nii.gz") for name in ("w_0000", "w_0001", "w_0007")}
SESSIONS = "*/*/anat/{case}_T1w.nii.gz", "derived/*/*/anat/{case}_T1w_seg.nii.gz"
BIDS = " ".join(
    f"s{s}/v{v}/anat/s{s}_v{v}_T1w.nii.gz derived/s{s}/v{v}/anat/s{s}_v{v}_T1w_seg.nii.gz" for s in "12" for v in "12"
)
FOUND = {
    "numbers that are no channels": (
        "images/w_0000.nii.gz images/w_0001.nii.gz images/w_0007.nii.gz "
        "labels/w_0000.nii.gz labels/w_0001.nii.gz labels/w_0007.nii.gz",
        {},
        NUMBERS,
    ),
    "and are as small as channels'": (
        "images/w_0000.nii.gz images/w_0001.nii.gz labels/w_0000.nii.gz labels/w_0001.nii.gz",
        TWO,
        {name: NUMBERS[name] for name in ("w_0000", "w_0001")},
    ),
    "numbers that are": ("images/w_0000.nii.gz labels/w.nii.gz", {}, {"w": (["w_0000.nii.gz"], "w.nii.gz")}),
    "a year": ("images/p_2019.nii.gz labels/p_2019.nii.gz", TWO, {"p_2019": (["p_2019.nii.gz"], "p_2019.nii.gz")}),
    "the longest ending": (
        "images/p_T1.nii.gz images/p_T1_Gd.nii.gz labels/p.nii.gz",
        TWO,
        {"p": (["p_T1.nii.gz", "p_T1_Gd.nii.gz"], "p.nii.gz")},
    ),
    "the longest modality": (
        "p/p_Gd.nii.gz p/p_T1_Gd.nii.gz p/p_seg.nii.gz",
        {"modality": ["Gd", "T1_Gd"], "image": "{case}/{case}_{modality}.nii.gz", "label": "{case}/{case}_seg.nii.gz"},
        {"p": (["p_Gd.nii.gz", "p_T1_Gd.nii.gz"], "p_seg.nii.gz")},
    ),
    "labels beside images": ("all/a.nii.gz all/a_gt.nii.gz all/b.nii.gz all/b_gt.nii.gz", IN_ONE, ONE_IMAGE),
    "the same by pattern": ("all/a.nii.gz all/a_gt.nii.gz all/b.nii.gz all/b_gt.nii.gz", BY_PATTERN, ONE_IMAGE),
    "an image that is called like a label": (
        "all/a_gt.nii.gz all/a_gt_gt.nii.gz",
        IN_ONE,
        {"a_gt": (["a_gt.nii.gz"], "a_gt_gt.nii.gz")},
    ),
    "labels beside images of two modalities": (
        "all/a_T1.nii.gz all/a_T1_Gd.nii.gz all/a_gt.nii.gz",
        IN_ONE | TWO,
        {"a": (["a_T1.nii.gz", "a_T1_Gd.nii.gz"], "a_gt.nii.gz")},
    ),
    "the one with the suffix": (
        "images/a.nii.gz labels/a.nii.gz labels/a-seg.nii.gz",
        {"label_suffix": "-seg"},
        {"a": (["a.nii.gz"], "a-seg.nii.gz")},
    ),
    "names that begin alike, with dots and spaces": (
        "images/c1.nii.gz images/c1.2.nii images/c1~x.nii.gz labels/c1.nii.gz labels/c1.2.nii.gz labels/c1~x.nii",
        {},
        {
            "c1": (["c1.nii.gz"], "c1.nii.gz"),
            "c1.2": (["c1.2.nii"], "c1.2.nii.gz"),
            "c1 x": (["c1 x.nii.gz"], "c1 x.nii"),
        },
    ),
    "sessions and runs of two modalities": (
        " ".join(
            f"s1/v1/anat/s1_v1_run-{r}_{m}.nii.gz derived/s1/v1/anat/s1_v1_run-{r}_seg.nii"
            for r in "12"
            for m in ("T1", "T1_Gd")
        ),
        TWO | {"image": "*/*/anat/{case}_{modality}.nii.gz", "label": "derived/*/*/anat/{case}_seg.nii"},
        {
            f"s1_v1_run-{r}": ([f"s1_v1_run-{r}_T1.nii.gz", f"s1_v1_run-{r}_T1_Gd.nii.gz"], f"s1_v1_run-{r}_seg.nii")
            for r in "12"
        },
    ),
    "endings in the middle": (
        "images/a.nii.b.nii.gz images/a.nii.gz.c.nii labels/a.nii.b.nii labels/a.nii.gz.c.nii.gz",
        {},
        {"a.nii.b": (["a.nii.b.nii.gz"], "a.nii.b.nii"), "a.nii.gz.c": (["a.nii.gz.c.nii"], "a.nii.gz.c.nii.gz")},
    ),
    "sessions": (
        BIDS,
        {"image": SESSIONS[0], "label": SESSIONS[1], "patient": "^(s[0-9])"},
        {f"s{s}_v{v}": ([f"s{s}_v{v}_T1w.nii.gz"], f"s{s}_v{v}_T1w_seg.nii.gz") for s in "12" for v in "12"},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_each_file_finds_its_case(name, tmp_path):
    files, content, expected = FOUND[name]
    assert told(lay_out(tmp_path, files, **content)) == expected


REFUSED = {
    "image or label": ("all/a.nii.gz all/a_gt.nii.gz all/a_gt_gt.nii.gz", IN_ONE, "label of a and the image of a_gt"),
    "the same by pattern": ("all/a.nii.gz all/a_gt.nii.gz all/a_gt_gt.nii.gz", BY_PATTERN, "could be the label of a "),
    "a long name": (f"images/{'肺' * 77}.nii.gz labels/{'肺' * 77}.nii.gz", {}, "names a case of 231 bytes, '肺+'"),
    "two endings": ("images/a.nii images/a.nii.gz labels/a.nii.gz", {}, r"a.nii and a.nii.gz could both be case a\."),
    "two endings of labels": ("images/a.nii labels/a.nii labels/a.nii.gz", {}, "a.nii and a.nii.gz could both be"),
    "a channel twice": (
        "images/a_0000.nii.gz images/a_T1.nii.gz images/a_T1_Gd.nii.gz labels/a.nii.gz",
        TWO,
        "could both be channel 0 of case a",
    ),
    "several series": (
        "a/ct.nii.gz a/pet.nii.gz a/seg/x.nii.gz",
        {"image": "{case}/*.nii.gz", "label": "{case}/seg/*.nii.gz"},
        "ct.nii.gz and pet.nii.gz could both be case a",
    ),
    "two runs of one case": (
        "s1/v1/s1_run-1.nii.gz s1/v1/s1_run-2.nii.gz seg/s1.nii.gz",
        {"image": "{case}/*/{case}_*.nii.gz", "label": "seg/{case}.nii.gz"},
        "s1_run-1.nii.gz and s1_run-2.nii.gz could both be case s1",
    ),
    "one folder": (
        "all/a.nii.gz",
        {"image_folder": "all", "label_folder": "./all"},
        "names all for images and",
    ),
    "every label": ("all/a.nii.gz all/b.nii.gz", IN_ONE, "a_gt.nii.gz is missing"),
    "**": ("a/b.nii.gz", {"image": "**/{case}.nii.gz", "label": "{case}.nii"}, r"has \*\*, where"),
    "capitals": ("images/a.nii.gz labels/a.NII.GZ", {}, "has capitals in its ending"),
    "nnU-Net's number": (
        "imagesTr/word_0002.nii.gz labelsTr/word_0002.nii.gz",
        {"channel_names": {"0": "CT"}, "modality": None},
        "has no channel number, .* Call it word_0002_0000",
    ),
    "a second file of a channel": (
        "imagesTr/a_0000.nii imagesTr/a_0000.nii.gz labelsTr/a.nii.gz",
        {"channel_names": {"0": "CT"}},
        "could both be case a",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_two_is_refused(name, tmp_path):
    files, content, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        read_dataset(lay_out(tmp_path, files, **content))


ZOE = "Zo\u00eb \u00c5ngstr\u00f6m \u80ba"


def spelt(form: str, text: str = ZOE) -> str:
    return unicodedata.normalize(form, text)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"image": "images/{case}.nii.gz", "label": f"{spelt('NFC', 'é')}/{{case}}.nii.gz"},
        {"label_folder": spelt("NFC", "é")},
        {"training": [{"image": f"images/{spelt('NFD')}.nii.gz", "label": f"é/{spelt('NFC')}.nii.gz"}]},
    ],
    ids=["folders", "pattern", "folder", "list"],
)
def test_letters_are_the_same_however_they_are_encoded(content, tmp_path):
    """The image's name composed, the label's decomposed, as macOS unpacks it."""
    folder = spelt("NFD", "é") if content else "labels"
    for place, form in (("images", "NFC"), (folder, "NFD")):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{spelt(form)}.nii.gz").touch()
    root = lay_out(tmp_path, "", **content, annotated={spelt("NFD"): ["liver"]}, patients={spelt("NFD"): "Z"})
    (case,) = read_dataset(root).cases
    assert (case.id, case.patient, case.annotated) == (spelt("NFC"), "Z", ("liver",))
    assert "missing" not in {problem.kind for problem in verify(root, workers=1).problems}
    assert list(read_references(root / folder).labels) == [spelt("NFC")]


def test_two_names_of_the_same_letters_are_refused(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / f"{spelt(form)}.nii.gz").touch()
    with pytest.raises(DataError, match="could both be"):
        read_references(tmp_path)


def matched(root: Path, predictions: str, references: str = "") -> dict[str, str]:
    """Prediction -> the label it is held against."""
    folder = root / "predictions"
    folder.mkdir(exist_ok=True)
    for name in predictions.split():
        (folder / name).touch()
    found = match(folder, read_references(root / references))
    failed = {failure.case: failure.reason for failure in found.failures}
    return {pair.prediction.name: pair.reference.name for pair in found.pairs} | failed


LITS = "images/volume-0.nii images/volume-1.nii labels/segmentation-0.nii labels/segmentation-1.nii"
LISTED = [{"image": f"images/volume-{n}.nii", "label": f"labels/segmentation-{n}.nii"} for n in (0, 1)]


@pytest.mark.parametrize("references", ["", "labels"])
@pytest.mark.parametrize(
    "content",
    [{"image": "images/volume-{case}.nii", "label": "labels/segmentation-{case}.nii"}, {"training": LISTED}],
    ids=["pattern", "list"],
)
def test_predictions_are_called_by_image_by_case_or_by_label(content, references, tmp_path):
    root = lay_out(tmp_path, LITS, **content)
    case = read_dataset(root).cases[1].id
    found = matched(root, f"volume-0.nii.gz {case}.nii.gz", references)
    assert found == {"volume-0.nii.gz": "segmentation-0.nii", f"{case}.nii.gz": "segmentation-1.nii"}
    assert matched(root, "segmentation-0.nii.gz", references)["0" if "image" in content else "segmentation-0"].endswith(
        "could both be the prediction of " + ("0" if "image" in content else "segmentation-0") + ". Remove one of them"
    )


def test_a_suffix_and_a_draft_beside_the_label(tmp_path):
    root = lay_out(
        tmp_path, "images/a.nii labels/a.nii labels/a-seg.nii", label_suffix="-seg", annotated={"a": ["liver"]}
    )
    assert matched(root, "a.nii.gz", "labels") == {"a.nii.gz": "a-seg.nii"}
    assert read_references(root / "labels").annotated == {"a": ("liver",)}


def test_a_name_of_two_cases_is_refused(tmp_path):
    crossed = [{"image": "images/1.nii", "label": "labels/2.nii"}, {"image": "images/2.nii", "label": "labels/1.nii"}]
    root = lay_out(tmp_path, "images/1.nii images/2.nii labels/1.nii labels/2.nii", training=crossed)
    assert matched(root, "1.nii.gz") == {
        "1": f"{root}/predictions/1.nii.gz could be the prediction of 1, 2. Call it by the name of its case"
    }


def test_labels_two_folders_down_belong_to_their_dataset(tmp_path):
    root = lay_out(tmp_path, "x/im/a.nii x/lb/a_m.nii", image_folder="x/im", label_folder="x/lb", label_suffix="_m")
    assert matched(root, "a.nii.gz", "x/lb") == {"a.nii.gz": "a_m.nii"}


ONLY_DESCRIBED = ("and are as small as channels'", "the longest modality")  # a folder says less: labels lie in it, too


@pytest.mark.parametrize("name", [n for n in FOUND if "all/" not in FOUND[n][0] and n not in ONLY_DESCRIBED])
def test_what_trains_is_predicted_and_evaluated_under_names_that_are_found(name, tmp_path):
    """Predicted as the dataset, or as the folder of its images, each case finds its own label."""
    files, content, expected = FOUND[name]
    root = lay_out(tmp_path, files, **content)
    dataset = read_dataset(root)
    plan = plan_of(*dataset.modalities)
    assert find_cases(root, plan, training_too=True)[0] == {case.id: case.images for case in dataset.cases}
    folders = {case.images[0].parent for case in dataset.cases}
    names = {found: files for folder in folders for found, files in find_cases(folder, plan)[0].items()}
    assert sorted(map(sorted, names.values())) == sorted(sorted(case.images) for case in dataset.cases)
    labels = {
        f"{found}.nii.gz": label
        for found, files in names.items()
        for images, label in expected.values()
        if [path.name for path in files] == images
    }
    assert matched(root, " ".join(f"{found}.nii.gz" for found in names if " " not in found)).items() <= labels.items()


def test_a_number_alone_is_a_channel_and_among_others_a_name(tmp_path):
    lay_out(tmp_path, "one/case_0000.nii.gz many/case_0000.nii.gz many/case_0001.nii.gz many/b.nii.gz")
    plan = plan_of("CT")
    assert list(find_cases(tmp_path / "one", plan)[0]) == ["case"]
    assert list(find_cases(tmp_path / "many", plan)[0]) == ["b", "case_0000", "case_0001"]
    assert list(find_cases(tmp_path / "many" / "case_0000.nii.gz", plan)[0]) == ["case_0000"]


def test_a_dataset_of_other_modalities_is_refused(tmp_path):
    root = lay_out(tmp_path, "images/a.nii labels/a.nii", modality=["MR"])
    with pytest.raises(DataError, match="has images of MR, the network knows CT"):
        find_cases(root, plan_of("CT"), training_too=True)


def test_what_a_dataset_has_to_predict(tmp_path):
    plan = plan_of("CT")
    root = lay_out(tmp_path, "images/a.nii labels/a.nii")
    with pytest.raises(DataError, match=r"lists no test cases\. Take its training cases with --all"):
        find_cases(root, plan)
    lay_out(root, "imagesTs/t.nii")
    for source in (root, root / "dataset.json"):
        assert list(find_cases(source, plan)[0]) == ["t"]
    assert list(find_cases(root, plan, training_too=True)[0]) == ["a", "t"]
    with pytest.raises(DataError, match="is no dataset"):
        find_cases(root / "images", plan, training_too=True)


def test_an_image_of_a_dataset_that_is_missing_keeps_nobody_up(tmp_path):
    root = lay_out(tmp_path, "in/a.nii in/b.nii", training=[], test=["in/a.nii", "in/b.nii", "in/c.nii"])
    cases, failures = find_cases(root, plan_of("CT"))
    assert (list(cases), [failure.path.name for failure in failures]) == (["a", "b"], ["c.nii"])


def test_a_folder_of_folders_says_what_to_give_instead(tmp_path):
    lay_out(tmp_path, "in/a/ct.nii in/b/ct.nii in/c/readme.txt")
    with pytest.raises(
        DataError, match=r"holds no image itself, but 2 folders with images: a, b\. Give the folder of each"
    ):
        find_cases(tmp_path / "in", plan_of("CT"))


def test_a_wildcard_takes_no_image_without_a_label_and_says_so(tmp_path, caplog):
    root = lay_out(tmp_path, f"{BIDS} flat/s9/anat/s9_T1w.nii.gz", image=SESSIONS[0], label=SESSIONS[1])
    assert len(told(root)) == 4
    assert "1 images without a label left out: s9" in caplog.text


def test_links_are_files_and_folders(tmp_path):
    root = lay_out(tmp_path, "real/x.nii labels/a.nii", image_folder="linked")
    (root / "linked").symlink_to(root / "real", target_is_directory=True)
    (root / "real" / "a.nii").symlink_to(root / "real" / "x.nii")
    (root / "labels" / "x.nii").symlink_to(root / "labels" / "a.nii")
    assert told(root) == {"a": (["a.nii"], "a.nii"), "x": (["x.nii"], "x.nii")}


def test_a_case_that_lacks_a_channel_is_not_taken_for_a_whole_one(tmp_path):
    (tmp_path / "a_0001.nii.gz").touch()
    assert by_channel(volumes(tmp_path), ("T1", "T2")) == {"a": {1: [tmp_path / "a_0001.nii.gz"]}}
