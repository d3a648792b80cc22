"""A folder as hospitals have them, through the real command line: what is bad is named, the rest is done."""

import os
import re
import struct
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from support import foreign
from support.prediction import PLAN, smooth, write_checkpoint
from support.toys import oblique_affine, write_nifti

from medseg.cli import main

sitk = pytest.importorskip("SimpleITK")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ckpt") / "best.ckpt")


@pytest.fixture
def folder(tmp_path):
    """Two good images, between which the bad one is put; the first is smaller than a patch."""
    for name, shape in (("a", (3, 2, 1)), ("z Ä", (10, 9, 6))):
        write_nifti(tmp_path / "Zürich CT 1" / f"{name}.nii.gz", smooth(shape, 1)[0], oblique_affine(1))
    return tmp_path / "Zürich CT 1"


def image(path, voxels=None):
    return write_nifti(path, smooth((9, 9, 6), 2)[0] if voxels is None else voxels, oblique_affine(2))


def truncated(folder):
    path = image(folder / "m.nii.gz")
    path.write_bytes(path.read_bytes()[:-200])


def cut_off_in_its_header(folder):
    path = image(folder / "m.nii")
    path.write_bytes(path.read_bytes()[:100])


def damaged(folder, start, content):
    path = image(folder / "m.nii")
    path.write_bytes(path.read_bytes()[:start] + content + path.read_bytes()[start + len(content) :])


def of_an_unknown_type(folder):
    damaged(folder, 70, struct.pack("<h", 999))


def of_negative_extent(folder):
    damaged(folder, 42, struct.pack("<h", -5))


def shorter_than_it_says(folder):
    damaged(folder, 42, struct.pack("<hhh", 32000, 32000, 32000))


def placed_nowhere(folder):
    damaged(folder, 280, struct.pack("<f", np.nan))


def changed_on_its_way(folder):
    path = image(folder / "m.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # of the checksum
    path.write_bytes(bytes(content))


def packed_without_saying_so(folder):
    image(folder / "m.nii.gz").rename(folder / "m.nii")


def said_to_be_packed(folder):
    image(folder / "m.nii").rename(folder / "m.nii.gz")


def in_micrometres_without_saying_so(folder):
    write_nifti(folder / "m.nii.gz", smooth((9, 9, 6), 2)[0], np.diag([900.0, 900.0, 900.0, 1.0]))


def too_bright_for_any_network(folder):
    image(folder / "m.nii.gz", np.full((9, 9, 6), 3e38, np.float32))


def a_link_to_itself(folder):
    (folder / "m.nii.gz").symlink_to("m.nii.gz")


def twice_as_the_first_channel(folder):
    image(folder / "m.nii.gz")
    image(folder / "m_0000.nii.gz")


def empty_file(folder):
    (folder / "m.nii.gz").touch()


def not_finite(folder):
    image(folder / "m.nii.gz", np.where(np.indices((5, 5, 5))[0] == 2, np.nan, 1.0).astype(np.float32))


def infinite(folder):
    image(folder / "m.nii.gz", np.where(np.indices((5, 5, 5))[0] == 2, np.inf, 1.0).astype(np.float32))


def two_channels(folder):
    image(folder / "m.nii.gz", np.zeros((5, 5, 5, 2), np.float32))


def coloured(folder):
    colours = np.zeros((5, 5, 5), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colours, np.eye(4)), folder / "m.nii.gz")


def complex_numbers(folder):
    nib.save(nib.Nifti1Image(np.full((5, 5, 5), 1 + 1j, np.complex64), np.eye(4)), folder / "m.nii.gz")


def flat(folder):
    nib.save(nib.Nifti1Image(np.zeros(5, np.float32), np.eye(4)), folder / "m.nii.gz")


def without_voxels(folder):
    path = image(folder / "m.nii")
    content = bytearray(path.read_bytes())
    content[42:44] = struct.pack("<h", 0)  # dim[1]
    path.write_bytes(bytes(content))


def singular(folder):
    broken = nib.Nifti1Image(np.zeros((5, 5, 5), np.float32), None)
    broken.header["sform_code"] = 1
    broken.header["srow_x"] = broken.header["srow_y"] = broken.header["srow_z"] = 0
    nib.save(broken, folder / "m.nii.gz")


def text(folder):
    (folder / "m.nii.gz").write_text("the radiologist is on holiday")


def a_folder_of_that_name(folder):
    (folder / "m.nii.gz").mkdir()
    (folder / "m.nii.gz" / "readme.txt").write_text("unpacked twice")


def dangling_link(folder):
    (folder / "m.nii.gz").symlink_to(folder / "archive" / "m.nii.gz")


def twice(folder):
    image(folder / "m.nii.gz")
    image(folder / "m.nii")


