"""What a hostile user may bring to verify, plan, prepare and fit: one sentence each, never a traceback."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.toys import oblique_affine, toy_case, write_nifti, write_toy_dataset

from medseg.cli import main
from medseg.errors import DataError
from medseg.patches.datamodule import VolumesDataModule
from medseg.store.store import Store

IMAGE, LABEL = "imagesTr/toy_0.nii.gz", "labelsTr/toy_0.nii.gz"


def put(root: Path, file: str, change, affine: np.ndarray | None = None, *, case: int = 0) -> None:
    """Write an image or a label of the toy dataset, changed."""
    voxels = toy_case(case)[file.startswith("labels")]
    write_nifti(root / file, change(voxels), oblique_affine(case) if affine is None else affine)


def put_all(root: Path, change) -> None:
    """Change every image and every label alike."""
    for case in range(4):
        for part in ("images", "labels"):
            put(root, f"{part}Tr/toy_{case}.nii.gz", change, case=case)


def say(root: Path, **changes: object) -> None:
    """Change what the dataset.json says."""
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))


def header(root: Path, place: int, content: bytes) -> None:
    """Overwrite bytes of an image's header."""
    voxels = bytearray(gzip.decompress((root / IMAGE).read_bytes()))
    voxels[place : place + len(content)] = content
    (root / IMAGE).write_bytes(gzip.compress(bytes(voxels)))


def cut_off(root: Path, file: str, size: int) -> None:
    (root / file).write_bytes((root / file).read_bytes()[:size])


def as_nnunet(root: Path, **changes: object) -> None:
    """Lay the dataset out as nnU-Net's raw folders, with overlapping regions and an ignored value."""
    for path in sorted((root / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    shutil.rmtree(root / "imagesTs")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 5], "core": [5], "ignore": 9}}
    (root / "dataset.json").write_text(json.dumps(content | {"regions_class_order": [1, 5]} | changes))


def in_plain_folders(root: Path) -> None:
    (root / "dataset.json").write_text(json.dumps({"modality": ["CT"], "labels": {"liver": 1, "spleen": 5, "x": 9}}))


def outside(root: Path) -> None:
    entry = {"images": ["imagesTr/toy_0_0000.nii.gz"], "label": LABEL}
    as_nnunet(root, dataset={"../../evil": entry})


def beside(root: Path) -> None:
    in_plain_folders(root)
    put(root, "imagesTr/toy_0.nii", np.array)


def beside_channel(root: Path) -> None:
    as_nnunet(root)
    put(root, "imagesTr/toy_0_0000.nii", np.array)


def loop(root: Path) -> None:
    (root / IMAGE).unlink()
    (root / IMAGE).symlink_to(root / IMAGE)


def mark(value: object):
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.asarray(value).dtype)
        voxels[0, 0, 0] = value
        return voxels

    return change


def colours(voxels: np.ndarray) -> np.ndarray:
    return np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


