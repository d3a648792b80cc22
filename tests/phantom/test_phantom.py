"""The phantom: honest input with the properties that the demo and other rooms' tests count on."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from support.recipes import NESTED_TUMOUR

from medseg.datasets.case import read_case, read_dataset
from medseg.datasets.msd import TASKS
from medseg.errors import DataError
from medseg.phantom.anatomy import ABDOMEN
from medseg.phantom.phantom import draw_case, write_phantom
from medseg.phantom.recipes import recipe_for


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return read_dataset(write_phantom(tmp_path_factory.mktemp("phantom"), 6, test=1))


def volumes(dataset):
    return [read_case(case, dataset) for case in dataset.cases]


def test_it_is_a_dataset_as_the_decathlon_lays_it_out(phantom):
    assert phantom.labels == {"liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "gallbladder": 5}
    assert phantom.modalities == ("CT",)
    assert len(phantom.cases) == 6
    assert [case.id for case in phantom.test] == ["phantom_006"]
    assert phantom.test[0].label is None


def test_organs_differ_in_size_by_an_order_of_magnitude(phantom):
    fractions = np.mean(
        [np.bincount(labels.array.ravel(), minlength=6) / labels.array.size for _, labels in volumes(phantom)], axis=0
    )
    assert 0.02 < fractions[1] < 0.06
    assert 0.002 < fractions[2] < 0.01
    assert 0.0002 < fractions[5] < 0.001


def test_one_case_lacks_an_organ_and_the_others_have_all(phantom):
    missing = {
        case.id: set(range(6)) - set(np.unique(labels.array))
        for case, (_, labels) in zip(phantom.cases, volumes(phantom), strict=True)
    }
    assert {case: organs for case, organs in missing.items() if organs} == {"phantom_003": {4}}


def test_the_kidneys_differ_by_side_only(phantom):
    for image, labels in volumes(phantom)[:3]:
        centres, means = [], []
        for value in (3, 4):
            voxels = np.argwhere(labels.array[0] == value)
            centres.append(labels.affine[:3, :3] @ voxels.mean(0) + labels.affine[:3, 3])
            means.append(image.array[0][labels.array[0] == value].mean())
        assert centres[0][0] > 10 > -10 > centres[1][0]  # right is positive in NIfTI's world
        assert means == pytest.approx([130, 130], abs=50)


def test_grids_vary_and_one_is_oblique_and_one_is_lps(phantom):
    images = [image for image, _ in volumes(phantom)]
    spacings = np.array([image.spacing_mm for image in images])
    assert len(np.unique(spacings.round(3), axis=0)) == len(images)
    assert (spacings[:, 2] > 1.1 * spacings[:, 0]).all()
    assert np.abs(spacings / (2.0, 2.0, 3.0) - 1).max() <= 0.15 + 1e-6
    assert [image.orientation for image in images[:4]] == ["RAS", "RAS", "LPS", "RAS"]
    cosines = images[1].affine[:3, :3] / spacings[1]
    assert 0.9 < cosines.diagonal().min() < 0.99


def test_intensities_are_hounsfield_units_with_noise(phantom):
    image, labels = volumes(phantom)[0]
    organs = [image.array[0][labels.array[0] == value] for value in range(1, 6)]
    assert [float(np.median(organ)) for organ in organs] == pytest.approx([62, 50, 130, 130, 15], abs=40)
    assert 10 < organs[0].std() < 30
    assert image.array.min() >= -1024
    assert np.median(image.array[0][:3, :3, :3]) == pytest.approx(-1000, abs=30)
    liver = np.where(labels.array[0] == 1, image.array[0] - organs[0].mean(), np.nan)
    neighbours = np.nanmean(liver[1:] * liver[:-1]) / np.nanvar(liver)
    assert neighbours > 0.1  # noise of real scanners is correlated


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first, second = (write_phantom(tmp_path / name, 2, seed=7, size=(24, 24, 16)) for name in "ab")
    for path in sorted(first.rglob("*.nii.gz")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    small = replace(ABDOMEN, size=(24, 24, 16))
    assert not np.array_equal(draw_case(small, 0, seed=7)[1].array, draw_case(small, 0, seed=8)[1].array)


def test_a_larger_dataset_begins_with_the_smaller_one(tmp_path):
    write_phantom(tmp_path, 2, size=(24, 24, 16))
    image, _ = draw_case(replace(ABDOMEN, size=(24, 24, 16)), 1)
    np.testing.assert_array_equal(nib.load(tmp_path / "imagesTr/phantom_001.nii.gz").get_fdata(), image.array[0])


def test_size_and_spacing_may_be_another_scanners(tmp_path):
    root = write_phantom(tmp_path, 1, size=(96, 96, 20), spacing_mm=(0.8, 0.8, 5.0))
    image, labels = volumes(read_dataset(root))[0]
    assert np.abs(np.array(image.shape) / (96, 96, 20) - 1).max() < 0.1
    assert image.spacing_mm == pytest.approx((0.8, 0.8, 5.0), rel=0.16)
    assert len(np.unique(labels.array)) == 6


def test_qform_and_sform_agree(phantom):
    for case in phantom.cases[:3]:
        image = nib.load(case.images[0])
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_another_dataset_is_not_overwritten(toy_dataset, tmp_path):
    with pytest.raises(DataError, match="holds another dataset"):
        write_phantom(toy_dataset, 1)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="holds another dataset"):
        write_phantom(tmp_path, 1)


def test_writing_again_writes_the_same(tmp_path):
    for cases in (2, 1):
        write_phantom(tmp_path, cases, size=(16, 16, 12))
    assert len(json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))["training"]) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_phantom(tmp_path / "file" / "phantom", 1, size=(16, 16, 12))


@pytest.mark.parametrize(("cases", "test"), [(0, 0), (1, -1)])
def test_a_dataset_needs_cases(tmp_path, cases, test):
    with pytest.raises(ValueError, match="at least one case"):
        write_phantom(tmp_path, cases, test=test)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_decathlon_task_has_a_phantom_of_its_geometry(task, tmp_path):
    recipe = recipe_for(task, shrink=6)
    known = TASKS[task]
    assert np.multiply(recipe.size, recipe.spacing_mm) == pytest.approx(np.multiply(known.size, known.spacing_mm))
    dataset = read_dataset(write_phantom(tmp_path, 2, recipe=recipe))
    assert dataset.labels == dict(known.labels)
    assert dataset.modalities == known.modalities
    seen = set()
    for image, labels in volumes(dataset):
        assert len(image.array) == len(known.modalities)
        assert all(channel.std() > 0 for channel in image.array)
        seen |= set(np.unique(labels.array))
    assert seen == {0, *known.labels.values()}


def test_a_recipe_has_the_size_of_its_task_unless_shrunk():
    assert recipe_for("Spleen").size == TASKS["Task09_Spleen"].size
    assert recipe_for("Spleen").spacing_mm == TASKS["Task09_Spleen"].spacing_mm


def test_a_nested_tumour_is_declared_as_overlapping_regions(tmp_path):
    recipe = replace(recipe_for("BrainTumour", shrink=6), regions=NESTED_TUMOUR)
    dataset = read_dataset(write_phantom(tmp_path, 1, recipe=recipe))
    assert dataset.labels == {"whole tumour": (1, 2, 3), "tumour core": (2, 3), "enhancing tumour": (3,)}
    assert dataset.paint_order == (1, 2, 3)
    image, labels = volumes(dataset)[0]
    assert set(np.unique(labels.array)) == {0, 1, 2, 3}
    assert (image.array[:, :3, :3, :3] == 0).all()  # as skull-stripped images are
    assert image.array[:, labels.array[0] > 0].min() > 0
