"""Verify: every problem of every case in one pass, repaired copies, dead workers named, pictures."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.machine.crew import for_each_case
from medseg.pictures.slices import png
from medseg.verify.inspection import Problem, inspect_case
from medseg.verify.verify import verify

IMAGE, LABEL = "imagesTr/toy_0.nii.gz", "labelsTr/toy_0.nii.gz"


def change_image(root: Path, function, name: str = IMAGE) -> None:
    image = toy_case(int(name[-8]))[0].astype(np.float32)
    write_nifti(root / name, function(image), oblique_affine(int(name[-8])))


def change_label(root: Path, function, affine: np.ndarray | None = None) -> None:
    write_nifti(root / LABEL, function(toy_case(0)[1]), oblique_affine(0) if affine is None else affine)


def change_json(root: Path, **changes) -> None:
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))


def moved(**changes: float) -> np.ndarray:
    affine = oblique_affine(0)
    affine[0, 3] += changes.get("origin", 0.0)
    affine[:3, 2] *= changes.get("spacing", 1.0)
    affine[:3, 0] *= changes.get("flip", 1.0)
    if "turn" in changes:
        c, s = np.cos(changes["turn"]), np.sin(changes["turn"])
        affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    return affine


def setting(array: np.ndarray, where, value) -> np.ndarray:
    array = array.copy()
    array[where] = value
    return array


def cut(root: Path, name: str, length: int) -> None:
    (root / name).write_bytes((root / name).read_bytes()[:-length])


def copy(root: Path, source: str, target: str) -> None:
    shutil.copyfile(root / source, root / target)


def disagree(root: Path) -> None:
    image = nib.load(root / IMAGE)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header.set_qform(moved(flip=-1.0), code=1)
    nib.save(image, root / IMAGE)


FAULTS = {
    "missing image": (lambda r: (r / IMAGE).unlink(), "toy_0", "missing", "is missing"),
    "missing label": (lambda r: (r / LABEL).unlink(), "toy_0", "missing", "is missing"),
    "missing test image": (lambda r: (r / "imagesTs/toy_4.nii.gz").unlink(), None, None, None),
    "truncated": (lambda r: cut(r, IMAGE, 3000), "toy_0", "unreadable", "truncated or corrupt"),
    "checksum cut off": (lambda r: cut(r, IMAGE, 4), "toy_0", "unreadable", "truncated or corrupt"),
    "not NIfTI": (lambda r: (r / LABEL).write_text("x"), "toy_0", "unreadable", "not a readable NIfTI"),
    "empty file": (lambda r: (r / LABEL).write_bytes(b""), "toy_0", "unreadable", "not a readable NIfTI"),
    "nan": (lambda r: change_image(r, lambda a: setting(a, (0, 0, 0), np.nan)), "toy_0", "non-finite", "1 voxels"),
    "infinite": (lambda r: change_image(r, lambda a: setting(a, 0, -np.inf)), "toy_0", "non-finite", "240 voxels"),
    "constant": (lambda r: change_image(r, lambda a: 0 * a + 7), "toy_0", "constant", "is constant: every voxel is 7"),
    "channels": (
        lambda r: change_image(r, lambda a: np.stack([a, a + 1], axis=-1)),
        "toy_0",
        "channels",
        r"2 channels, expected 1 \(CT\)",
    ),
    "channels of a label": (
        lambda r: change_label(r, lambda a: np.stack([a, a], axis=-1)),
        "toy_0",
        "channels",
        "expected a label volume with one",
    ),
    "shape": (lambda r: change_label(r, lambda a: a[1:]), "toy_0", "shape", r"shape \(23, 20, 12\)"),
    "spacing": (lambda r: change_label(r, np.copy, moved(spacing=1.2)), "toy_0", "spacing", "expected .* mm"),
    "origin": (lambda r: change_label(r, np.copy, moved(origin=9.0)), "toy_0", "origin", "origin"),
    "direction": (lambda r: change_label(r, np.copy, moved(flip=-1.0)), "toy_0", "direction", "LAS, expected RAS"),
    "turned": (lambda r: change_label(r, np.copy, moved(turn=0.1)), "toy_0", "direction", "turned by 5.7 degrees"),
    "undeclared": (
        lambda r: change_label(r, lambda a: setting(a, (0, 0), 7)),
        "toy_0",
        "undeclared",
        "holds 12 voxels with 1 value that no label names: 7",
    ),
    "fractional": (lambda r: change_label(r, lambda a: a * 0.5), "toy_0", "fractional", "not whole numbers"),
    "nan in a label": (
        lambda r: change_label(r, lambda a: setting(a.astype(np.float32), 0, np.nan)),
        "toy_0",
        "fractional",
        "not whole numbers",
    ),
    "unused": (
        lambda r: change_json(r, labels={"liver": 1, "spleen": 5, "kidney": 3, "ignore": 9}),
        "",
        "unused",
        "declares 'kidney', but no case holds the value 3",
    ),
    "unused region": (
        lambda r: change_json(r, labels={"both": [1, 5, 6], "liver": 1, "ignore": 9}),
        "",
        "unused",
        "declares 'both', but no case holds the value 6",
    ),
    "duplicate": (
        lambda r: copy(r, IMAGE, "imagesTr/toy_1.nii.gz"),
        "toy_1",
        "duplicate",
        "toy_0.nii.gz of case toy_0",
    ),
    "leakage": (lambda r: copy(r, IMAGE, "imagesTs/toy_4.nii.gz"), "toy_4", "leakage", "training and test share it"),
    "half a voxel": (lambda r: change_label(r, np.copy, moved(origin=0.75)), "toy_0", "origin", r"mm, 0\.5 of a voxel"),
}


def kinds(report) -> set[tuple[str, str]]:
    return {(problem.case, problem.kind) for problem in report.problems if not problem.harmless}


def test_a_sound_dataset_has_no_problem(toy_dataset):
    report = verify(toy_dataset, workers=1)
    assert report.ok
    assert report.problems == ()
    assert report.cases == 5
    assert json.loads(report.to_json())["ok"] is True
    assert str(report.table()) == report.verdict == "5 cases, no problem found"


@pytest.mark.parametrize(("spoil", "case", "kind", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_every_fault_is_found_and_named(toy_dataset, spoil, case, kind, words):
    if case is None:
        (toy_dataset / "imagesTs/other.nii.gz").write_bytes(b"")  # an empty folder would mean: not downloaded
        case, kind, words = "toy_4", "missing", "is missing"
    spoil(toy_dataset)
    report = verify(toy_dataset, workers=1)
    assert not report.ok
    (problem,) = [p for p in report.problems if (p.case, p.kind) == (case, kind)]
    assert words is not None
    assert re.search(words, problem.problem), problem.problem
    assert problem.remedy


def test_all_faults_of_all_cases_are_told_at_once(toy_dataset):
    change_image(toy_dataset, lambda a: setting(a, 0, np.nan))
    change_label(toy_dataset, lambda a: setting(a, 0, 7), moved(origin=9.0))
    (toy_dataset / "labelsTr/toy_1.nii.gz").unlink()
    cut(toy_dataset, "imagesTr/toy_2.nii.gz", 500)
    change_image(toy_dataset, lambda a: 0 * a, "imagesTs/toy_4.nii.gz")
    report = verify(toy_dataset, workers=1)
    assert kinds(report) == {
        ("toy_0", "non-finite"),
        ("toy_0", "undeclared"),
        ("toy_0", "origin"),
        ("toy_1", "missing"),
        ("toy_2", "unreadable"),
        ("toy_4", "constant"),
    }
    told = io.StringIO()
    Console(file=told, width=200).print(report.table())
    for words in ("toy_4", "imagesTr/toy_0.nii.gz", "NaN", "6 problems"):
        assert words in told.getvalue()


def test_the_number_of_processes_changes_nothing(toy_dataset):
    change_label(toy_dataset, lambda a: setting(a, 0, 7))
    copy(toy_dataset, IMAGE, "imagesTr/toy_1.nii.gz")
    assert verify(toy_dataset, workers=1) == verify(toy_dataset, workers=2)


def test_ct_in_another_unit_is_a_remark_on_the_case_or_where_all_are_so_on_the_dataset(toy_dataset):
    def remarks() -> list[tuple[str, str]]:
        report = verify(toy_dataset, workers=1)
        assert report.ok
        return [(problem.case, problem.problem) for problem in report.problems if problem.kind == "units"]

    change_image(toy_dataset, lambda a: a + 1024, "imagesTr/toy_1.nii.gz")
    ((case, told),) = remarks()
    assert (case, "as if 1024 had been added" in told) == ("toy_1", True)
    for part, number in (("Tr", 0), ("Tr", 2), ("Tr", 3), ("Ts", 4)):
        change_image(toy_dataset, lambda a: a + 1024, f"images{part}/toy_{number}.nii.gz")
    ((case, told),) = remarks()
    assert (case, "5 of 5 cases have no Hounsfield units" in told) == ("", True)
    change_json(toy_dataset, modality={"0": "MRI"})
    assert remarks() == []


HARMLESS = {
    "float labels": (lambda r: change_label(r, np.float32), "toy_0", "float-labels", "holds labels as float32"),
    "rounding": (lambda r: change_label(r, np.copy, moved(origin=0.01)), "toy_0", "rounding", "of a voxel away"),
    "nothing marked": (lambda r: change_label(r, lambda a: 0 * a), "toy_0", "no-foreground", "no organ at all"),
    "two affines": (disagree, "toy_0", "two-affines", r"qform \(LAS, .*\) that disagrees with its sform \(RAS"),
    "count": (lambda r: change_json(r, numTraining=7), "", "count", '"numTraining": 7, but has 4'),
    "unlisted": (lambda r: copy(r, IMAGE, "imagesTr/new.nii.gz"), "", "unlisted", "1 files of imagesTr, .* new.nii.gz"),
    "a patient twice": (
        lambda r: (
            copy(r, IMAGE, "imagesTr/toy_1.nii.gz"),
            copy(r, LABEL, "labelsTr/toy_1.nii.gz"),
            change_json(r, patients={"toy_0": "anna", "toy_1": "anna"}),
        ),
        "toy_1",
        "duplicate",
        "the same patient's",
    ),
}


@pytest.mark.parametrize(("spoil", "case", "kind", "words"), HARMLESS.values(), ids=HARMLESS.keys())
def test_what_nothing_stumbles_over_is_remarked_on(toy_dataset, spoil, case, kind, words):
    spoil(toy_dataset)
    report = verify(toy_dataset, workers=1)
    assert report.ok
    (problem,) = report.problems
    assert (problem.case, problem.kind) == (case, kind)
    assert re.search(words, problem.problem), problem.problem


def test_where_no_label_can_be_read_none_is_called_unused(toy_dataset):
    for path in (toy_dataset / "labelsTr").iterdir():
        path.write_bytes(b"")
    report = verify(toy_dataset, workers=1)
    assert {problem.kind for problem in report.problems} == {"unreadable"}


def test_a_problem_without_a_file_is_the_whole_cases(toy_dataset):
    report = replace(verify(toy_dataset, workers=1), problems=(Problem("toy_1", None, "died", "ended", "Mend it"),))
    assert json.loads(report.to_json())["problems"][0]["file"] is None


def test_an_affine_without_a_qform_is_no_disagreement(toy_dataset):
    image = nib.load(toy_dataset / IMAGE)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header.set_qform(None, code=0)
    nib.save(image, toy_dataset / IMAGE)
    assert verify(toy_dataset, workers=1).problems == ()


def test_channels_that_repeat_each_other(toy_dataset):
    for index in range(5):
        part = "Ts" if index == 4 else "Tr"
        change_image(toy_dataset, lambda a: np.stack([a, a], axis=-1), f"images{part}/toy_{index}.nii.gz")
    change_json(toy_dataset, modality={"0": "T1", "1": "T2"})
    report = verify(toy_dataset, workers=1)
    assert kinds(report) == {(f"toy_{i}", "duplicate") for i in range(5)}


def test_the_report_for_machines(toy_dataset, tmp_path):
    change_label(toy_dataset, lambda a: setting(a, 0, 7))
    report = verify(toy_dataset / "dataset.json", workers=1)
    report.write_json(tmp_path / "new" / "report.json")
    told = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert told["ok"] is False
    assert told["cases"] == 5
    (row,) = told["problems"]
    assert row["case"] == "toy_0"
    assert row["file"] == LABEL
    assert row["kind"] == "undeclared"
    assert row["repairable"] is False
    with pytest.raises(DataError, match="cannot be written"):
        report.write_json(toy_dataset / "dataset.json" / "report.json")


def test_real_data_is_sound_but_for_two_float_labels():
    folder = Path(__file__).parents[2] / "../shared/data/Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip("the Hippocampus task is not beside the checkout")
    dataset = read_dataset(folder)
    chosen = [case for case in dataset.cases if case.id in {"hippocampus_001", "hippocampus_003", "hippocampus_243"}]
    found = [problem for case in chosen for problem in inspect_case((case, dataset)).problems]
    assert [(problem.case, problem.kind) for problem in found] == [
        ("hippocampus_003", "float-labels"),
        ("hippocampus_243", "float-labels"),
    ]


def fail(_: object) -> None:
    raise DataError("four", "is wrong", "Take five")


def test_a_dead_worker_is_a_problem_of_its_case(toy_dataset, monkeypatch):
    def dead(work, tasks, **options):
        for name, task in tasks.items():
            yield from for_each_case(fail if name == "toy_1" else work, {name: task})

    monkeypatch.setattr("medseg.verify.verify.for_each_case", dead)
    report = verify(toy_dataset)
    assert kinds(report) == {("toy_1", "died")}
    assert report.problems[0].remedy == "Take five"


@pytest.mark.parametrize("shape", [(0, 3, 3)])
def test_a_picture_that_is_none(shape):
    with pytest.raises(ValueError, match="expected a picture"):
        png(np.zeros(shape, dtype=np.uint8))
