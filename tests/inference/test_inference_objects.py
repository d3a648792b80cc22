"""Predictions as DICOM objects, and folders of many series."""

import nibabel as nib
import numpy as np
import pytest
from support.prediction import PLAN, predictor
from support.series import write_ct

from medseg.errors import DataError, UsageError
from medseg.inference.folder import predict_cases
from medseg.inference.images import find_cases
from medseg.space.volume import Volume

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'medseg[dicom]'")
pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'medseg[dicom]'")

from medseg.dicom.segmentation import read_segmentation
from medseg.dicom.series import series_of
from medseg.dicom.structures import read_structures

AFFINE = np.array([[-0.9, 0, 0, 30], [0, -1.1, 0, 20], [0, 0, 3.0, -10], [0, 0, 0, 1]])


def ball(shape=(20, 18, 7)):
    i, j, k = np.indices(shape)
    return np.round(400 - 40 * np.sqrt((i - 9) ** 2 + (j - 8) ** 2 + (3 * (k - 3)) ** 2))


def two_levels():
    return predictor(PLAN, slopes=[0.0, 1.0, 2.0], offsets=[0.0, -100.5, -301.0])


@pytest.mark.parametrize(("form", "read"), [("dicom-seg", read_segmentation), ("rtstruct", read_structures)])
def test_objects_hold_the_voxels_of_the_label_files(tmp_path, form, read):
    write_ct(tmp_path / "in" / "anna", ball(), AFFINE)
    assert not predict_cases(two_levels(), tmp_path / "in", tmp_path / "plain").failures
    outcome = predict_cases(two_levels(), tmp_path / "in", tmp_path / "out", form=form)
    assert not outcome.failures
    segments = read(outcome.written[0], series_of(tmp_path / "in" / "anna"))
    masks = {name: mask() for name, mask in segments}
    file = nib.load(tmp_path / "plain" / "anna.nii.gz")
    labels = Volume(np.asarray(file.dataobj)[None], file.affine)
    assert labels.orientation == Volume(ball()[None], AFFINE).orientation
    assert list(masks) == list(PLAN.organs)
    for organ, value in PLAN.labels.items():
        assert (labels.array[0] == value).any()
        np.testing.assert_array_equal(masks[organ], labels.array[0] == value)


def test_a_folder_of_many_series_is_segmented_series_by_series(tmp_path, caplog):
    folder = tmp_path / "in"
    write_ct(folder / "p1", ball(), AFFINE, number=2, description="thin")
    write_ct(folder / "p1", ball() / 2, AFFINE, number=3, description="thick")
    write_ct(folder / "p2" / "ct", ball(), AFFINE, number=2)
    write_ct(folder / "p1", ball()[..., :1], AFFINE, number=1, description="scout")
    write_ct(folder / "p3", ball(), AFFINE, number=9, leave_out=[2])
    cases, broken = find_cases(folder, PLAN)
    assert list(cases) == ["p1_002_thin", "p1_003_thick", "p2_ct"]
    assert "scout is left out: it has one slice" in caplog.text
    assert [str(one).count("p3 has a series 009") for one in broken] == [1]
    outcome = predict_cases(two_levels(), folder, tmp_path / "out", form="dicom-seg")
    assert [path.name for path in outcome.written] == [f"{case}.seg.dcm" for case in cases]
    whole = {case: sum(mask().sum() for _, mask in found) for case, found in _read(outcome.written, cases).items()}
    assert whole["p1_002_thin"] == whole["p2_ct"] > whole["p1_003_thick"] > 0
    again = predict_cases(two_levels(), folder, tmp_path / "plain")
    assert [path.name for path in again.written] == [f"{case}.nii.gz" for case in cases]


def _read(written, cases):
    return {
        case: read_segmentation(path, series_of(images[0]))
        for path, (case, images) in zip(written, cases.items(), strict=True)
    }


def test_an_object_needs_a_series_to_refer_to(tmp_path):
    nib.save(nib.Nifti1Image(ball().astype(np.int16), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match=r"refers to a DICOM series, and .* is none"):
        predict_cases(two_levels(), tmp_path / "a.nii.gz", tmp_path / "out", form="rtstruct")
    write_ct(tmp_path / "in" / "anna", ball(), AFFINE, FrameOfReferenceUID="")
    (failure,) = predict_cases(two_levels(), tmp_path / "in", tmp_path / "out", form="rtstruct").failures
    assert isinstance(failure, DataError)
    assert "no frame of reference" in str(failure)
    assert not list((tmp_path / "out").glob("*.dcm"))
