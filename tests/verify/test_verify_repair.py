"""A repaired copy: it means what the original means, refers to itself, and is looked at before it is called so."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.foreign import sitk
from support.odd_files import odd_nifti
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.cli import main
from medseg.errors import DataError
from medseg.space.nifti import read_labels
from medseg.space.reading import read_labels as read_any_labels
from medseg.verify import repair as repairing
from medseg.verify.repair import Repaired, repair
from medseg.verify.verify import verify

IMAGE, LABEL = "imagesTr/toy_0.nii.gz", "labelsTr/toy_0.nii.gz"


def say(root: Path, **changes: object) -> None:
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))


def shifted(case: int, mm: float) -> np.ndarray:
    affine = oblique_affine(case)
    affine[0, 3] += mm
    return affine


def spoil(root: Path) -> None:
    """Case 0: floats and rounding; 1: rounding; 2: floats."""
    write_nifti(root / LABEL, toy_case(0)[1].astype(np.float32) + np.float32(0.001), shifted(0, 0.06))
    write_nifti(root / "labelsTr/toy_1.nii.gz", toy_case(1)[1], oblique_affine(1) + 0.001)
    write_nifti(root / "labelsTr/toy_2.nii.gz", toy_case(2)[1].astype(np.float64), oblique_affine(2))


def mended(root: Path, out: Path) -> Repaired:
    return repair(verify(root, workers=1), out)


def test_a_repaired_copy_has_no_problem_and_the_original_is_untouched(toy_dataset, tmp_path):
    spoil(toy_dataset)
    (toy_dataset / "._ghost").write_bytes(b"x")
    before = {path: path.read_bytes() for path in toy_dataset.rglob("*") if path.is_file()}
    report = verify(toy_dataset, workers=1)
    assert not report.ok
    assert "4 can be repaired into a copy with --fix OUT" in report.verdict
    made = repair(report, tmp_path / "mended")
    assert (made.left, made.skipped) == ((), ())
    assert {str(file): what for file, what in made.done.items()} == {
        LABEL: "affine copied from the image, labels written as uint8",
        "labelsTr/toy_1.nii.gz": "affine copied from the image",
        "labelsTr/toy_2.nii.gz": "labels written as uint8",
    }
    assert verify(tmp_path / "mended", workers=1).problems == ()
    assert {path: path.read_bytes() for path in toy_dataset.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mended", "toy"]
    for index in range(3):
        labels = nib.load(tmp_path / f"mended/labelsTr/toy_{index}.nii.gz")
        assert labels.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(labels.dataobj), toy_case(index)[1])
        np.testing.assert_allclose(labels.get_sform(), oblique_affine(index), atol=1e-5)
    assert (tmp_path / "mended" / IMAGE).read_bytes() == (toy_dataset / IMAGE).read_bytes()
    assert not (tmp_path / "mended/._ghost").exists()


def flipped(root: Path) -> None:
    """The voxels lie rightly in space, stored in LPS, as floats."""
    label = nib.load(root / LABEL)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(label.affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
    )
    turned = label.as_reoriented(turn)
    write_nifti(root / LABEL, turned.get_fdata(), turned.affine)


UNSOUND = {
    "another direction": flipped,
    "another shape": lambda r: write_nifti(r / LABEL, toy_case(0)[1][2:].astype(np.float64), oblique_affine(0)),
    "half a voxel away": lambda r: write_nifti(r / LABEL, toy_case(0)[1].astype(np.float64), shifted(0, 0.75)),
    "another place": lambda r: write_nifti(r / LABEL, toy_case(0)[1].astype(np.float64), shifted(0, 40)),
    "values that nobody names": lambda r: write_nifti(
        r / LABEL, toy_case(0)[1].astype(np.float64) * 3, shifted(0, 0.06)
    ),
    "an image with NaN": lambda r: odd_nifti(r / IMAGE, np.full((24, 20, 12), np.nan, np.float32), oblique_affine(0)),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_a_file_with_a_fault_that_cannot_be_mended_is_copied_as_it_is(name, toy_dataset, tmp_path):
    UNSOUND[name](toy_dataset)
    report = verify(toy_dataset, workers=1)
    assert report.repairable == ()
    made = repair(report, tmp_path / "mended")
    assert made.done == {}
    assert made.left == report.problems
    assert (tmp_path / "mended" / LABEL).read_bytes() == (toy_dataset / LABEL).read_bytes()
    assert verify(tmp_path / "mended", workers=1).problems  # as unsound as before, and says so


VALUES = {
    "an ignored -1": ({"liver": 1, "spleen": 5, "ignore": -1}, 9, -1, np.int16),
    "beyond 2^24": ({"liver": 1, "spleen": 5, "ignore": 16777217}, 9, 16777217, np.uint32),
    "beyond 32 bits": ({"liver": 2**40 + 1, "spleen": 5, "ignore": 9}, 1, 2**40 + 1, np.int64),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_repair_keeps_every_value(name, toy_dataset, tmp_path):
    table, old, new, kind = VALUES[name]
    say(toy_dataset, labels={"background": 0, **table})
    for case in range(4):
        voxels = np.where(toy_case(case)[1] == old, float(new), toy_case(case)[1])
        voxels[:1] = new
        write_nifti(toy_dataset / f"labelsTr/toy_{case}.nii.gz", voxels.astype(np.float64), oblique_affine(case))
    before = [read_labels(toy_dataset / f"labelsTr/toy_{case}.nii.gz").array for case in range(4)]
    assert len(mended(toy_dataset, tmp_path / "mended").done) == 4
    for case in range(4):
        file = tmp_path / f"mended/labelsTr/toy_{case}.nii.gz"
        assert nib.load(file).get_data_dtype() == kind
        np.testing.assert_array_equal(read_labels(file).array, before[case])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("unit", "length_mm"), [(1, 1000.0), (2, 1.0), (3, 0.001)])
def test_a_repair_keeps_geometry_unit_and_remarks(version, unit, length_mm, toy_dataset, tmp_path):
    affine = np.diag([1 / length_mm] * 3 + [1.0])
    kept = {"xyzt_units": unit, "descrip": b"drawn by hand", "intent_code": 1002, "cal_max": 7}
    for case in range(4):
        own = affine @ oblique_affine(case)
        odd_nifti(toy_dataset / f"imagesTr/toy_{case}.nii.gz", toy_case(case)[0], own, version=version, xyzt_units=unit)
        voxels = toy_case(case)[1].astype(np.float32)
        moved = affine @ shifted(case, 0.06 * (case == 1))
        odd_nifti(toy_dataset / f"labelsTr/toy_{case}.nii.gz", voxels, moved, version=version, forms=(0, 2), **kept)
    say(toy_dataset, test=[])
    made = mended(toy_dataset, tmp_path / "mended")
    assert len(made.done) == 4
    assert verify(tmp_path / "mended", workers=1).ok
    numbers = {"datatype", "bitpix", "scl_slope", "scl_inter"}
    placed = {"srow_x", "srow_y", "srow_z", "qform_code", "pixdim"} | {f"quatern_{axis}" for axis in "bcd"}
    for case in range(4):
        name = f"labelsTr/toy_{case}.nii.gz"
        old, new = (nib.load(root / name).header for root in (toy_dataset, tmp_path / "mended"))
        changed = numbers | (placed | {f"qoffset_{axis}" for axis in "xyz"} if case == 1 else set())
        for field in set(old.keys()) - changed:
            np.testing.assert_array_equal(new[field], old[field], err_msg=field)
        assert int(new["sform_code"]) == 2


def test_a_scaled_label_is_stored_as_what_it_means(toy_dataset, tmp_path):
    stored = np.rint(toy_case(0)[1] * (65535 / 9)).astype(np.uint16)
    odd_nifti(toy_dataset / LABEL, stored, oblique_affine(0), slope=9 / 65535)
    made = mended(toy_dataset, tmp_path / "mended")
    assert list(made.done.values()) == ["labels written as uint8"]
    assert verify(tmp_path / "mended", workers=1).problems == ()


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_the_copy_of_absolute_paths_refers_to_itself(place, toy_dataset, tmp_path):
    spoil(toy_dataset)
    root = toy_dataset
    if place == "outside":
        root = tmp_path / "elsewhere" / "described"
        root.mkdir(parents=True)
        shutil.copy(toy_dataset / "dataset.json", root)
    training = [
        {part[:-1]: str(toy_dataset / f"{part}Tr/toy_{n}.nii.gz") for part in ("images", "labels")} for n in range(4)
    ]
    say(root, training=training, test=[str(toy_dataset / "imagesTs/toy_4.nii.gz")])
    assert len(mended(root, tmp_path / "mended").done) == 3
    (toy_dataset / "imagesTr").rename(tmp_path / "gone")
    assert verify(tmp_path / "mended", workers=1).problems == ()
    assert str(tmp_path) not in (tmp_path / "mended/dataset.json").read_text(encoding="utf-8")


def test_a_folder_outside_is_copied_into_the_copy(toy_dataset, tmp_path):
    spoil(toy_dataset)
    (toy_dataset / "labelsTr").rename(tmp_path / "masks")
    content = {"labels": {"liver": 1, "spleen": 5, "ignore": 9}, "modality": ["CT"], "image_folder": "imagesTr"}
    (toy_dataset / "dataset.json").write_text(json.dumps({**content, "label_folder": "../masks"}))
    assert len(mended(toy_dataset, tmp_path / "mended").done) == 3
    assert verify(tmp_path / "mended", workers=1).ok
    assert (tmp_path / "mended/outside/toy_0.nii.gz").is_file()


def test_links_are_followed_and_those_that_lead_nowhere_are_told(toy_dataset, tmp_path):
    spoil(toy_dataset)
    (toy_dataset / "labelsTr").rename(tmp_path / "elsewhere")
    (toy_dataset / "labelsTr").symlink_to(tmp_path / "elsewhere")
    (toy_dataset / "notes.txt").symlink_to("../nowhere/notes.txt")
    (toy_dataset / "again").symlink_to(toy_dataset)
    os.mkfifo(toy_dataset / "pipe")
    made = mended(toy_dataset, tmp_path / "mended")
    assert made.skipped == (
        "again (a link to a folder around it)",
        "notes.txt (a link that leads nowhere)",
        "pipe (neither a file nor a folder)",
    )
    assert len(made.done) == 3
    assert not (tmp_path / "mended/labelsTr").is_symlink()
    assert verify(tmp_path / "mended", workers=1).problems == ()
    np.testing.assert_allclose(nib.load(tmp_path / "elsewhere/toy_0.nii.gz").affine, shifted(0, 0.06), atol=1e-5)


def test_a_read_only_dataset_is_repaired_into_a_copy_that_can_be_written(toy_dataset, tmp_path):
    spoil(toy_dataset)
    everything = [toy_dataset, *toy_dataset.rglob("*")]
    for path in everything:
        path.chmod(0o444 if path.is_file() else 0o555)
    try:
        assert len(mended(toy_dataset, tmp_path / "mended").done) == 3
    finally:
        for path in everything:
            path.chmod(0o755)
    for path in (tmp_path / "mended").rglob("*"):
        assert path.stat().st_mode & 0o200
    assert not list(tmp_path.glob(".partial*"))


def test_a_repair_that_fails_leaves_the_file_as_it_was(toy_dataset, tmp_path, monkeypatch, capsys):
    spoil(toy_dataset)
    monkeypatch.setattr(
        repairing, "with_integers", lambda path, labels: odd_nifti(path, labels[::-1], oblique_affine(0))
    )
    assert main(["verify", str(toy_dataset), "--fix", str(tmp_path / "mended"), "--workers", "1"]) == 1
    told = capsys.readouterr().out
    assert "1 file repaired in it" in told
    assert "its repair failed: does not hold what was written to it" in told
    for file in (LABEL, "labelsTr/toy_2.nii.gz"):
        assert (tmp_path / "mended" / file).read_bytes() == (toy_dataset / file).read_bytes()


def test_what_cannot_be_repaired_is_copied_and_told(toy_dataset, tmp_path):
    spoil(toy_dataset)
    voxels = toy_case(3)[0].astype(np.float32)
    voxels[0] = np.nan
    write_nifti(toy_dataset / "imagesTr/toy_3.nii.gz", voxels, oblique_affine(3))
    made = mended(toy_dataset, tmp_path / "mended")
    assert [(problem.case, problem.kind) for problem in made.left] == [("toy_3", "non-finite")]
    said = "\n".join(made.sentences(tmp_path / "mended"))
    assert "3 files repaired in it" in said
    assert "toy_3.nii.gz holds" in said


NRRD = """NRRD0005
# as somebody wrote it
type: float
dimension: 3
space: right-anterior-superior
sizes: 24 20 12
space directions: (1.5,0,0) (0,2,0) (0,0,3)
kinds: domain domain domain
endian: {order}
encoding: {packing}
space units: "mm" "mm" "mm"
space origin: (10,20,30)
measurement frame: (1,0,0) (0,1,0) (0,0,1)
Segment0_Name:=type: liver