REFUSED = {
    "a truncated image": (lambda root: cut_off(root, IMAGE, 3000), "toy_0.nii.gz is truncated"),
    "a label without its checksum": (lambda root: cut_off(root, LABEL, -20), "toy_0.nii.gz is truncated"),
    "an empty file": (lambda root: cut_off(root, IMAGE, 0), "is not a readable NIfTI file"),
    "a text": (lambda root: (root / IMAGE).write_text("x"), "is not a readable NIfTI file"),
    "a link to itself": (loop, "toy_0.nii.gz is missing"),
    "an empty folder": (lambda root: shutil.rmtree(root) or root.mkdir(), "holds no dataset.json"),
    "half a dataset.json": (lambda root: cut_off(root, "dataset.json", 40), "dataset.json is not valid JSON"),
    "a list for a dataset.json": (lambda root: (root / "dataset.json").write_text("[1]"), "expected an object"),
    "labels that are a word": (lambda root: say(root, labels="liver"), 'has no "labels"'),
    "a label of value 1.5": (lambda root: say(root, labels={"liver": 1.5}), "expected a whole number"),
    "cases that are numbers": (lambda root: say(root, training=[1]), 'has the entry 1 under "training"'),
    "no list of cases": (lambda root: say(root, training=None), 'has a "training" that is'),
    "no names of channels": (lambda root: say(root, modality=3), "names no channels"),
    "a case listed twice": (
        lambda root: say(root, training=[{"image": IMAGE, "label": LABEL}] * 2),
        "lists case 'toy_0' more than once",
    ),
    "a case that leads out of the store": (outside, "'../../evil', which cannot name a file"),
    "a missing label": (lambda root: (root / LABEL).unlink(), "toy_0.nii.gz is missing"),
    "a missing image": (lambda root: (root / IMAGE).unlink(), "toy_0.nii.gz is missing"),
    "nii beside nii.gz": (beside, "toy_0.nii and toy_0.nii.gz could both be case toy_0"),
    "nii beside nii.gz, as nnU-Net": (beside_channel, "toy_0_0000.nii and toy_0_0000.nii.gz could both be"),
    "labels between numbers": (lambda root: put(root, LABEL, lambda v: v + 0.3), "not whole numbers"),
    "a label of NaN": (lambda root: put(root, LABEL, mark(np.float32(np.nan))), "not whole numbers"),
    "an undeclared value": (lambda root: put(root, LABEL, mark(np.uint8(77))), "no label names: 77"),
    "a negative value": (lambda root: put(root, LABEL, mark(np.int16(-1))), "no label names: -1"),
    "a huge value": (lambda root: put(root, LABEL, mark(np.int32(2**31 - 1))), "no label names: 2147483647"),
    "a label of two channels": (lambda root: put(root, LABEL, lambda v: np.stack([v, v], -1)), "has 2 channels"),
    "an image of two channels": (lambda root: put(root, IMAGE, lambda v: np.stack([v, v], -1)), "has 2 channels"),
    "a label on another grid": (lambda root: put(root, LABEL, lambda v: v[1:]), "has shape (23, 20, 12)"),
    "an image that is mirrored": (
        lambda root: put(root, IMAGE, np.array, oblique_affine(0) @ np.diag([-1, 1, 1, 1])),
        "direction RAS, expected LAS",
    ),
    "a photograph": (lambda root: put(root, IMAGE, lambda v: v[:, :, 5]), "labelsTr/toy_0.nii.gz"),
    "colours": (lambda root: put(root, IMAGE, colours), "holds colours"),
    "colours for labels": (lambda root: put(root, LABEL, colours), "holds colours"),
    "complex numbers": (lambda root: put(root, IMAGE, lambda v: v.astype(np.complex64)), "holds complex numbers"),
    "NaN": (lambda root: put(root, IMAGE, mark(np.float32(np.nan))), "holds 1 voxels that are NaN"),
    "numbers beyond float32": (lambda root: put(root, IMAGE, mark(1e300)), "NaN or infinite"),
    "a singular affine": (lambda root: header(root, 280, bytes(48)), "has a singular affine"),
    "an affine of NaN": (lambda root: header(root, 280, np.float32(np.nan).tobytes()), "has a singular affine"),
    "an absurd size": (lambda root: header(root, 42, np.int16([30_000] * 3).tobytes()), "toy_0"),
    "a negative size": (lambda root: header(root, 42, np.int16([-3]).tobytes()), "has shape (-3, 20, 12)"),
}


def told_in_one_sentence(words: list[str], capsys, expected: str, status: int = 1) -> None:
    capsys.readouterr()
    assert main(words) == status
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith("medseg: ")
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip().endswith(".")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named(name, tmp_path, capsys):
    damage, expected = REFUSED[name]
    folder = tmp_path / "mit Umläuten und Raum"
    root = write_toy_dataset(folder)
    damage(root)
    before = sorted(tmp_path.rglob("*"))
    store, plan = tmp_path / "store", tmp_path / "plan.yaml"
    told_in_one_sentence(["plan", str(root), "--out", str(plan), "--workers", "1"], capsys, expected)
    told_in_one_sentence(["prepare", str(root), "--out", str(store), "--workers", "1"], capsys, expected)
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["verify", str(root), "--workers", "1"]) == 1


