"""What a merge is given by mistake: one sentence that names the file or the word, and no dataset."""

import shutil

import pydicom
import pytest
from support.dialects import CASES, ORGANS, write_object, write_objects
from support.hospitals import write_hospital
from support.series import write_ct
from support.toys import oblique_affine, toy_case

from medseg.cli import main
from medseg.datasets.case import read_dataset
from medseg.dicom.series import series_of

pytest.importorskip("highdicom")
pytest.importorskip("SimpleITK")

BODIES = {"liver": 1, "spleen": 2}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Two sets with objects on series, two without."""
    folder = tmp_path_factory.mktemp("clean")
    for form, name in (("dicom-seg", "seg"), ("rtstruct", "outlines")):
        write_objects(folder / name, form, dict(list(CASES.items())[:2]))
    for name, seeds in (("a", (0, 1)), ("b", (10, 11))):
        write_hospital(folder / name, BODIES, BODIES, seeds)
    return folder


@pytest.fixture
def place(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "sets")


def edited(path, change):
    read = pydicom.dcmread(path)
    change(read)
    read.save_as(path)


def exchanged(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def beyond(read):
    """Frames, or outlines, 300 mm away."""
    for frame in read.get("PerFrameFunctionalGroupsSequence", ()):
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient = [float(x) + 300 for x in position.ImagePositionPatient]
    for contour in read.ROIContourSequence[0].ContourSequence if "ROIContourSequence" in read else ():
        contour.ContourData = [float(x) + 300 for x in contour.ContourData]


def of_another_frame(read):
    """Of the regions alone, as a structure set on two frames has it."""
    for region in read.StructureSetROISequence:
        region.ReferencedFrameOfReferenceUID = "1.2.3"


def overlapping(place):
    _, labels = toy_case(0)
    file, series = place / "seg/drawn/toy_0.dcm", series_of(place / "seg/series/toy_0")
    write_object(file, "dicom-seg", {"liver": labels == 1, "spleen": labels >= 1}, series)


def as_frames(folder):
    """All slices in one file."""
    files = sorted(folder.iterdir())
    read = pydicom.dcmread(files[0])
    read.NumberOfFrames, read.PixelData = 3, read.PixelData * 3
    for file in files:
        file.unlink()
    read.save_as(files[0])


def without(folder):
    """The series, its folder left."""
    for file in folder.iterdir():
        file.unlink()


OBJECTS = {
    "frames beyond": (lambda p: edited(p / "seg/drawn/toy_0.dcm", beyond), "toy_0.dcm does not lie on the slices"),
    "outlines beyond": (lambda p: edited(p / "outlines/drawn/toy_0.dcm", beyond), "has an outline of liver beyond"),
    "regions of another frame": (
        lambda p: edited(p / "outlines/drawn/toy_0.dcm", of_another_frame),
        "toy_0.dcm has outlines of liver in another frame of reference",
    ),
    "no series": (lambda p: shutil.rmtree(p / "seg/series/toy_0"), "series/toy_0 is missing"),
    "no slices": (lambda p: without(p / "seg/series/toy_0"), "series/toy_0 is a folder, without DICOM slices"),
    "series of another": (
        lambda p: exchanged(p / "seg/series/toy_0", p / "seg/series/toy_1"),
        "drawn/toy_0.dcm refers to none of the slices",
    ),
    "missing slice": (lambda p: (p / "seg/series/toy_0/004_0004.dcm").unlink(), "toy_0 has gaps of"),
    "two series": (
        lambda p: write_ct(p / "seg/series/toy_0", toy_case(1)[0], oblique_affine(1), number=9), "holds 2 DICOM series"
    ),
    "multi-frame": (lambda p: as_frames(p / "seg/series/toy_0"), "toy_0 is multi-frame DICOM, 3 slices in 1 file"),
    "overlapping": (overlapping, "voxels that are liver and spleen at once"),
    "text for a label": (
        lambda p: (p / "seg/drawn/toy_0.dcm").write_text("hello"),
        "toy_0.nii.gz is missing, though there is toy_0.dcm, which is no image",
    ),
    "object for an image": (
        lambda p: (without(p / "seg/series/toy_0"), shutil.copy(p / "seg/drawn/toy_0.dcm", p / "seg/series/toy_0")),
        "series/toy_0/toy_0.dcm is a segmentation and no image",
    ),
}  # fmt: skip


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_or_a_series_at_fault_is_named(name, place, capsys):
    damage, sentence = OBJECTS[name]
    damage(place)
    words = ["merge", *(str(place / one) for one in ("seg", "outlines")), "--out", str(place / "all")]
    assert main([*words, "--workers", "1"]) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1
    assert not (place / "all/dataset.json").exists()


def test_segments_with_gaps_in_their_numbers_are_what_they_are_called(place, clean):
    from medseg.datasets.drawn import Meaning, read_drawn

    def renumber(read):
        read.SegmentSequence[1].SegmentNumber = 7
        for frame in read.PerFrameFunctionalGroupsSequence:
            which = frame.SegmentIdentificationSequence[0]
            which.ReferencedSegmentNumber = 7 if which.ReferencedSegmentNumber == 2 else which.ReferencedSegmentNumber

    edited(place / "seg/drawn/toy_0.dcm", renumber)
    maps = [
        read_drawn(root / "seg/drawn/toy_0.dcm", root / "seg/series/toy_0", Meaning(ORGANS)).volume.array
        for root in (clean, place)
    ]
    assert (maps[0] == maps[1]).all()
    assert (maps[0] == 5).any()


WORDS = {
    "two names": (["liver=spleen", "liver=hepar"], "gives 'liver' two names, 'spleen' and 'hepar'"),
    "ignore": (["liver=ignore"], "no organ can be called 'ignore'"),
    "background": (["liver=Background"], "no organ can be called 'Background'"),
    "two lines": (["liver=a\nb"], "no organ can be called 'a\\nb'"),
    "nowhere": (["kidney=spleen"], "there is no 'kidney' in a, b"),
    "two become one": (["a:liver=spleen"], "a/dataset.json has 'liver' and 'spleen', which would be one organ"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_rename_that_cannot_be_meant_writes_nothing(name, clean, tmp_path, capsys):
    renames, sentence = WORDS[name]
    words = ["merge", str(clean / "a"), str(clean / "b"), "--out", str(tmp_path / "all"), "--rename", *renames]
    assert main(words) in (1, 2)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "all").exists() or not list((tmp_path / "all").iterdir())


def test_organs_change_names_at_once_and_one_set_goes_before_all(clean, tmp_path):
    from medseg.merge.choices import read_choices

    words = ["merge", str(clean / "a"), str(clean / "b"), "--out", str(tmp_path / "all"), "--dry-run", "--workers", "1"]
    words += ["--rename", "b:liver=liver", "liver=spleen", "--rename", "b:spleen=spleen", "spleen=liver"]
    assert main([*words, "--accept", "sides"]) == 0
    choices, _ = read_choices(tmp_path / "all/merge.yaml")
    assert choices.sets["a"].organs == {"liver": "spleen", "spleen": "liver"}
    assert choices.sets["b"].organs == {"liver": "liver", "spleen": "spleen"}


EDITS = {
    "no channel": (("modalities: [CT]", "modalities: [null]"), "no channel is left of the first set"),
    "another kind": (("accept: []", "accept: [side]"), "expected one of 'nothing-shared'"),
    "background": (("liver: liver", "liver: background"), "no organ can be called 'background'"),
    "twins of nobody": (("twins: []", "twins: [{cases: [a_case_0, b_case_7]}]"), "'b_case_7' under twins, which is"),
    "a tab": (("name: all", "\tname: all"), "is not YAML (line"),
    "a set twice": (("  b:", "  a:"), "the key 'a' occurs twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_decisions_that_cannot_be_followed_are_told(name, clean, tmp_path, capsys):
    (old, new), sentence = EDITS[name]
    out, file = tmp_path / "all", tmp_path / "all/merge.yaml"
    assert main(["merge", str(clean / "a"), str(clean / "b"), "--out", str(out), "--dry-run", "--workers", "1"]) == 0
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert main(["merge", "--yaml", str(file), "--out", str(out), "--workers", "1"]) == 1
    assert sentence in capsys.readouterr().err
    assert not (out / "dataset.json").exists()


def test_twins_that_only_the_user_knows_of_are_one_patient(clean, tmp_path):
    out, file = tmp_path / "all", tmp_path / "all/merge.yaml"
    assert main(["merge", str(clean / "a"), str(clean / "b"), "--out", str(out), "--dry-run", "--workers", "1"]) == 0
    file.write_text(file.read_text().replace("twins: []", "twins: [{cases: [a_case_0, b_case_11]}]"))
    for _ in range(2):  # and stay so when it is merged again
        assert main(["merge", "--yaml", str(file), "--out", str(out), "--workers", "1"]) == 0
        patients = {case.id: case.patient for case in read_dataset(out).cases}
        assert patients["a_case_0"] == patients["b_case_11"] != patients["a_case_1"]


def test_a_merged_dataset_whose_source_is_gone_says_so(place, capsys):
    words = ["merge", str(place / "a"), str(place / "b"), "--out", str(place / "all"), "--workers", "1"]
    assert main(words) == 0
    shutil.rmtree(place / "a")
    assert main(["prepare", str(place / "all"), "--out", str(place / "store")]) == 1
    told = capsys.readouterr().err
    assert "imagesTr/case_0.nii.gz is missing" in told
    assert "Put it back where it was, or run medseg merge again" in told
    assert not (place / "store").exists()
