"""One law over every odd file: what preparation refuses verify names, and what verify passes preparation takes."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.odd_files import odd_nifti
from support.toys import oblique_affine, toy_case, write_toy_dataset

from medseg.cli import main
from medseg.report.evaluate import evaluate

IMAGE, LABEL = "imagesTr/toy_0.nii.gz", "labelsTr/toy_0.nii.gz"
CASES = range(4)


def label(root: Path, change=np.array, *, case: int = 0, **header) -> None:
    """Store a label of the toy dataset anew."""
    name = f"labelsTr/toy_{case}.nii.gz"
    odd_nifti(root / name, change(toy_case(case)[1]), header.pop("affine", oblique_affine(case)), **header)


def image(root: Path, change=np.array, *, case: int = 0, **header) -> None:
    name = f"imagesTr/toy_{case}.nii.gz"
    odd_nifti(root / name, change(toy_case(case)[0]), header.pop("affine", oblique_affine(case)), **header)


def both(root: Path, *, case: int = 0, **header) -> None:
    image(root, case=case, **header)
    label(root, case=case, **header)


def say(root: Path, **changes: object) -> None:
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))


def labels_of_all(root: Path, change, table: dict[str, int], **header) -> None:
    for case in CASES:
        label(root, change, case=case, **header)
    say(root, labels={"background": 0, **table})


def far(value: int, kind: str):
    """The value in place of the liver's 1."""

    def change(root: Path) -> None:
        where = lambda v: np.where(v == 1, value, v.astype(object)).astype(kind)  # noqa: E731
        labels_of_all(root, where, {"liver": value, "spleen": 5, "ignore": 9})

    return change


def scaled(slope: float, inter: float, kind: str):
    """Numbers that mean the labels after scaling, as well as the type and the header's 24 bits allow."""
    return lambda root: label(root, lambda v: np.rint((v - inter) / slope).astype(kind), slope=slope, inter=inter)


def several_files(root: Path, *, modalities: int, files: int) -> None:
    training = []
    for case in CASES:
        images = [f"imagesTr/m{case}_{part}.nii.gz" for part in range(files)]
        for part, name in enumerate(images):
            one = toy_case(case)[0] + part
            stack = np.stack([one, one + 7], -1) if modalities > files and part == 0 else one
            odd_nifti(root / name, stack, oblique_affine(case))
        training.append({"image": images, "label": f"labelsTr/toy_{case}.nii.gz"})
    say(root, modality={str(n): f"T{n}" for n in range(modalities)}, training=training, test=[])


def flat(root: Path, pick, **header) -> None:
    """Every case as the one slice that is picked, which has an organ."""
    for case in CASES:
        image(root, pick, case=case, **header)
        label(root, pick, case=case, **header)
    say(root, test=[])


def stored_as(kind: str):
    return lambda root: label(root, lambda v: v.astype(kind))


def in_metres(root: Path, *cases: int, parts=(image, label)) -> None:
    for case in cases:
        for part in parts:
            part(root, case=case, xyzt_units=1)


def folder_for_file(root: Path, name: str) -> None:
    (root / name).unlink()
    (root / name).mkdir()


def dangling(root: Path, name: str) -> None:
    (root / name).unlink()
    (root / name).symlink_to(root / "nowhere.nii.gz")


def repacked(name: str, change):
    """The bytes of a file, unpacked, packed again in another way."""

    def spoil(root: Path) -> None:
        (root / name).write_bytes(change(gzip.decompress((root / name).read_bytes())))

    return spoil


def plain_and_cut(root: Path, name: str) -> None:
    """The file without its packing and without its last bytes."""
    (root / name.removesuffix(".gz")).write_bytes(gzip.decompress((root / name).read_bytes())[:-9])
    (root / name).unlink()
    file = root / "dataset.json"
    file.write_text(file.read_text().replace(name, name.removesuffix(".gz")))


