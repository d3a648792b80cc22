"""The same scans in another format make the same store; a subset of labels the same as if nothing else were drawn."""

import json

import numpy as np
import pytest
from PIL import Image
from support.foreign import itk_image, sitk, write_series
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.cli import main
from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.plan.fingerprint import fingerprint
from medseg.plan.planning import make_plan
from medseg.store.prepare import prepare
from medseg.store.store import Store
from medseg.verify.verify import verify

CASES = range(2)


def described(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    labels = {"background": 0, "liver": 1, "spleen": 5, "ignore": 9}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "modality": ["CT"], **content}))
    return root


def in_format(root, kind, *, labels_too=True):
    """Two cases of the toy dataset as a plain folder."""
    for index in CASES:
        for part, voxels in zip(("images", "labels"), toy_case(index), strict=True):
            folder, name, affine = root / part, f"toy_{index}", oblique_affine(index)
            folder.mkdir(parents=True, exist_ok=True)
            if kind == "nii.gz" or (part == "labels" and not labels_too):
                write_nifti(folder / f"{name}.nii.gz", voxels, affine)
            elif kind == "dicom":
                write_series(folder / name, voxels, affine, series=f"1.2.{index}")
            else:
                sitk.WriteImage(itk_image(voxels, affine), str(folder / f"{name}.{kind}"))
    return described(root)


@pytest.mark.skipif(sitk is None, reason="SimpleITK is not installed: pip install 'medseg[formats]'")
@pytest.mark.parametrize("kind", ["nrrd", "mhd", "dicom"])
def test_every_format_makes_the_same_store(tmp_path, kind):
    nifti, other = in_format(tmp_path / "nifti", "nii.gz"), in_format(tmp_path / kind, kind, labels_too=kind != "dicom")
    assert verify(other, workers=1).ok
    plans = [make_plan(fingerprint(read_dataset(root), 1)) for root in (nifti, other)]
    assert plans[0].spacing_mm == plans[1].spacing_mm
    assert plans[0].normalisation == plans[1].normalisation
    stores = [prepare(root, tmp_path / f"store_{root.name}", plans[0], 1) for root in (nifti, other)]
    for case in stores[0].ids:
        for ours, theirs in zip(*((one.image(case), one.labels(case)) for one in stores), strict=True):
            np.testing.assert_allclose(ours[...], theirs[...], atol=1e-3)
    (slice_file, *_) = [part for part in (other / "images").rglob("*") if part.is_file()]
    slice_file.write_bytes(slice_file.read_bytes() + b"\0")
    assert stores[1].edited(), "of all files that an image is made of"


def drawn(root, change, **content):
    """The toy cases with 30 more structures in values of their own, changed as told."""
    for index in CASES:
        image, labels = toy_case(index)
        corner = labels[:3, :10, -1:]
        corner[corner == 0] = np.arange(corner.size)[(corner == 0).ravel()] + 100
        write_nifti(root / "images" / f"toy_{index}.nii.gz", image, oblique_affine(index))
        write_nifti(root / "labels" / f"toy_{index}.nii.gz", change(labels).astype(np.uint8), oblique_affine(index))
    return described(root, **content)


FATES = {"background": 0, "ignore": 9}