"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = {order}
CompressedData = {packing}
CompressedDataSize = {size}
TransformMatrix = 0 1 0 1 0 0 0 0 -1
Offset = 1 2 3
AnatomicalOrientation = RAI
ElementSpacing = 1.5 2 3
DimSize = 24 20 12
Name = My Scan
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""
PACKINGS = {"raw": bytes, "gzip": gzip.compress, "False": bytes, "True": zlib.compress}


@pytest.mark.skipif(sitk is None, reason="SimpleITK is not installed: pip install 'medseg[formats]'")
@pytest.mark.parametrize(
    ("ending", "packing", "order"),
    [("nrrd", "raw", "little"), ("nrrd", "gzip", "big"), ("mha", "False", "True"), ("mha", "True", "False")],
)
def test_labels_of_other_formats_become_integers_under_the_header_that_they_had(ending, packing, order, tmp_path):
    image, labels = toy_case(0)
    header = NRRD if ending == "nrrd" else META
    for folder, voxels in (("images", image), ("labels", labels)):
        for case in "ab":
            numbers = voxels + (ord(case) - ord("a") if folder == "images" else 0)
            big = order in ("big", "True")
            packed = PACKINGS[packing](numbers.astype(">f4" if big else "<f4").tobytes(order="F"))
            told = header.format(order=order, packing=packing, size=len(packed))
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / folder / f"{case}.{ending}").write_bytes(told.encode() + packed)
    content = {"labels": {"liver": 1, "spleen": 5}, "modality": ["CT"]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    made = mended(tmp_path / "data", tmp_path / "mended")
    assert set(made.done.values()) == {"labels written as uint8"}
    assert (len(made.done), made.left) == (2, ())
    before, after = (read_any_labels(tmp_path / root / "labels" / f"a.{ending}") for root in ("data", "mended"))
    np.testing.assert_array_equal(after.array, labels[None])
    np.testing.assert_array_equal(after.affine, before.affine)
    lines = (tmp_path / "mended" / "labels" / f"a.{ending}").read_bytes().split(b"\n")
    kept = [line for line in header.splitlines() if line and "{" not in line and "float" not in line.lower()]
    assert [line for line in kept if line.encode() not in lines] == []
    assert sitk.ReadImage(str(tmp_path / "mended" / "labels" / f"b.{ending}")).GetPixelID() == sitk.sitkUInt8


def test_a_copy_is_never_written_over_anything(toy_dataset, tmp_path):
    spoil(toy_dataset)
    report = verify(toy_dataset, workers=1)
    with pytest.raises(DataError, match="not empty"):
        repair(report, toy_dataset)
    with pytest.raises(DataError, match="lies within"):
        repair(report, toy_dataset / "mended")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        repair(report, tmp_path / "file/mended")
    assert not (tmp_path / "mended").exists()