def twice_in_two_formats(folder):
    image(folder / "m.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 5, 5), np.float32)), str(folder / "m.mha"))


def two_series(folder):
    foreign.two_series(folder)
    (folder / "a.nii.gz").rename(folder / "b.nii.gz")


def truncated_mha(folder):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 9, 9), np.float32)), str(folder / "m.mha"))
    (folder / "m.mha").write_bytes((folder / "m.mha").read_bytes()[:700])


BAD = {
    truncated: "truncated or corrupt",
    cut_off_in_its_header: "not a readable NIfTI",
    of_an_unknown_type: "data code 999",
    of_negative_extent: "has shape (-5, 9, 6)",
    shorter_than_it_says: "has 32000 x 32000 x 32000 voxels, if its header is right",
    placed_nowhere: "singular affine",
    changed_on_its_way: "CRC check failed",
    packed_without_saying_so: "holds what a .nii.gz holds",
    said_to_be_packed: "holds what a .nii holds",
    in_micrometres_without_saying_so: "has voxels of 900 x 900 x 900 mm, those of the training are 1.5 x 1.5 x 3 mm",
    too_bright_for_any_network: "m.nii.gz could not be segmented: the network's scores are NaN or infinite",
    a_link_to_itself: "leads back to itself",
    twice_as_the_first_channel: "m_0000.nii.gz has the case name of an image beside it, m.nii.gz",
    empty_file: "not a readable NIfTI",
    not_finite: "25 voxels that are NaN or infinite",
    infinite: "25 voxels that are NaN or infinite",
    two_channels: "has 2 channels, expected 1",
    coloured: "colours",
    complex_numbers: "complex",
    flat: "expected two axes to four",
    without_voxels: "expected two axes to four",
    singular: "singular affine",
    text: "not a readable NIfTI",
    a_folder_of_that_name: "m.nii.gz",
    dangling_link: "does not exist",
    twice: "m.nii.gz has the case name of an image beside it",
    twice_in_two_formats: "m.nii.gz has the case name of an image beside it",
    two_series: "2 DICOM series",
    truncated_mha: "not a readable image",
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("damage", BAD, ids=lambda f: f.__name__)
def test_what_is_bad_is_named_and_the_rest_is_done(folder, checkpoint, tmp_path, capsys, damage):
    damage(folder)
    good = {path.name for path in folder.glob("[abz]*.nii.gz")}
    words = ["predict", "--ckpt", str(checkpoint), "--input", str(folder), "--output", str(tmp_path / "out put")]
    assert main([*words, "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    (said,) = [line for line in lines if not re.fullmatch(r"predicting \d of \d: .+", line)]
    told = {line.partition(": ")[2] for line in lines if line != said}
    assert told >= {name.removesuffix(".nii.gz") for name in good}
    assert said.startswith("medseg: ")
    assert BAD[damage] in said
    assert said.endswith(".")
    assert "2 predictions" in captured.out
    assert {path.name for path in (tmp_path / "out put").glob("*.nii*")} == good


def a_file(tmp_path, folder):
    (tmp_path / "out").write_text("")
    return tmp_path / "out"


def below_a_file(tmp_path, folder):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def the_input(tmp_path, folder):
    return folder


def the_input_by_channels(tmp_path, folder):
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    return folder


@pytest.mark.parametrize(
    ("place", "status", "sentence"),
    [
        (a_file, 1, "cannot be written to"),
        (below_a_file, 1, "cannot be written to"),
        (the_input, 2, "would overwrite"),
        (the_input_by_channels, 2, "would lie among the images"),
        (lambda home, folder: home / "one.nii.gz", 2, "Name the folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_output_that_cannot_be_is_refused_at_once(
    folder, checkpoint, tmp_path, capsys, monkeypatch, place, status, sentence
):
    monkeypatch.setattr("medseg.inference.predict.Predictor.segment", lambda *_, **__: pytest.fail("in vain"))
    target = str(place(tmp_path, folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["predict", "--ckpt", str(checkpoint), "--input", str(folder), "--output", target]) == status
    assert sentence in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused_at_once(folder, checkpoint, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o500)
    words = ["predict", "--ckpt", str(checkpoint), "--input", str(folder), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_a_network_that_diverged_is_refused(folder, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    next(iter(content["state_dict"].values())).fill_(np.nan)
    torch.save(content, tmp_path / "last.ckpt")
    words = ["predict", "--ckpt", str(tmp_path / "last.ckpt"), "--input", str(folder)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    assert "last.ckpt holds weights that are NaN or infinite" in capsys.readouterr().err


def test_an_ensemble_of_two_plans_is_refused(folder, checkpoint, tmp_path, capsys):
    other = write_checkpoint(tmp_path / "other.ckpt", replace(PLAN, labels={"liver": 1, "pancreas": 5}))
    words = ["predict", "--ckpt", str(checkpoint), str(other), "--input", str(folder)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    assert "other.ckpt was trained on another plan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
