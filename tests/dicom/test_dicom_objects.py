"""Segmentation objects and structure sets: what is written is valid, what is read is what was drawn."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.series import write_ct

from medseg.dicom.organs import Organ, codes_of
from medseg.dicom.outlines import filled, outlines
from medseg.errors import DataError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from medseg.dicom.segmentation import Algorithm, headers_of, read_segmentation, write_segmentation  # noqa: E402
from medseg.dicom.series import series_of, sort_series  # noqa: E402
from medseg.dicom.structures import read_structures, write_structures  # noqa: E402

ALGORITHM = Algorithm("medseg unet", "0123456789abcdef")


def all_of(read):
    """What one reads segment by segment, at once."""
    return lambda path, series: {name: mask() for name, mask in read(path, series)}


read_segmentation, read_structures = all_of(read_segmentation), all_of(read_structures)
FORMS = {"seg": (write_segmentation, read_segmentation), "rtstruct": (write_structures, read_structures)}
TURNED = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix()
GRIDS = {
    "oblique and thick": (TURNED, (0.8, 0.9, 5.0)),
    "feet first": (np.diag([-1.0, 1.0, -1.0]), (1.0, 1.0, 2.5)),
    "sagittal": (np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]), (0.7, 0.7, 1.1)),
}


def masks_of(shape=(30, 26, 8)):
    """A ball, a shell with an island in its hole, single voxels, two parts that touch at a corner, nothing."""
    i, j, k = np.indices(shape)
    radius = np.sqrt((i - 14) ** 2 + (j - 13) ** 2 + (3 * (k - 4)) ** 2)
    shell = (radius < 10) & (radius > 5)
    shell[14, 13, 4] = True
    specks = np.zeros(shape, bool)
    specks[0, 0, 0] = specks[-1, -1, -1] = specks[3, 3, 2] = specks[4, 4, 2] = True
    return {"liver": radius < 9, "left_kidney": shell, "Ångström": specks, "spleen": np.zeros(shape, bool)}


@pytest.fixture(params=GRIDS)
def series(request, tmp_path):
    turn, spacing = GRIDS[request.param]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing), (-40.0, 20.0, 13.0)
    voxels = np.random.default_rng(0).integers(-1000, 1000, (30, 26, 8))
    found = series_of(write_ct(tmp_path / "ct", voxels, affine, backwards=True))
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    return found


@pytest.mark.sweep(3)
@pytest.mark.parametrize("organs", [["liver"], ["left_kidney", "spleen"], ["Ångström"]])
def test_organs_apart_are_written_as_numbers_to_the_same_voxels(series, organs, tmp_path):
    masks = written(series, "seg", tmp_path / "out.dcm", {organ: masks_of()[organ] for organ in organs})
    back = read_segmentation(tmp_path / "out.dcm", series)
    assert list(back) == organs
    for organ, mask in masks.items():
        np.testing.assert_array_equal(back[organ], mask)


def written(series, form, path, masks=None):
    masks = masks or masks_of()
    organs = [Organ(name, (200, 30 * index, 40)) for index, name in enumerate(masks)]
    FORMS[form][0](path, masks, organs, series, ALGORITHM, like=headers_of(series))
    return masks


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_to_the_voxel(series, form, tmp_path):
    masks = written(series, form, tmp_path / "out.dcm")
    back = FORMS[form][1](tmp_path / "out.dcm", series)
    assert list(back) == list(masks)
    for organ, mask in masks.items():
        np.testing.assert_array_equal(back[organ], mask, organ)


@pytest.mark.parametrize("form", FORMS)
def test_the_object_is_valid_and_refers_to_its_series(series, form, tmp_path):
    written(series, form, tmp_path / "out.dcm")
    with pydicom.config.strict_reading():
        read = pydicom.dcmread(tmp_path / "out.dcm")
        text = str(read)
    assert all(instance in text for instance in series.instances)
    assert series.frame_of_reference in text
    assert "Liver" in text
    assert "Zoë" in str(read.PatientName)


def needs(program, of):
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed ({of})")


@needs("dciodvfy", "apt-get install dicom3tools")
@pytest.mark.parametrize("organs", [["liver", "left_kidney", "spleen"], ["left_kidney", "spleen"], ["spleen"]])
@pytest.mark.parametrize("form", FORMS)
def test_a_validator_of_the_standard_finds_no_error(series, form, organs, tmp_path):
    """Overlapping, apart and empty; neither pydicom nor highdicom has a part in it."""
    written(series, form, tmp_path / "out.dcm", {organ: masks_of()[organ] for organ in organs})
    said = subprocess.run(["dciodvfy", tmp_path / "out.dcm"], capture_output=True, text=True, check=False).stderr
    assert "Error" not in said, said
    assert "Warning" not in said, said


@needs("segimage2itkimage", "pip install dcmqi")
@pytest.mark.parametrize("organs", [None, ["left_kidney", "spleen"]])
def test_dcmqi_reads_the_segments_to_the_same_voxels(series, organs, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    masks = written(series, "seg", tmp_path / "out.dcm", organs and {organ: masks_of()[organ] for organ in organs})
    (tmp_path / "read").mkdir()
    words = ["segimage2itkimage", "--inputDICOM", tmp_path / "out.dcm", "--outputDirectory", tmp_path / "read"]
    ran = subprocess.run(words, check=True, capture_output=True, text=True)
    assert not [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith(("W:", "E:"))]
    scan = sitk.ReadImage(list(map(str, series.files)))
    described = [
        one for several in json.loads((tmp_path / "read/meta.json").read_text())["segmentAttributes"] for one in several
    ]
    assert [one["SegmentLabel"] for one in described] == list(masks)
    for number, (one, mask) in enumerate(zip(described, masks.values(), strict=True)):
        segment = sitk.ReadImage(str(tmp_path / "read" / f"{one['labelID']}.nrrd"))
        placed = sitk.Resample(segment, scan, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(placed).T > 0, mask, one["SegmentLabel"])
        assert one["recommendedDisplayRGBValue"] == pytest.approx([200, 30 * number, 40], abs=2)


@needs("plastimatch", "apt-get install plastimatch")
def test_another_program_reads_the_outlines_to_the_same_voxels(series, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    masks = written(series, "rtstruct", tmp_path / "out.dcm", {k: v for k, v in masks_of().items() if k[0] != "Å"})
    words = ["plastimatch", "convert", "--input", tmp_path / "out.dcm", "--referenced-ct", series.files[0].parent]
    subprocess.run(
        [*words, "--output-prefix", tmp_path / "out", "--prefix-format", "nrrd"], check=True, capture_output=True
    )
    for organ in ("liver", "left_kidney"):
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{organ}.nrrd"))) > 0
        np.testing.assert_array_equal(voxels.transpose(2, 1, 0), masks[organ])


def test_outlines_and_voxels_are_each_others_inverse():
    rng = np.random.default_rng(1)
    for _ in range(60):
        mask = rng.random(rng.integers(1, 16, 2)) < rng.random()
        polygons = outlines(mask)
        np.testing.assert_array_equal(filled(polygons, mask.shape), mask)
        joined = [filled([polygon], mask.shape) for polygon in polygons]
        np.testing.assert_array_equal(np.any(joined, axis=0) if joined else mask & False, mask)


def test_contours_that_touch_share_no_voxel_and_leave_none_out():
    left = np.array([[0.0, 0.0], [0, 4], [5, 4], [5, 0]])
    right = left + np.array([0, 4])
    both = filled([left, right], (8, 12))
    assert (filled([left], both.shape) & filled([right], both.shape)).sum() == 0
    np.testing.assert_array_equal(both, filled([np.array([[0.0, 0], [0, 8], [5, 8], [5, 0]])], both.shape))
    nested = filled([left * 2, left + 1], (12, 12))
    assert not nested[3, 3]


@pytest.mark.parametrize(
    ("name", "kind", "side", "region"),
    [
        ("liver", "Liver", None, None),
        ("kidneyLeft", "Kidney", "Left", None),
        ("Left Atrium", "Left atrium", None, None),
        ("liver tumour", "Neoplasm", None, "Liver"),
        ("Anterior", "Anterior", None, None),
    ],
)
def test_organs_have_codes(name, kind, side, region):
    found = codes_of(name)
    assert (found.kind.meaning, found.side and found.side.meaning, found.region and found.region.meaning) == (
        kind,
        side,
        region,
    )
    assert found.kind.scheme_designator == ("99MEDSEG" if name == "Anterior" else "SCT")


def two_grids(tmp_path):
    voxels = np.zeros((30, 26, 8), np.int16)
    one = series_of(write_ct(tmp_path / "one", voxels, np.diag([1.0, 1, 2, 1])))
    other = series_of(write_ct(tmp_path / "other", voxels, np.diag([1.0, 1, 2, 1]), FrameOfReferenceUID="1.2.3"))
    return one, other


@pytest.mark.parametrize("form", FORMS)
def test_an_object_of_another_frame_or_series_is_refused(form, tmp_path):
    one, other = two_grids(tmp_path)
    written(one, form, tmp_path / "out.dcm")
    with pytest.raises(DataError, match="another frame of reference"):
        FORMS[form][1](tmp_path / "out.dcm", other)
    twin = series_of(write_ct(tmp_path / "twin", np.zeros((30, 26, 8), np.int16), np.eye(4)))
    with pytest.raises(DataError, match=r"another series|none of the slices"):
        FORMS[form][1](tmp_path / "out.dcm", twin)


def damaged(path, change):
    read = pydicom.dcmread(path)
    change(read)
    read.save_as(path)


def _shift(read, axis, mm):
    for contour in read.ROIContourSequence[0].ContourSequence:
        numbers = [float(x) for x in contour.ContourData]
        contour.ContourData = [x + mm * (index % 3 == axis) for index, x in enumerate(numbers)]


def _tilt(read):
    contour = read.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [float(x) + 5 * (index == 2) for index, x in enumerate(contour.ContourData)]


def _cut(read):
    contour = read.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda read: _shift(read, 2, 100), "beyond series"),
        (lambda read: _shift(read, 0, 30), "beyond series"),
        (_tilt, "not flat on a slice"),
        (_cut, "numbers, not 3 finite ones a point"),
        (lambda read: setattr(read.ROIContourSequence[0], "ReferencedROINumber", 9), "which it does not name"),
        (lambda read: setattr(read, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "is no DICOM structure set"),
    ],
)
def test_outlines_that_lie_nowhere_are_refused(change, sentence, tmp_path):
    one, _ = two_grids(tmp_path)
    written(one, "rtstruct", tmp_path / "out.dcm")
    damaged(tmp_path / "out.dcm", change)
    with pytest.raises(DataError, match=sentence):
        read_structures(tmp_path / "out.dcm", one)


def test_a_folder_of_many_series_is_sorted_and_the_odd_ones_are_named(tmp_path):
    voxels = np.zeros((6, 5, 4), np.int16)
    write_ct(tmp_path / "x", voxels, np.eye(4), number=1, description="ct thin")
    write_ct(tmp_path / "x", voxels, np.eye(4), number=2, description="t1/ax")
    write_ct(tmp_path / "x", voxels, np.eye(4), number=3, description="gap", leave_out=[1])
    write_ct(tmp_path / "y", voxels, np.eye(4), number=4, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_ct(tmp_path / "y", voxels[..., :1], np.eye(4), number=5, description="one")
    write_ct(tmp_path / "y", voxels, np.eye(4), number=6, ImagePositionPatient=["0", "0", "0"])
    turns = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]]
    write_ct(tmp_path / "y", voxels, np.eye(4), number=7, ImageOrientationPatient=lambda index: turns[index])
    (tmp_path / "README.txt").write_text("no DICOM")
    whole, odd = sort_series(tmp_path)
    assert [series.name for series in whole] == ["001_ct_thin", "002_t1_ax"]
    reasons = {str(one).split("series ")[1][:3]: one.reason for one in odd}
    assert reasons.keys() == {"003", "004", "005", "006", "007"}
    for number, words in zip(
        reasons, ("missing", "localiser", "one slice", "same place", "several directions"), strict=True
    ):
        assert words in reasons[number], reasons
    with pytest.raises(DataError, match="holds 2 series"):
        series_of(tmp_path)
    assert series_of(whole[1].files[2]).uid == whole[1].uid
    with pytest.raises(DataError, match="missing"):
        series_of(next(one for one in (tmp_path / "x").iterdir() if one.name.startswith("003")))
