"""The fingerprint against the numbers that numpy finds in the arrays it was made from."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.plan.fingerprint import FingerprintTask, fingerprint, fingerprint_case
from medseg.space.distance import nonzero_box


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_intensities_voxels_shapes_and_spacings(toy_dataset):
    measured = fingerprint(read_dataset(toy_dataset), workers=1)
    assert list(measured.cases) == ["toy_0", "toy_1", "toy_2", "toy_3"]
    inside = []
    for index, case in enumerate(measured.cases.values()):
        image, labels = (voxels(toy_dataset / part / f"toy_{index}.nii.gz") for part in ("imagesTr", "labelsTr"))
        mask = (labels > 0) & (labels != 9)
        values = image[mask].astype(float)
        inside.append(values)
        found = case.intensities[0]
        np.testing.assert_allclose(
            (found.mean, found.std, found.lowest, found.highest),
            (values.mean(), values.std(), values.min(), values.max()),
            rtol=1e-5,
        )
        assert case.voxels == {value: int((labels == value).sum()) for value in (1, 5) if (labels == value).any()}
        assert case.shape == image.shape
        np.testing.assert_allclose(case.spacing_mm, (1.5, 1.5, 4.0 + 0.25 * index), rtol=1e-5)
    pooled = measured.foreground(0)
    assert pooled.lowest == min(values.min() for values in inside)
    np.testing.assert_allclose(pooled.mean, np.mean([values.mean() for values in inside]), rtol=1e-5)
    np.testing.assert_allclose(
        (pooled.lower, pooled.upper), np.percentile(np.concatenate(inside), (0.5, 99.5)), rtol=0.05
    )
    assert sum(5 in case.voxels for case in measured.cases.values()) == 3


def test_every_case_counts_alike(toy_dataset):
    """A case with few labelled voxels weighs as much as one with many, as in nnU-Net."""
    path = toy_dataset / "labelsTr" / "toy_0.nii.gz"
    image = nib.load(path)
    labels = voxels(path).copy()
    labels[:10] = labels[12:] = 0
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), path)
    measured = fingerprint(read_dataset(toy_dataset), workers=1)
    means = [case.intensities[0].mean for case in measured.cases.values()]
    assert measured.foreground(0).mean == pytest.approx(np.mean(means))


def test_cropping_and_turning_are_seen(toy_dataset):
    for part in ("imagesTr", "labelsTr"):
        path = toy_dataset / part / "toy_0.nii.gz"
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[:4] = 0
        order = nib.orientations.axcodes2ornt("SAR")
        turned = nib.Nifti1Image(array, image.affine).as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(image.affine), order)
        )
        nib.save(turned, path)
    case = fingerprint(read_dataset(toy_dataset), workers=1).cases["toy_0"]
    assert case.shape == (20, 20, 12)
    assert case.kept == pytest.approx(20 / 24)
    np.testing.assert_allclose(case.spacing_mm, (1.5, 1.5, 4.0), rtol=1e-5)


def test_a_case_without_foreground_has_no_intensities(toy_dataset):
    path = toy_dataset / "labelsTr" / "toy_1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    measured = fingerprint(read_dataset(toy_dataset), workers=1)
    assert measured.cases["toy_1"].intensities == ()
    assert measured.foreground(0) is not None


def test_no_labelled_case(toy_dataset):
    content = json.loads((toy_dataset / "dataset.json").read_text(encoding="utf-8"))
    content["training"] = []
    (toy_dataset / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no labelled case"):
        fingerprint(read_dataset(toy_dataset))


def test_every_unusable_case_is_named(toy_dataset):
    (toy_dataset / "imagesTr" / "toy_1.nii.gz").write_bytes(b"not gzip")
    (toy_dataset / "labelsTr" / "toy_2.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        fingerprint(read_dataset(toy_dataset), workers=1)
    assert "2 cases that cannot be used" in str(caught.value)
    assert "toy_1.nii.gz" in str(caught.value)
    assert "toy_2.nii.gz" in str(caught.value)


def test_a_case_without_a_label_has_no_fingerprint(toy_dataset):
    dataset = read_dataset(toy_dataset)
    with pytest.raises(DataError, match="has no label file"):
        fingerprint_case(FingerprintTask(dataset.test[0], dataset))


def test_workers_are_chosen_by_what_a_case_needs(toy_dataset, monkeypatch):
    asked = []
    monkeypatch.setattr("medseg.plan.fingerprint.default_workers", lambda count: asked.append(count) or 1)
    (toy_dataset / "imagesTr" / "toy_3.nii.gz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="toy_3"):
        fingerprint(read_dataset(toy_dataset))
    assert 12 * 24 * 22 * 12 < asked[0] < 100 * 24 * 22 * 12


def test_an_image_of_zeros_is_kept_whole():
    assert nonzero_box(np.zeros((2, 3, 4, 5))) == (slice(0, 3), slice(0, 4), slice(0, 5))