def consecutive_no_more(root: Path) -> None:
    for case in range(4):
        put(root, f"labelsTr/toy_{case}.nii.gz", lambda v: np.where(v == 1, 17, v), case=case)
    say(root, labels={"background": 0, "liver": 17, "spleen": 5, "ignore": 9})


def with_spaces(root: Path) -> None:
    for part in ("images", "labels"):
        (root / f"{part}Tr" / "toy_0.nii.gz").rename(root / f"{part}Tr" / "Fäll ü 0.nii.gz")
    entries = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["training"]
    entries[0] = {part: f"{part}sTr/Fäll ü 0.nii.gz" for part in ("image", "label")}
    say(root, training=entries)


def half_lps(root: Path) -> None:
    for file in (IMAGE, LABEL):
        put(root, file, np.array, np.diag([-1.5, -1.5, 4.0, 1.0]))


TAKEN = {
    "labels of float type": lambda root: put(root, LABEL, lambda v: v.astype(np.float64)),
    "values 0, 5 and 17": consecutive_no_more,
    "names with spaces and umlauts": with_spaces,
    "one case in another orientation": half_lps,
    "regions and an ignored value": as_nnunet,
    "plain folders": in_plain_folders,
    "volumes smaller than a patch": lambda root: put_all(root, lambda v: v[8:12, 8:12, 4:7]),
    "two slices": lambda root: put_all(root, lambda v: v[:, :, 5:7]),
    "one slice": lambda root: put_all(root, lambda v: v[:, :, 5:6]),
    "uint16": lambda root: put(root, IMAGE, lambda v: (v + 300).clip(0).astype(np.uint16)),
    "float64": lambda root: put(root, IMAGE, lambda v: v.astype(np.float64)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_can_be_used_is(name, tmp_path, capsys):
    root = write_toy_dataset(tmp_path / "mit Umläuten und Raum")
    TAKEN[name](root)
    assert main(["verify", str(root), "--workers", "1"]) in (0, 1)  # an organ that is never seen is a problem
    assert main(["prepare", str(root), "--out", str(tmp_path / "store"), "--workers", "1"]) == 0
    assert len(Store(tmp_path / "store").ids) == 4
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def store(toy_dataset, tmp_path):
    assert main(["prepare", str(toy_dataset), "--out", str(tmp_path / "store"), "--workers", "1"]) == 0
    return tmp_path / "store"


def other_spacing(text: str) -> str:
    return re.sub(r"spacing_mm: .*", "spacing_mm: [3.0, 3.0, 4.0]", text)


def test_a_store_and_another_plan(store, toy_dataset, tmp_path, capsys):
    text = (store / "plan.yaml").read_text(encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(other_spacing(text))
    again = ["prepare", str(toy_dataset), "--out", str(store), "--workers", "1"]
    told_in_one_sentence([*again, "--plan", str(tmp_path / "plan.yaml")], capsys, "prepared with another plan")
    (tmp_path / "plan.yaml").write_text("spacing_mm: [")
    told_in_one_sentence([*again, "--plan", str(tmp_path / "plan.yaml")], capsys, "plan.yaml is not YAML")
    description = str(toy_dataset / "dataset.json")
    told_in_one_sentence([*again, "--plan", description], capsys, "dataset.json is not a usable plan")
    for edge, words in (("0.001", "would have 3.6e+04 x"), ("9999", "would have 1 x 1 x 1 voxels")):
        (tmp_path / "plan.yaml").write_text(re.sub(r"spacing_mm: .*", f"spacing_mm: [{edge}, {edge}, {edge}]", text))
        absurd = ["prepare", str(toy_dataset), "--out", str(tmp_path / "other"), "--workers", "1"]
        assert main([*absurd, "--plan", str(tmp_path / "plan.yaml")]) == 1
        assert words in capsys.readouterr().err
        shutil.rmtree(tmp_path / "other")
    (store / "plan.yaml").write_text(other_spacing(text))
    with pytest.raises(DataError, match="Undo the edit"):
        VolumesDataModule(store, folds=2).cases  # noqa: B018  # it is read when asked for
    (store / "plan.yaml").write_text(text)
    assert main(again) == 0


@pytest.mark.parametrize("file", ["dataset.json", LABEL, "notes.txt"])
@pytest.mark.parametrize("words", [["plan", "--out"], ["verify", "--json"]], ids=lambda words: words[0])
def test_nothing_of_somebody_elses_is_overwritten(words, file, toy_dataset, capsys):
    (toy_dataset / "notes.txt").write_text("mine")
    before = (toy_dataset / file).read_bytes()
    line = [words[0], str(toy_dataset), words[1], str(toy_dataset / file), "--workers", "1"]
    told_in_one_sentence(line, capsys, f"{file} is there already", status=2)
    assert (toy_dataset / file).read_bytes() == before


def test_an_image_is_no_dataset(toy_dataset, capsys):
    told_in_one_sentence(
        ["verify", str(toy_dataset / IMAGE)], capsys, "toy_0.nii.gz is no dataset.json. Name the folder"
    )


def test_a_store_where_none_can_be(toy_dataset, tmp_path, capsys):
    inside = ["prepare", str(toy_dataset), "--out", str(toy_dataset), "--workers", "1"]
    told_in_one_sentence(inside, capsys, "is a dataset, not a place for a store")
    (tmp_path / "work" / "cases" / "anna").mkdir(parents=True)
    used = ["prepare", str(toy_dataset), "--out", str(tmp_path / "work"), "--workers", "1"]
    told_in_one_sentence(used, capsys, "work holds other files, and is no store")
    assert (tmp_path / "work" / "cases" / "anna").is_dir()
    (tmp_path / "file").write_text("x")
    there = ["prepare", str(toy_dataset), "--out", str(tmp_path / "file"), "--workers", "1"]
    told_in_one_sentence(there, capsys, "file/plan.yaml cannot be written (File exists)")
    for wrong in (toy_dataset, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="is not a store"):
            VolumesDataModule(wrong)


@pytest.mark.parametrize("option", ["--memory=0", "--memory=-3", "--memory=nan", "--memory=inf", "--memory=much"])
def test_memory_that_no_accelerator_has(option, toy_dataset, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", str(toy_dataset), "--out", str(tmp_path / "plan.yaml"), option])
    assert end.value.code == 2
    assert "argument --memory: expected a number above 0, got" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plan"], ["prepare"]], ids=str)
def test_a_disk_that_is_read_only(command, toy_dataset, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.fsync", refuse)
    words = [*command, str(toy_dataset), "--out", str(tmp_path / "out"), "--workers", "1"]
    told_in_one_sentence(words, capsys, "cannot be written (Read-only file system)")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_files_that_changed_after_preparing_are_named(store, toy_dataset, caplog):
    put(toy_dataset, IMAGE, lambda v: v + 1)
    assert Store(store).edited() == ("toy_0",)
    assert VolumesDataModule(store, folds=2).cases.train
    assert "prepared before the files of toy_0 changed" in caplog.text
    shutil.rmtree(toy_dataset)
    assert Store(store).edited() == ()  # a store may travel without its sources


def test_a_label_without_its_last_bytes_is_found_by_verify_too(toy_dataset, capsys):
    cut_off(toy_dataset, LABEL, -4)  # all voxels are there, the length at the end is not
    assert nib.load(toy_dataset / LABEL).shape
    assert main(["verify", str(toy_dataset), "--workers", "1"]) == 1


@pytest.mark.parametrize("suffix", [b"\0" * 7, b"left over"], ids=["zeros", "text"])
def test_verify_and_prepare_agree_on_bytes_behind_the_stream(suffix, toy_dataset, tmp_path, capsys):
    (toy_dataset / IMAGE).write_bytes((toy_dataset / IMAGE).read_bytes() + suffix)
    found = {main([command, str(toy_dataset), *more, "--workers", "1"])
             for command, *more in (["verify"], ["prepare", "--out", str(tmp_path / "out")])}  # fmt: skip
    assert found == {0}, capsys.readouterr()
