"""The store: what it holds, what it survives, and what it says when something is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.datasets.case import read_case, read_dataset, read_image
from medseg.errors import DataError, MachineError
from medseg.plan.grid import labels_to_plan_grid, to_plan_grid
from medseg.plan.plan import Normalisation, Plan, read_plan, write_plan
from medseg.store import arrays, one_case
from medseg.store.arrays import open_array, write_array
from medseg.store.one_case import foreground
from medseg.store.prepare import prepare
from medseg.store.store import Store
from medseg.verify.verify import verify

PLAN = Plan(
    name="Toy",
    modalities=("CT",),
    labels={"liver": 1, "spleen": 5},
    orientation="RAS",
    spacing_mm=(1.5, 1.5, 4.0),
    patch_size=(16, 16, 8),
    batch_size=2,
    normalisation=(Normalisation("ct", lower=-50.0, upper=250.0, mean=100.0, std=60.0),),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
    features=(8, 16),
    ignore=9,
)


@pytest.fixture
def store(toy_dataset, tmp_path):
    return prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)


def files_of(path):
    """Every file of a store with what changes when it is written again."""
    return {str(file.relative_to(path)): file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def rewrite(path, change):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def test_a_store_holds_every_case_on_the_plans_grid(store, toy_dataset):
    dataset = read_dataset(toy_dataset)
    assert store.ids == ("toy_0", "toy_1", "toy_2", "toy_3")
    assert (store.plan, store.dataset, store.edited()) == (PLAN, "Toy", ())
    for case in dataset.cases:
        image, labels = read_case(case, dataset)
        expected, change = to_plan_grid(image, PLAN)
        atoms = labels_to_plan_grid(labels, PLAN, change)
        stored = store.image(case.id)
        assert (stored.shape, stored.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(stored[:], expected, rtol=3e-4, atol=1e-6)  # 12 bits of mantissa are kept
        np.testing.assert_array_equal(stored[:, 3:9, 2:5, 1:4], stored[:][:, 3:9, 2:5, 1:4])
        np.testing.assert_array_equal(store.labels(case.id)[:], atoms)
        info = store.info(case.id)
        assert (info.change, info.patient, info.annotated) == (change, case.id, None)
        assert info.voxels == {int(v): int(n) for v, n in zip(*np.unique(atoms, return_counts=True), strict=True)}
        assert [Path(path).name for path in (*info.images, info.label)] == [f"{case.id}.nii.gz"] * 2


def test_foreground_lists_the_voxels_of_each_class(store):
    for case in store.ids:
        atoms = store.labels(case)[:]
        found = store.foreground(case)
        assert set(found) == set(np.unique(atoms[atoms > 0]))
        for index, places in found.items():
            np.testing.assert_array_equal(places, np.argwhere(atoms == index))


def test_foreground_is_sampled_evenly_and_repeatably(monkeypatch):
    monkeypatch.setattr(one_case, "FOREGROUND_SAMPLES", 50)
    atoms = np.zeros((20, 20, 20), dtype=np.int16)
    atoms[5:] = 1
    atoms[0, 0, :3] = 2
    table = foreground(atoms, np.eye(3, dtype=np.float32), exclusive=True, seed=1)
    np.testing.assert_array_equal(table, foreground(atoms, np.eye(3, dtype=np.float32), exclusive=True, seed=1))
    assert (np.bincount(table[:, 0]) == [0, 50, 3]).all()
    assert len(np.unique(table, axis=0)) == 53
    assert (atoms[tuple(table[:, 1:].T)] == table[:, 0]).all()


def test_regions_overlap_in_the_foreground():
    atoms = np.array([[[0, 1, 2, -1]]], dtype=np.int16)
    membership = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.float32)
    table = foreground(atoms, membership, exclusive=False, seed=0)
    assert table.tolist() == [[0, 0, 0, 1], [0, 0, 0, 2], [1, 0, 0, 2]]


def test_a_case_without_foreground(toy_dataset, tmp_path):
    rewrite(toy_dataset / "labelsTr" / "toy_1.nii.gz", np.zeros_like)
    assert prepare(toy_dataset, tmp_path / "store", PLAN, workers=1).foreground("toy_1") == {}


def test_folders_that_are_not_cases_stay(store, toy_dataset):
    mine = store.path / "cases" / "my notes"
    mine.mkdir()
    write_nifti(toy_dataset / "imagesTr/toy_1.nii.gz", toy_case(1)[0] + 1, oblique_affine(1))
    prepare(toy_dataset, store.path, workers=1)
    assert mine.is_dir()
    (store.path / "plan.yaml").unlink()
    (store.path / "index.json").unlink()
    with pytest.raises(DataError, match="holds other files, and is no store"):
        prepare(toy_dataset, store.path, workers=1)


def test_an_organ_that_is_smaller_than_the_voxels_of_the_plan_is_named(toy_dataset, tmp_path, caplog):
    image, labels = toy_case(2)  # which has no spleen
    labels[16, 7, 5] = 5
    affine = oblique_affine(2) @ np.diag([0.3, 0.3, 0.3, 1.0])
    for part, voxels in (("images", image), ("labels", labels)):
        write_nifti(toy_dataset / f"{part}Tr/toy_2.nii.gz", voxels, affine)
    prepare(toy_dataset, tmp_path / "store", workers=1)
    assert [record.getMessage() for record in caplog.records] == [
        "organs have voxels in the label file but none at the plan's 1.5 x 1.5 x 4.125 mm; "
        "a finer spacing_mm would keep them: toy_2: spleen"
    ]


def test_what_is_drawn_where_the_image_is_zero_is_told_with_its_reason(toy_dataset, tmp_path, caplog):
    for case in range(4):
        image, _ = toy_case(case)
        image[:9] = 0  # of the liver, which reaches from 4 to 12, five layers
        if case == 1:
            image[:14] = 0  # and all of it
        write_nifti(toy_dataset / f"imagesTr/toy_{case}.nii.gz", image, oblique_affine(case))
    prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)
    (told,) = [record.getMessage() for record in caplog.records if "cropped away" in record.getMessage()]
    assert told.startswith(
        "labels where every channel is zero were cropped away with it: toy_0: liver (270 of 432 voxels)"
    )
    assert "toy_1: liver (432 of 432 voxels)" in told
    report = verify(toy_dataset, workers=1)
    assert report.ok
    assert {(problem.case, problem.kind) for problem in report.problems} == {(f"toy_{n}", "cut-away") for n in range(4)}
    assert "liver (270 of 432 voxels) where every channel of the image is zero" in report.problems[0].problem


def test_a_ct_in_another_unit_is_told_whether_the_plan_is_made_or_given(toy_dataset, tmp_path, caplog):
    path = toy_dataset / "imagesTr" / "toy_1.nii.gz"
    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj) + np.int16(1024), image.affine)
    made = prepare(toy_dataset, tmp_path / "made", workers=1)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("toy_1 is no CT as the others: it has a fifth of the voxels above 700")
    for plan in (replace(made.plan, normalisation=PLAN.normalisation), None):  # the second time, that of the store
        caplog.clear()
        (tmp_path / "given" / "index.json").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "given" / "cases", ignore_errors=True)
        prepare(toy_dataset, tmp_path / "given", plan, workers=1)
        (told,) = [record.getMessage() for record in caplog.records]
        assert told.startswith("toy_1 may be no CT in the unit of the training, where organs have ")


def test_a_case_without_a_label_is_kept_for_prediction(toy_dataset, tmp_path, monkeypatch):
    dataset = read_dataset(toy_dataset)
    cases = (dataset.cases[0], replace(dataset.cases[1], label=None))
    monkeypatch.setattr("medseg.store.prepare.read_dataset", lambda _: replace(dataset, cases=cases))
    store = prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)
    assert store.image("toy_1")[:].any()
    assert (store.foreground("toy_1"), store.info("toy_1").voxels) == ({}, {})
    with pytest.raises(DataError, match="has no reference segmentation"):
        store.labels("toy_1")


def test_a_store_travels_to_other_processes(store):
    assert pickle.loads(pickle.dumps(store)).ids == store.ids


def test_preparing_again_does_nothing(store, toy_dataset):
    before = files_of(store.path)
    prepare(toy_dataset, store.path, PLAN, workers=1)
    prepare(toy_dataset, store.path, workers=1)
    assert files_of(store.path) == before


def test_only_what_changed_is_prepared_again(store, toy_dataset):
    before = files_of(store.path)
    rewrite(toy_dataset / "imagesTr" / "toy_2.nii.gz", lambda array: array + 1)
    assert store.edited() == ("toy_2",)
    again = prepare(toy_dataset, store.path, workers=1)
    after = files_of(store.path)
    assert again.edited() == ()
    assert {name for name in after if "toy_2" in name}.isdisjoint(before)
    unchanged = {name for name in before if name.startswith("cases") and "toy_2" not in name}
    assert all(after[name] == before[name] for name in unchanged)
    assert len(list((store.path / "cases").iterdir())) == 4


def test_a_file_that_was_only_touched_or_moved_is_not_prepared_again(store, toy_dataset, tmp_path):
    before = files_of(store.path)
    moved = toy_dataset.rename(tmp_path / "elsewhere")
    assert store.edited() == ()  # a store may travel without its sources
    again = prepare(moved, store.path, workers=1)
    after = files_of(store.path)
    assert [name for name in before if name.endswith(".b2nd") and after[name] != before[name]] == []
    assert again.edited() == ()
    assert Path(again.info("toy_0").images[0]).is_file()


def test_a_case_taken_off_the_list_leaves_the_store(store, toy_dataset):
    content = json.loads((toy_dataset / "dataset.json").read_text(encoding="utf-8"))
    content["training"] = content["training"][1:]
    (toy_dataset / "dataset.json").write_text(json.dumps(content))
    assert prepare(toy_dataset, store.path, workers=1).ids == ("toy_1", "toy_2", "toy_3")
    with pytest.raises(ValueError, match="holds no case 'toy_0'"):
        Store(store.path).image("toy_0")


def test_numbers_that_the_cases_do_not_depend_on_may_change(store, toy_dataset):
    before = {name: at for name, at in files_of(store.path).items() if name.startswith("cases")}
    edited = replace(PLAN, batch_size=7, patch_size=(32, 32, 8))
    assert prepare(toy_dataset, store.path, edited, workers=1).plan == edited
    assert {name: at for name, at in files_of(store.path).items() if name.startswith("cases")} == before


def test_another_plan_is_refused_with_both_numbers(store, toy_dataset):
    before = files_of(store.path)
    with pytest.raises(DataError, match=r"spacing_mm \[2.0, 1.5, 4.0\], but .* another plan: \[1.5, 1.5, 4.0\]"):
        prepare(toy_dataset, store.path, replace(PLAN, spacing_mm=(2.0, 1.5, 4.0)), workers=1)
    assert files_of(store.path) == before


def test_an_edited_plan_in_the_store_is_noticed(store, toy_dataset):
    write_plan(store.path / "plan.yaml", replace(PLAN, orientation="LPS"))
    for attempt in (lambda: Store(store.path), lambda: prepare(toy_dataset, store.path, workers=1)):
        with pytest.raises(DataError, match="orientation LPS, but the store was prepared with another plan: RAS"):
            attempt()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": {"liver": 1}}, "has labels"),
        ({"ignore": None}, "has ignore 9"),
        (
            {"modalities": ("CT", "PET"), "normalisation": PLAN.normalisation * 2},
            "has modalities CT, the plan",
        ),
    ],
)
def test_a_plan_for_another_dataset_is_refused(change, sentence, toy_dataset, tmp_path):
    with pytest.raises(DataError, match=sentence):
        prepare(toy_dataset, tmp_path / "store", replace(PLAN, **change), workers=1)
    assert not (tmp_path / "store").exists()


def test_without_a_plan_one_is_made_and_kept(toy_dataset, tmp_path):
    made = prepare(toy_dataset, tmp_path / "store", workers=1)
    plan = read_plan(tmp_path / "store" / "plan.yaml")
    assert plan == made.plan
    assert plan.normalisation[0].scheme == "ct"
    assert "Hounsfield" in plan.reasons["normalisation"]


def test_bad_cases_are_all_named_and_good_ones_kept(toy_dataset, tmp_path):
    rewrite(toy_dataset / "labelsTr" / "toy_0.nii.gz", lambda array: np.where(array == 5, 77, array).astype(np.uint8))
    (toy_dataset / "imagesTr" / "toy_2.nii.gz").write_bytes(b"rubbish")
    out = tmp_path / "store"
    with pytest.raises(DataError) as caught:
        prepare(toy_dataset, out, PLAN, workers=1)
    assert "toy_0" in str(caught.value)
    assert "77" in str(caught.value)
    assert "toy_2" in str(caught.value)
    assert sorted(folder.name.split(".")[0] for folder in (out / "cases").iterdir()) == ["toy_1", "toy_3"]
    with pytest.raises(DataError, match="preparation has not finished"):
        Store(out)


def test_a_failed_rerun_leaves_the_store_as_it_was(store, toy_dataset):
    rewrite(toy_dataset / "imagesTr" / "toy_0.nii.gz", lambda array: array + 1)
    (toy_dataset / "imagesTr" / "toy_2.nii.gz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="toy_2"):
        prepare(toy_dataset, store.path, workers=1)
    again = Store(store.path)
    assert again.ids == store.ids
    assert all(again.image(case).shape for case in again.ids)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "is not a store"), ("{", "cannot be read"), ("[]", "schema"), ('{"schema": 9}', "schema")],
)
def test_what_is_not_a_store(text, sentence, tmp_path):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        Store(tmp_path)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("image.b2nd", None, "holds no image"),
        ("image.b2nd", b"rubbish", "is damaged"),
        ("labels.b2nd", None, "holds no labels"),
        ("foreground.npy", None, "is damaged"),
        ("foreground.npy", b"rubbish", "is damaged"),
        ("info.json", b"{}", "cannot be read"),
    ],
)
def test_a_damaged_case_says_what_to_do(store, toy_dataset, name, content, sentence):
    file = store.folder("toy_0") / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        getattr(store, name.split(".")[0])("toy_0")
    shutil.rmtree(store.folder("toy_0"))
    assert prepare(toy_dataset, store.path, workers=1).image("toy_0")[:].any()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda index: index["cases"].update({"../../toy_9": "toy_0"}), "calls a case '../../toy_9'"),
        (lambda index: index["cases"].update({"toy_9": "/etc"}), "calls a case '/etc'"),
        (lambda index: index["cases"].update({"..": "toy_0"}), r"calls a case '\.\.'"),
        (lambda index: index.update(cases=["toy_0"]), "lacks its cases"),
        (lambda index: index.pop("grid"), "lacks its grid"),
    ],
)
def test_an_index_names_nothing_outside_of_its_store(store, spoil, sentence):
    index = json.loads((store.path / "index.json").read_text())
    spoil(index)
    (store.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=sentence):
        Store(store.path)


def test_a_recipe_in_the_place_of_numbers_is_not_run(tmp_path):
    blosc2 = pytest.importorskip("blosc2")
    numbers = blosc2.asarray(np.zeros((8, 8, 8), np.int16), urlpath=str(tmp_path / "numbers.b2nd"), mode="w")
    blosc2.lazyexpr("numbers + 1", {"numbers": numbers}).save(urlpath=str(tmp_path / "labels.b2nd"))
    with pytest.raises(DataError, match=r"labels\.b2nd is damaged \(it holds a recipe and no numbers\)"):
        open_array(tmp_path, "labels")
    assert open_array(tmp_path, "numbers").shape == (8, 8, 8)


def test_plain_files_where_blosc2_is_missing(toy_dataset, tmp_path, monkeypatch, store):
    labels, image = store.labels("toy_1")[:], store.image("toy_1")[:]
    monkeypatch.setattr(arrays, "blosc2", None)
    plain = prepare(toy_dataset, tmp_path / "plain", PLAN, workers=1)
    np.testing.assert_array_equal(plain.labels("toy_1")[:], labels)
    np.testing.assert_allclose(plain.image("toy_1")[:], image, rtol=3e-4, atol=1e-6)
    assert isinstance(plain.image("toy_1"), np.memmap)
    with pytest.raises(DataError, match="needs the package blosc2"):
        store.image("toy_1")


def test_chunks_are_patches(tmp_path):
    write_array(tmp_path, "image", np.zeros((2, 40, 50, 8), dtype=np.float32), patch=(16, 64, 16))
    opened = open_array(tmp_path, "image")
    assert opened.chunks == (2, 16, 50, 8)
    assert opened.blocks == (1, 16, 25, 8)


def test_a_place_that_cannot_be_a_store(toy_dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        prepare(toy_dataset, tmp_path / "file" / "store", PLAN, workers=1)


def test_a_finished_store_is_read_without_writing(store, toy_dataset, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    for name in ("replace", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    assert prepare(toy_dataset, store.path, workers=1).ids == store.ids
    rewrite(toy_dataset / "imagesTr" / "toy_0.nii.gz", lambda array: array + 1)
    with pytest.raises(DataError, match="Read-only file system"):
        prepare(toy_dataset, store.path, workers=1)


def no_space(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write_array", "np.save"])
def test_a_full_disk_names_the_case_and_leaves_nothing_half_written(step, toy_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(f"medseg.store.one_case.{step}", no_space)
    with pytest.raises(MachineError, match=r"toy_0\.[0-9a-f]+ cannot be written \(No space left on device\)"):
        prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)
    assert list((tmp_path / "store" / "cases").iterdir()) == []
    monkeypatch.undo()
    assert len(prepare(toy_dataset, tmp_path / "store", workers=1).ids) == 4


FULL = """
import resource, signal, sys
from pathlib import Path
from medseg.store.prepare import prepare
from medseg.plan.plan import read_plan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
prepare(Path(sys.argv[1]), Path(sys.argv[2]), read_plan(Path(sys.argv[3])), workers=1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits on the size of files are POSIX")
def test_files_that_cannot_grow_are_never_taken_for_whole(toy_dataset, tmp_path):
    """What a full disk does below Python, where blosc2 writes."""
    write_plan(tmp_path / "plan.yaml", PLAN)
    arguments = [str(toy_dataset), str(tmp_path / "store"), str(tmp_path / "plan.yaml")]
    done = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, check=False)
    assert "MachineError" in done.stderr
    assert "cases/toy_0." in done.stderr
    assert list((tmp_path / "store" / "cases").iterdir()) == []


