"""NRRD, MetaImage and DICOM in: written by SimpleITK, found where SimpleITK says that they lie."""

import locale
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.foreign import itk_image, write_series
from support.prediction import PLAN, affines, predictor, random_affine, smooth
from support.toys import write_nifti

from medseg.errors import DataError
from medseg.inference.folder import predict_cases
from medseg.inference.images import list_cases, read_case_image
from medseg.space.formats import is_dicom_folder
from medseg.space.reading import read_labels, read_volume
from medseg.space.writing import write_labels_for

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'medseg[formats]'")


def right_handed(affine):
    """DICOM and ITK's DICOM reader know right-handed grids only."""
    return affine if np.linalg.det(affine[:3, :3]) > 0 else affine @ np.diag([1.0, 1.0, -1.0, 1.0])


@examples(15)
@given(affine=affines, ending=st.sampled_from([".nrrd", ".mha"]), seed=st.integers(0, 99))
def test_every_voxel_is_where_itk_says(tmp_path_factory, affine, ending, seed):
    path = tmp_path_factory.mktemp("itk") / f"a{ending}"
    voxels = smooth((4, 5, 6), seed)[0]
    sitk.WriteImage(itk_image(voxels, affine), str(path))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], voxels)
    image = sitk.ReadImage(str(path))
    for corner in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (3, 4, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(volume.affine @ [*corner, 1], [-x, -y, z, 1], atol=1e-6)


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom"])
def test_a_prediction_lies_on_the_image_in_its_format(tmp_path, kind):
    voxels = np.round(100 * smooth((12, 9, 7), 4)[0])
    spacing = np.array([0.9, 1.3, 2.5])
    affine = right_handed(random_affine(5, (1, -1, 1), (2, 0, 1), spacing))
    if kind == "dicom":
        write_series(tmp_path / "in" / "a", voxels, affine)
    else:
        (tmp_path / "in").mkdir()
        sitk.WriteImage(itk_image(voxels.astype(np.float32), affine), str(tmp_path / "in" / f"a.{kind}"))
    turned = tuple(float(spacing[axis]) for axis in np.argsort(nib.io_orientation(affine)[:, 0]))
    plan = replace(PLAN, spacing_mm=turned)
    outcome = predict_cases(
        predictor(plan, slopes=[0.0, 1.0, 2.0], offsets=[0.0, -100.5, -301.0]), tmp_path / "in", tmp_path / "out"
    )
    assert not outcome.failures
    expected = np.select([voxels > 200.5, voxels > 100.5], [5, 1], 0)
    if kind == "dicom":
        written = nib.load(tmp_path / "out" / "a.nii.gz")
        np.testing.assert_allclose(written.affine, affine, atol=1e-4)
        np.testing.assert_allclose(written.get_qform(), affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
        return
    written, image = (sitk.ReadImage(str(tmp_path / place / f"a.{kind}")) for place in ("out", "in"))
    assert written.IsSameImageGeometryAs(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected.T)
    assert written.GetPixelID() == sitk.sitkUInt8


def test_one_scan_in_four_formats_has_one_prediction(tmp_path):
    voxels, spacing = np.round(100 * smooth((12, 9, 7), 4)[0]).astype(np.int16), np.array([0.9, 1.3, 2.5])
    affine = right_handed(random_affine(5, (1, -1, 1), (2, 0, 1), spacing))
    write_nifti(tmp_path / "in" / "nifti.nii.gz", voxels, affine)
    write_series(tmp_path / "in" / "dicom", voxels, affine)
    for kind in ("nrrd", "mhd"):
        sitk.WriteImage(itk_image(voxels, affine), str(tmp_path / "in" / f"{kind}.{kind}"))
    network = predictor(slopes=[0.0, 1.0, 2.0], offsets=[0.0, -100.5, -301.0])
    outcome = predict_cases(network, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in outcome.written] == ["dicom.nii.gz", "mhd.mha", "nifti.nii.gz", "nrrd.nrrd"]
    first, *others = map(read_labels, outcome.written)
    for other in others:
        np.testing.assert_array_equal(other.array, first.array)
        np.testing.assert_allclose(other.affine, first.affine, atol=1e-4)


def test_a_dicom_folder_may_be_the_source_itself(tmp_path):
    folder = write_series(tmp_path / "series", np.zeros((4, 4, 4)), np.eye(4))
    assert is_dicom_folder(folder)
    assert list_cases(folder, PLAN) == {"series": (folder,)}
    with pytest.raises(DataError, match=r"\.dcm is one slice of a DICOM series"):
        list_cases(next(folder.iterdir()), PLAN)


def test_reading_dicom_leaves_the_locale_as_it_was(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    read_volume(write_series(tmp_path / "series", np.zeros((4, 4, 4)), np.eye(4)))
    assert locale.setlocale(locale.LC_CTYPE) == before


def test_a_dicom_folder_and_a_file_of_one_name_are_refused(tmp_path):
    write_series(tmp_path / "a", np.zeros((4, 4, 4)), np.eye(4))
    sitk.WriteImage(itk_image(np.zeros((4, 4, 4), np.float32), np.eye(4)), str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match="case name of an image"):
        list_cases(tmp_path, PLAN)


def test_channels_of_foreign_files(tmp_path):
    two = sitk.GetImageFromArray(np.zeros((4, 4, 4, 2), np.float32), isVector=True)
    sitk.WriteImage(two, str(tmp_path / "a.nrrd"))
    assert read_volume(tmp_path / "a.nrrd").array.shape == (2, 4, 4, 4)
    with pytest.raises(DataError, match="has 2 channels, expected 1"):
        read_case_image((tmp_path / "a.nrrd",), PLAN)
    plan = replace(PLAN, modalities=("T1", "T2"), normalisation=PLAN.normalisation * 2)
    for channel in range(2):
        sitk.WriteImage(
            itk_image(np.full((4, 4, 4), channel, np.float32), np.eye(4)), str(tmp_path / f"b_000{channel}.mha")
        )
    files = list_cases(tmp_path, plan)["b"]
    assert read_case_image(files, plan).array[:, 0, 0, 0].tolist() == [0, 1]


def missing_slice(folder):
    write_series(folder / "a", np.zeros((4, 4, 6)), np.eye(4), leave_out=(2,))


def a_localiser(folder):
    write_series(folder / "a", np.zeros((4, 4, 4)), np.eye(4))
    write_series(folder / "b", np.zeros((4, 4, 2)), np.eye(4)[[2, 0, 1, 3]])
    for path in (folder / "b").iterdir():
        path.rename(folder / "a" / f"survey_{path.name}")


def slices_of_two_sizes(folder):
    write_series(folder / "a", np.zeros((4, 4, 4)), np.eye(4))
    write_series(folder / "a", np.zeros((3, 4, 2)), np.eye(4))


def a_link_to_nothing(folder):
    (folder / "a.nrrd").symlink_to(folder / "gone.nrrd")


def in_metres(folder):
    sitk.WriteImage(itk_image(np.zeros((4, 4, 4), np.float32), np.diag([1e-3, 1e-3, 3e-3, 1])), str(folder / "a.nrrd"))


def truncated(folder):
    sitk.WriteImage(itk_image(np.zeros((9, 9, 9), np.float32), np.eye(4)), str(folder / "a.mha"))
    (folder / "a.mha").write_bytes((folder / "a.mha").read_bytes()[:600])


def not_finite(folder):
    sitk.WriteImage(itk_image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), str(folder / "a.nrrd"))


BAD = {
    missing_slice: "missing or doubled",
    a_localiser: "several directions",
    slices_of_two_sizes: "its slices differ in size",
    a_link_to_nothing: "does not exist",
    in_metres: "has voxels of 0.001 x 0.001 x 0.003 mm",
    truncated: "not a readable image",
    not_finite: "NaN",
}


@pytest.mark.parametrize("make", BAD, ids=lambda f: f.__name__)
def test_bad_files_are_named(tmp_path, make):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    (failure,) = predict_cases(predictor(), tmp_path / "in", tmp_path / "out").failures
    assert BAD[make] in str(failure)
    assert str(tmp_path / "in" / "a") in str(failure)


def test_without_simpleitk_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.nrrd").write_bytes(b"")
    with pytest.raises(DataError, match=r"medseg\[formats\]"):
        read_volume(tmp_path / "a.nrrd")


def test_labels_of_what_no_format_of_ours_holds_are_nifti(tmp_path):
    affine = random_affine(3, (-1, -1, 1), (0, 1, 2), np.array([1.0, 2.0, 3.0]))
    labels = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    series = write_series(tmp_path / "a", np.zeros((2, 3, 4)), np.eye(4))
    write_labels_for(series, tmp_path / "a.nii.gz", labels, affine)
    written = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    assert written.get_data_dtype() == np.uint8