def neighbours(root: Path, kind: str) -> None:
    """Two organs whose values are one to float64."""
    one, other = 2**53 + 1, 2**53
    change = lambda v: np.where(v == 1, one, np.where(v == 5, other, v.astype(np.int64))).astype(kind)  # noqa: E731
    labels_of_all(root, change, {"liver": one, "spleen": other, "ignore": 9})


WITHOUT_5 = {"background": 0, "whole": [1, 2], "core": [2]}


def nested(root: Path, far: int = 0) -> None:
    """Half of the liver is a core, and the spleen is the centre of both."""

    def change(labels):
        split = np.where((labels == 1) & (np.arange(labels.shape[0]) > 7)[:, None, None], 2, labels.astype(np.int64))
        return np.where((split > 0) & (split < 9), split + far, split)

    values = {"whole": [1, 2, 5], "core": [2, 5], "centre": [5]}
    labels_of_all(root, change, {name: [v + far for v in some] for name, some in values.items()} | {"ignore": 9})


TILT = np.array([[1.0, 0, 0, 0], [0, 1, 0.6, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
QUATERNION = {"quatern_b": 1.3, "quatern_c": 0, "quatern_d": 0}

TAKEN = {
    **{
        f"a label of {kind}": stored_as(kind)
        for kind in ("uint8", "int16", "int32", "float32", "int8", "uint16", "uint32", "int64", "uint64", "float64")
    },
    "scaled by whole numbers": scaled(1.0, -3.0, "int16"),
    "scaled by a half": scaled(0.5, 0.0, "uint8"),
    "scaled by 9 / 65535": scaled(9 / 65535, 0.0, "uint16"),
    "scaled by 9 / 255": scaled(9 / 255, 0.0, "uint8"),
    "scaled by 1 / 255": scaled(1 / 255, 0.0, "int16"),
    "scaled by less than nothing": scaled(-1.0, 9.0, "int16"),
    "a scale that is none": lambda r: both(r, slope=np.nan, inter=np.nan),
    "an endless scale": lambda r: both(r, slope=np.inf),
    "a scale of zero": lambda r: both(r, slope=0.0, inter=7.0),
    "zeros with a sign": lambda r: label(r, lambda v: np.where(v == 0, -0.0, v)),
    "packed in two parts": repacked(LABEL, lambda b: gzip.compress(b[:5000]) + gzip.compress(b[5000:])),
    "packed without being smaller": repacked(IMAGE, lambda b: gzip.compress(b, 0)),
    "noise of rounding": lambda r: label(r, lambda v: v.astype(np.float32) * np.float32(1 + 1e-7)),
    "16777217 as integers": far(16777217, "int32"),
    "16777217 as float64": far(16777217, "float64"),
    "an atlas": far(614454277, "uint32"),
    "beyond 32 bits": far(2**40 + 1, "int64"),
    "9007199254740993, which float64 lacks": far(2**53 + 1, "int64"),
    "9007199254740993 without a sign": far(2**53 + 1, "uint64"),
    "9007199254740993 beside -992": lambda r: neighbours(r, "int64"),
    "9007199254740993 beside -992 without signs": lambda r: neighbours(r, "uint64"),
    "4000000000": far(4_000_000_000, "uint32"),
    "an ignored -1": lambda r: labels_of_all(
        r, lambda v: np.where(v == 9, -1, v.astype(np.int16)).astype(np.int8), {"liver": 1, "spleen": 5, "ignore": -1}
    ),
    "NIfTI-2": lambda r: both(r, version=2),
    "big-endian": lambda r: both(r, big_endian=True),
    "big-endian and scaled": lambda r: label(r, lambda v: (v * 2).astype(np.int16), slope=0.5, big_endian=True),
    "four axes, one volume": lambda r: label(r, lambda v: v[..., None]),
    "five axes, one volume": lambda r: label(r, lambda v: v[..., None, None]),
    "sform alone": lambda r: both(r, forms=(0, 1)),
    "qform alone": lambda r: both(r, forms=(1, 0)),
    "no form": lambda r: both(r, forms=(0, 0)),
    "a qform that turns nothing beside a sform": lambda r: image(r, **QUATERNION),
    "a qform of its own": lambda r: image(r, quatern_b=0.3, qoffset_x=40),
    "a label with a qform of its own": lambda r: label(r, quatern_b=0.3, qoffset_x=40),
    "a quaternion longer by rounding": lambda r: both(r, forms=(1, 0), quatern_b=1.0001, quatern_c=0, quatern_d=0),
    "a pixdim of zeros": lambda r: both(r, forms=(0, 1), pixdim=[1, 0, 0, 0, 0, 0, 0, 0]),
    "a pixdim of its own": lambda r: both(r, forms=(0, 1), pixdim=[1, 3, 3, 3, 0, 0, 0, 0]),
    "a gantry tilt": lambda r: both(r, affine=TILT @ np.diag([1.5, 1.5, 4.0, 1.0])),
    "metres everywhere": lambda r: (in_metres(r, *CASES), say(r, test=[])),
    "one intensity in all organs": lambda r: [image(r, lambda v: np.where(v > 90, 100, -50), case=c) for c in CASES],
    "two axes": lambda r: flat(r, lambda v: v[:, :, 5]),
    "two axes and no word of a third": lambda r: flat(
        r, lambda v: v[:, :, 5], forms=(0, 0), pixdim=[1, 2, 2, 0, 0, 0, 0, 0]
    ),
    "a first axis of one voxel": lambda r: (flat(r, lambda v: v[8:9]), say(r, labels={"liver": 1, "ignore": 9})),
    "a second axis of one voxel": lambda r: flat(r, lambda v: v[:, 8:9]),
    "regions three deep": lambda r: nested(r),
    "regions three deep in an atlas": lambda r: nested(r, 2**40),
    "regions, and background else": lambda r: (nested(r), say(r, labels=WITHOUT_5, others="background")),
    "regions, and ignored else": lambda r: (nested(r), say(r, labels=WITHOUT_5, others="ignore")),
    "regions, an ignored value and ignored else": lambda r: (
        nested(r),
        say(r, labels=WITHOUT_5 | {"ignore": 9}, others="ignore"),
    ),
    "beyond 32 bits, and ignored else": lambda r: (
        far(2**40, "int64")(r),
        say(r, labels={"liver": 2**40}, others="ignore"),
    ),
    "one file with both channels": lambda r: several_files(r, modalities=2, files=1),
    "a channel per file": lambda r: several_files(r, modalities=2, files=2),
}
REFUSED = {
    "a tenth from whole numbers": lambda r: label(r, lambda v: v + 0.1),
    "0.005 from whole numbers": lambda r: label(r, lambda v: v + 0.005),
    "scaled by a third of a step": scaled(0.3, 0.0, "uint8"),
    "NaN": lambda r: label(r, lambda v: np.where(v == 5, np.nan, v.astype(np.float32))),
    "infinite both ways": lambda r: image(r, lambda v: v * 1e300),
    "infinite": lambda r: label(r, lambda v: np.where(v == 5, np.inf, v.astype(np.float32))),
    "floats without whole numbers": lambda r: label(r, lambda v: v * 1e17),
    "beyond 64 bits": lambda r: label(r, lambda v: v.astype(np.uint64) * np.uint64(2**62)),
    "colours": lambda r: label(r, lambda v: np.zeros(v.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "complex numbers": lambda r: label(r, lambda v: v.astype(np.complex64)),
    "four axes, two volumes": lambda r: label(r, lambda v: np.stack([v, v], -1)),
    "no voxels": lambda r: both(r, dim=[3, 24, 0, 12, 1, 1, 1, 1]),
    "a sform of zeros": lambda r: both(r, srow_x=0, srow_y=0, srow_z=0),
    "a qform that turns nothing": lambda r: image(r, forms=(1, 0), **QUATERNION),
    "one case in metres": lambda r: in_metres(r, 1),
    "a label in metres": lambda r: in_metres(r, 1, parts=(label,)),
    "a label without its last bytes": lambda r: (r / LABEL).write_bytes((r / LABEL).read_bytes()[:-9]),
    "a label whose sform is another": lambda r: label(r, srow_x=[1.5, 0, 0, 40]),
    "an offset that is no number": lambda r: label(r, slope=1.0, inter=np.nan),
    "complex intensities": lambda r: image(r, lambda v: v.astype(np.complex64)),
    "an image cut in its header": lambda r: (r / IMAGE).write_bytes((r / IMAGE).read_bytes()[:60]),
    "an image cut in the middle": lambda r: (r / IMAGE).write_bytes((r / IMAGE).read_bytes()[:4000]),
    "an image without its checksum": lambda r: (r / IMAGE).write_bytes((r / IMAGE).read_bytes()[:-8]),
    "an image whose second part is cut": repacked(
        IMAGE, lambda b: gzip.compress(b[:5000]) + gzip.compress(b[5000:])[:-20]
    ),
    "a wrong checksum": lambda r: (r / LABEL).write_bytes((r / LABEL).read_bytes()[:-8] + bytes(8)),
    "a plain label without its last bytes": lambda r: plain_and_cut(r, LABEL),
    "a file without a byte": lambda r: (r / IMAGE).write_bytes(b""),
    "a packed file of nothing": repacked(LABEL, lambda b: gzip.compress(b"")),
    "two files for three modalities": lambda r: several_files(r, modalities=3, files=2),
    "a scan in place of a label": lambda r: shutil.copy(r / IMAGE, r / LABEL),
    "a folder in place of an image": lambda r: folder_for_file(r, IMAGE),
    "a folder in place of a label": lambda r: folder_for_file(r, LABEL),
    "a link to nothing": lambda r: dangling(r, IMAGE),
    "a label that is a link to nothing": lambda r: dangling(r, LABEL),
}


def seen_and_prepared(root: Path, out: Path, capsys) -> tuple[int, list[dict], int, str]:
    """Exit status and problems of verify, exit status and message of prepare."""
    capsys.readouterr()
    seen = main(["verify", str(root), "--json", str(out / "problems.json"), "--workers", "1"])
    problems = json.loads((out / "problems.json").read_text(encoding="utf-8"))["problems"]
    capsys.readouterr()
    prepared = main(["prepare", str(root), "--out", str(out / "store"), "--workers", "1"])
    return seen, problems, prepared, capsys.readouterr().err


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", TAKEN)
def test_what_is_odd_and_whole_is_taken_by_both(name, tmp_path, capsys):
    root = write_toy_dataset(tmp_path)
    TAKEN[name](root)
    seen, problems, prepared, told = seen_and_prepared(root, tmp_path, capsys)
    assert prepared == 0, told
    assert [problem for problem in problems if not problem["harmless"]] == []
    assert seen == 0
    drawn = ["toy_0", "toy_1", "toy_2"]  # without ignored voxels, which no prediction may hold
    scores = evaluate(root / "labelsTr", root, output=tmp_path / "scores", cases=drawn, workers=1)
    assert scores.failures == ()
    assert {row.scores.dice for row in scores.rows} == {1.0}, "of what training sees, scored against itself"
    assert {row.scores.outcome.value for row in scores.rows if row.organ == scores.rows[0].organ} == {"found"}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_by_both(name, tmp_path, capsys):
    root = write_toy_dataset(tmp_path)
    REFUSED[name](root)
    seen, problems, prepared, told = seen_and_prepared(root, tmp_path, capsys)
    assert (seen, prepared) == (1, 1)
    assert told.startswith("medseg: ")
    assert told.count("\n") == 1
    assert len(told) < 500
    named = [problem for problem in problems if not problem["harmless"] and problem["file"]]
    assert len(problems) <= 5
    assert any(Path(problem["file"]).name in told for problem in named), (told, problems)


def test_a_dataset_without_labels_is_named_by_both(tmp_path, capsys):
    root = write_toy_dataset(tmp_path)
    say(root, training=[])
    seen, problems, prepared, told = seen_and_prepared(root, tmp_path, capsys)
    assert (seen, prepared) == (1, 1)
    assert [problem["kind"] for problem in problems if not problem["harmless"]] == ["unlabelled"]
    assert "has no labelled case" in told