@pytest.mark.parametrize("fate", FATES)
def test_others_are_what_was_said_of_them(tmp_path, fate, capsys):
    subset = drawn(tmp_path / "subset", lambda labels: labels, others=fate)
    mapped = drawn(tmp_path / "mapped", lambda labels: np.where(labels >= 100, FATES[fate], labels))
    report = verify(subset, workers=1)
    assert report.ok
    (remark,) = [problem for problem in report.problems if problem.kind == "others"]
    assert "30 values (100, 101, 102, 103, 104 and 25 more) of 2 cases" in remark.problem
    plan = make_plan(fingerprint(read_dataset(subset), 1))
    assert plan.others == fate
    stores = prepare(subset, tmp_path / "a", None, 1), prepare(mapped, tmp_path / "b", None, 1)
    for case in stores[0].ids:
        np.testing.assert_array_equal(*(one.labels(case)[...] for one in stores))
    assert stores[0].plan.spacing_mm == stores[1].plan.spacing_mm
    for root in (subset, mapped):
        predictions = subset / "labels"  # which hold the others too, as those of a network of all 37 would
        if root is mapped:
            predictions = mapped / "labels" if fate == "background" else tmp_path / "clean" / "labels"
            drawn(tmp_path / "clean", lambda labels: np.where(labels >= 100, 0, labels))
        out = tmp_path / f"scores_{root.name}"
        status = main(["evaluate", "--predictions", str(predictions), "--references", str(root), "--output", str(out)])
        assert status == (1 if root is mapped and fate == "never" else 0), capsys.readouterr().err
    ours, theirs = ((tmp_path / f"scores_{name}" / "cases.csv").read_text() for name in ("subset", "mapped"))
    assert ours == theirs


def test_others_that_nobody_spoke_of_are_still_refused(tmp_path):
    with pytest.raises(DataError, match='"others": "background" or "ignore"'):
        prepare(drawn(tmp_path / "a", lambda labels: labels), tmp_path / "store", None, 1)


def test_another_fate_prepares_anew(tmp_path):
    root = drawn(tmp_path / "a", lambda labels: labels, others="ignore")
    prepare(root, tmp_path / "store", None, 1)
    described(root, others="background")
    with pytest.raises(DataError, match="others background, the plan for a has ignore"):
        prepare(root, tmp_path / "store", None, 1)


def modalities(root, *names):
    for index in CASES:
        image, labels = toy_case(index)
        for channel, name in enumerate(names):
            write_nifti(root / "images" / f"toy_{index}_{name}.nii.gz", image + channel, oblique_affine(index))
        write_nifti(root / "labels" / f"toy_{index}.nii.gz", labels, oblique_affine(index))
    return described(root, modality=list(names))


def test_a_plan_belongs_to_channels_of_its_names_in_its_order(tmp_path, capsys):
    source, changed = modalities(tmp_path / "a", "T2", "FLAIR"), modalities(tmp_path / "b", "FLAIR", "T2")
    prepare(source, tmp_path / "source", None, 1)
    words = ["prepare", str(changed), "--out", str(tmp_path / "out"), "--plan", str(tmp_path / "source" / "plan.yaml")]
    assert main(words) == 1
    assert "has modalities FLAIR, T2, the plan for a has T2, FLAIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--adopt", "--workers", "1"]) == 0
    assert "FLAIR, T2 follows the plan for a (T2, FLAIR)" in capsys.readouterr().out
    adopted = Store(tmp_path / "out").plan
    assert adopted.modalities == ("FLAIR", "T2")
    assert adopted.name == "b"
    assert main(["prepare", str(changed), "--out", str(tmp_path / "new"), "--adopt"]) == 2


def picture(root, index, size=(40, 56)):
    noise = np.random.default_rng(index)
    rows, columns = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(rows - 20, columns - 20 - 2 * index) < 9
    colours = noise.integers(0, 60, (*size, 3)) + disc[..., None] * np.array([150, 60, 90])
    for part, pixels, name in (("Tr", colours, f"p{index}_0000"), ("labelsTr", disc, f"p{index}")):
        folder = root / (f"images{part}" if part == "Tr" else part)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")


def test_colour_pictures_in_nnunets_layout_get_a_plan_of_two_axes(tmp_path):
    root = tmp_path / "pictures"
    for index in range(4):
        picture(root, index)
    colours = {"0": "R", "1": "G", "2": "B"}
    content = {"channel_names": colours, "labels": {"background": 0, "disc": 1}, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(content))
    assert verify(root, workers=1).ok
    plan = prepare(root, tmp_path / "store", None, 1).plan
    assert plan.patch_size[2] == 1
    assert {kernel[2] for kernel in plan.kernels} == {stride[2] for stride in plan.strides} == {1}
    assert plan.mirror_axes == (0, 1)
    assert "1 mm is assumed" in plan.reasons["spacing_mm"]