def test_a_source_that_changes_while_it_is_read(toy_dataset, tmp_path, monkeypatch):
    def touching(files, modalities):
        read = read_image(files, modalities)
        os.utime(files[0], ns=(1, time.time_ns()))
        return read

    monkeypatch.setattr(one_case, "read_image", touching)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)


def test_a_source_that_is_gone(toy_dataset, tmp_path, monkeypatch):
    listed = read_dataset(toy_dataset)
    (toy_dataset / "labelsTr" / "toy_3.nii.gz").unlink()
    monkeypatch.setattr("medseg.store.prepare.read_dataset", lambda _: listed)
    with pytest.raises(DataError, match=r"toy_3\.nii\.gz does not exist"):
        prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)


CRASH = """
import sys
from pathlib import Path
from medseg.store.prepare import prepare
if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


def folders_of(cases):
    return [folder for folder in cases.iterdir() if not folder.name.startswith(".")] if cases.is_dir() else []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_at_any_moment_costs_only_what_was_in_flight(workers, toy_dataset, tmp_path, store):
    out = tmp_path / "killed"
    out.mkdir()
    write_plan(out / "plan.yaml", PLAN)
    script = tmp_path / "script.py"
    script.write_text(CRASH)
    for enough in (1, 2, 3):
        process = subprocess.Popen([sys.executable, str(script), str(toy_dataset), str(out), str(workers)])
        while len(folders_of(out / "cases")) < enough and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        whole = {name: at for name, at in files_of(out / "cases").items() if not name.startswith(".")}
        for folder in folders_of(out / "cases"):
            expected = store.labels(folder.name.rsplit(".", 1)[0])[:]
            np.testing.assert_array_equal(open_array(folder, "labels")[:], expected)
    finished = prepare(toy_dataset, out, workers=1)
    after = files_of(out / "cases")
    assert {name: after[name] for name in whole} == whole
    assert finished.ids == store.ids


@pytest.mark.slow
def test_two_processes_on_one_store_do_not_harm_each_other(toy_dataset, tmp_path, store):
    out = tmp_path / "shared"
    script = tmp_path / "script.py"
    script.write_text(CRASH)
    out.mkdir()
    write_plan(out / "plan.yaml", PLAN)
    command = [sys.executable, str(script), str(toy_dataset), str(out), "1"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    shared = Store(out)
    for case in store.ids:
        np.testing.assert_array_equal(shared.image(case)[:], store.image(case)[:])
    assert sorted(path.name for path in (out / "cases").iterdir()) == sorted(
        path.name for path in (store.path / "cases").iterdir()
    )


def test_the_same_case_finished_twice_is_kept_once(store, toy_dataset, tmp_path, monkeypatch):
    out = tmp_path / "shared"
    folder, real = store.folder("toy_0"), one_case.write_array

    def overtaken(*arguments, **options):
        if not (out / "cases" / folder.name).exists():
            shutil.copytree(folder, out / "cases" / folder.name)
        return real(*arguments, **options)

    monkeypatch.setattr(one_case, "write_array", overtaken)
    prepare(toy_dataset, out, PLAN, workers=1, cases=["toy_0"])
    assert [path.name for path in (out / "cases").iterdir()] == [folder.name]
    assert files_of(out / "cases" / folder.name) == files_of(folder)


def test_a_case_that_vanished_meanwhile_is_told(toy_dataset, tmp_path, monkeypatch):
    real = one_case.prepare_case

    def vanishing(task):
        prepared = real(task)
        if task.case.id == "toy_2":
            shutil.rmtree(task.store / "cases" / prepared.folder)
        return prepared

    monkeypatch.setattr("medseg.store.prepare.prepare_case", vanishing)
    with pytest.raises(MachineError, match="lost toy_2: another process works on it"):
        prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)


def test_killed_before_the_index_was_written(store, toy_dataset):
    (store.path / "index.json").unlink()
    before = files_of(store.path / "cases")
    assert prepare(toy_dataset, store.path, workers=1).ids == store.ids
    assert files_of(store.path / "cases") == before


def test_an_index_that_cannot_be_written(toy_dataset, tmp_path, monkeypatch):
    real = os.replace
    refused = "index.json"
    monkeypatch.setattr(os, "replace", lambda a, b: no_space() if Path(b).name == refused else real(a, b))
    with pytest.raises(MachineError, match="No space left"):
        prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["cases", "plan.yaml"]


def test_moved_files_that_cannot_be_noted(store, toy_dataset, tmp_path, monkeypatch):
    moved = toy_dataset.rename(tmp_path / "elsewhere")
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: no_space() if Path(b).name == "info.json" else real(a, b))
    with pytest.raises(MachineError, match=r"toy_0\..*info\.json cannot be written"):
        prepare(moved, store.path, workers=1)


def test_a_case_whose_note_is_damaged_says_so(store, toy_dataset):
    (store.folder("toy_1") / "info.json").write_text("{}")
    with pytest.raises(DataError, match=r"info\.json cannot be read .* Delete"):
        prepare(toy_dataset, store.path, workers=1)


def test_a_disk_without_room_is_called_full(toy_dataset, tmp_path, monkeypatch):
    def unexplained(*_, **__):
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr("medseg.store.arrays.blosc2.asarray", unexplained)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(MachineError, match=r"\(the disk is full\)"):
        prepare(toy_dataset, tmp_path / "store", PLAN, workers=1)


def test_workers_are_chosen_by_what_a_case_needs(toy_dataset, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("medseg.store.prepare.default_workers", lambda count: asked.append(count) or 1)
    (toy_dataset / "imagesTr" / "toy_3.nii.gz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="toy_3"):
        prepare(toy_dataset, tmp_path / "store", PLAN)
    voxels = 24 * 22 * 12
    assert 16 * voxels < asked[0] < 100 * voxels


@pytest.mark.slow
def test_workers_give_what_one_process_gives(toy_dataset, tmp_path, store):
    parallel = prepare(toy_dataset, tmp_path / "parallel", PLAN, workers=2)
    assert not multiprocessing.active_children()
    for case in store.ids:
        assert parallel.folder(case).name == store.folder(case).name
        np.testing.assert_array_equal(parallel.image(case)[:], store.image(case)[:])
