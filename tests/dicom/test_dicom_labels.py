"""Segmentation objects and structure sets as label maps: values by name, regions by overlap, and what is refused."""

import shutil
from contextlib import suppress

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from support.dialects import write_object  # noqa: E402
from support.series import write_ct  # noqa: E402

from medseg.datasets.drawn import Meaning, read_drawn  # noqa: E402
from medseg.dicom.labels import read_object  # noqa: E402
from medseg.dicom.series import series_of  # noqa: E402
from medseg.errors import DataError  # noqa: E402
from medseg.space.reading import case_name, images_in, is_nifti, is_series, parts_of, read_volume  # noqa: E402

SHAPE = (20, 16, 6)
FORMS = ("dicom-seg", "rtstruct")


def blob(corner, size):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + b) for a, b in zip(corner, size, strict=True))] = True
    return mask


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan") / "ct"
    affine = np.diag([0.8, -0.9, 4.0, 1.0])
    affine[:3, 3] = (-30.0, 20.0, 11.0)
    return write_ct(folder, np.random.default_rng(0).integers(-900, 900, SHAPE), affine)


def drawn(scan, path, form, masks):
    return write_object(path, form, masks, series_of(scan))


def labels_of(path, scan, labels, ignore=None, others=None):
    return read_object(path, scan, labels, ignore=ignore, others=others)


@pytest.mark.parametrize("form", FORMS)
def test_values_are_looked_up_by_name_whatever_the_order_of_the_segments(scan, form, tmp_path):
    masks = {
        "SPLEEN": blob((1, 1, 1), (3, 4, 2)),
        "liver": blob((8, 2, 0), (5, 9, 6)),
        "Ignore": blob((0,) * 3, (2,) * 3),
    }
    path = drawn(scan, tmp_path / "a.dcm", form, masks)
    read = labels_of(path, scan, {"liver": 7, "spleen": 300, "pancreas": 2}, ignore=9)
    expected = np.select([masks["Ignore"], masks["SPLEEN"], masks["liver"]], [9, 300, 7])
    np.testing.assert_array_equal(read.volume.array[0], expected)
    np.testing.assert_allclose(read.volume.affine, read_volume(scan).affine, atol=1e-4)
    assert read.lacks == ("pancreas",)


@pytest.mark.parametrize("form", FORMS)
def test_overlapping_segments_are_regions(scan, form, tmp_path):
    masks = {
        "whole": blob((2, 2, 1), (10, 10, 4)),
        "core": blob((4, 4, 2), (3, 3, 2)),
        "vessel": blob((3, 3, 2), (9, 2, 1)),
    }
    path = drawn(scan, tmp_path / "a.dcm", form, masks)
    regions = {"whole": (1, 2, 3, 4), "core": (2, 3), "vessel": (3, 4)}
    values = labels_of(path, scan, regions).volume.array[0]
    for name, mask in masks.items():
        np.testing.assert_array_equal(np.isin(values, regions[name]), mask, name)
    with pytest.raises(DataError, match=r"a.dcm has \d+ voxels that are whole and (core|vessel) at once.*regions"):
        labels_of(path, scan, {"whole": 1, "core": 2, "vessel": 3})
    with pytest.raises(DataError, match=r"voxels that are whole and vessel at once"):
        labels_of(path, scan, {"whole": (1, 2), "core": (2,), "vessel": 3})


def test_an_organ_that_only_stands_for_a_part_is_not_there_alone(scan, tmp_path):
    path = drawn(scan, tmp_path / "a.dcm", "dicom-seg", {"tumour": blob((2, 2, 2), (3, 3, 2))})
    with pytest.raises(DataError, match="18 voxels that are tumour and nothing else"):
        labels_of(path, scan, {"liver": (1, 2), "tumour": (2,)})


@pytest.mark.parametrize("form", FORMS)
def test_segments_that_no_label_names_are_refused_left_out_or_ignored(scan, form, tmp_path):
    masks = {"liver": blob((2, 2, 1), (5, 5, 3)), "couch": blob((5, 5, 1), (9, 9, 3))}
    path = drawn(scan, tmp_path / "a.dcm", form, masks)
    with pytest.raises(DataError, match=r"a segment that no label names: couch.*others"):
        labels_of(path, scan, {"liver": 1})
    with pytest.raises(DataError, match=r"did you mean 'lever'"):
        labels_of(path, scan, {"lever": 1, "couch": 2})
    np.testing.assert_array_equal(labels_of(path, scan, {"liver": 1}, others=0).volume.array[0], masks["liver"])
    ignored = labels_of(path, scan, {"liver": 1}, ignore=-1, others=-1).volume.array[0]
    np.testing.assert_array_equal(ignored, np.where(masks["liver"], 1, np.where(masks["couch"], -1, 0)))


def test_what_nobody_asked_for_may_lie_beyond_the_series(scan, tmp_path):
    path = drawn(
        scan, tmp_path / "a.dcm", "rtstruct", {"liver": blob((2, 2, 1), (5, 5, 3)), "couch": blob((9, 9, 1), (3, 3, 3))}
    )
    read = pydicom.dcmread(path)
    for contour in read.ROIContourSequence[1].ContourSequence:
        contour.ContourData = [float(x) + 500 for x in contour.ContourData]
    read.save_as(path)
    assert labels_of(path, scan, {"liver": 1}, others=0).volume.array.sum() == 75
    with pytest.raises(DataError, match=r"a.dcm has an outline of couch beyond series"):
        labels_of(path, scan, {"liver": 1, "couch": 2})


def test_an_object_without_its_series_is_named(scan, tmp_path):
    path = drawn(scan, tmp_path / "a.dcm", "dicom-seg", {"liver": blob((2, 2, 1), (5, 5, 3))})
    other = write_ct(tmp_path / "other", np.zeros(SHAPE, np.int16), np.eye(4), FrameOfReferenceUID="1.2.3")
    twin = write_ct(tmp_path / "twin", np.zeros(SHAPE, np.int16), np.eye(4))
    for image, sentence in (
        (None, "a.dcm was drawn on a DICOM series, and no dataset says which"),
        (tmp_path / "a.nii.gz", "a.dcm was drawn on a DICOM series, and .*a.nii.gz is none"),
        (other, "a.dcm has another frame of reference than series"),
        (twin, "a.dcm refers to none of the slices of series"),
    ):
        with pytest.raises(DataError, match=sentence):
            labels_of(path, image, {"liver": 1})
    shutil.copy(path, tmp_path / "b.dcm")
    with pytest.raises(DataError, match=r"holds 2 segmentation objects: a.dcm, b.dcm"):
        labels_of(tmp_path, scan, {"liver": 1})


@pytest.mark.parametrize("form", FORMS)
def test_an_object_that_is_cut_short_or_lacks_its_segments_is_refused_in_a_sentence(scan, form, tmp_path):
    path = drawn(scan, tmp_path / "a.dcm", form, {"liver": blob((2, 2, 1), (5, 5, 3))})
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"a.dcm"):
            labels_of(path, scan, {"liver": 1})
    path.write_bytes(whole)
    read = pydicom.dcmread(path)
    for key in ("SegmentSequence", "StructureSetROISequence"):
        if key in read:
            delattr(read, key)
    read.save_as(path)
    with pytest.raises(DataError, match=r"a.dcm"):
        labels_of(path, scan, {"liver": 1})


@pytest.mark.filterwarnings("ignore")  # what pydicom makes of bytes that mean nothing
@pytest.mark.parametrize("form", FORMS)
def test_damaged_objects_are_read_or_refused_in_a_sentence(scan, form, tmp_path):
    path = drawn(scan, tmp_path / "a.dcm", form, {"liver": blob((2, 2, 1), (5, 5, 3))})
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    for damages in [1, 3, 10, 40] * 8:
        bytes_ = bytearray(whole)
        for place in chance.integers(132, len(whole), damages):
            bytes_[place] = chance.integers(256)
        path.write_bytes(bytes(bytes_))
        with suppress(DataError):
            read_drawn(path, scan, Meaning({"liver": 1}))


def test_objects_are_labels_and_never_images(scan, tmp_path):
    shutil.copytree(scan, tmp_path / "anna" / "ct")
    for form, name in zip(FORMS, ("anna.seg.dcm", "anna.rtstruct.dcm"), strict=True):
        path = drawn(scan, tmp_path / name, form, {"liver": blob((2, 2, 1), (5, 5, 3))})
        assert case_name(path) == "anna"
        assert parts_of(path) == (path,)
        assert not is_series(path)
        assert not is_nifti(path)
        with pytest.raises(DataError, match=name):
            read_volume(path)
    assert images_in(tmp_path) == []
    assert [path.name for path in images_in(tmp_path, objects=True)] == ["anna.rtstruct.dcm", "anna.seg.dcm"]
    beside = shutil.copy(tmp_path / "anna.rtstruct.dcm", tmp_path / "anna" / "ct" / "RS.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "anna" / "ct").array, read_volume(scan).array)
    assert labels_of(tmp_path / "anna" / "ct", tmp_path / "anna" / "ct", {"liver": 1}).path.samefile(beside)


def test_a_folder_that_is_as_it_was_is_not_sorted_again(scan, monkeypatch):
    series_of(scan)
    monkeypatch.setattr("medseg.dicom.series._headers", None)
    assert series_of(scan).shape == SHAPE


@pytest.mark.skipif(
    not shutil.which("plastimatch"), reason="plastimatch is not installed (apt-get install plastimatch)"
)
def test_another_program_writes_outlines_that_are_read_to_the_voxel(scan, tmp_path):
    import subprocess

    sitk = pytest.importorskip("SimpleITK")
    i, j, _ = np.indices(SHAPE)
    ring = ((i - 9) ** 2 + (j - 8) ** 2 < 40) & ((i - 9) ** 2 + (j - 8) ** 2 > 9)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(scan)))
    mask = sitk.GetImageFromArray(ring.T.astype(np.uint8))
    mask.CopyInformation(image)
    sitk.WriteImage(mask, str(tmp_path / "liver.nrrd"))
    words = ["plastimatch", "convert", "--input-ss-img", tmp_path / "liver.nrrd", "--referenced-ct", scan]
    subprocess.run([*words, "--output-dicom", tmp_path / "out"], check=True, capture_output=True)
    file = next((tmp_path / "out").glob("rtss*"))
    (name,) = [str(roi.ROIName) for roi in pydicom.dcmread(file).StructureSetROISequence]
    found = labels_of(file, scan, {name: 1}).volume.array[0]
    assert (found != ring).mean() < 0.01, (found != ring).sum()


@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
def test_segmentations_of_other_kinds_are_read_to_the_voxel(scan, kind, tmp_path):
    import highdicom as hd
    from pydicom.sr.codedict import codes

    headers = [pydicom.dcmread(file) for file in series_of(scan).files]
    masks = {"liver": blob((2, 2, 1), (5, 5, 3)), "spleen": blob((9, 9, 1), (4, 3, 4))}
    described = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(masks, start=1)
    ]
    stack = np.stack([mask.T for mask in masks.values()], axis=-1).astype(float if kind == "FRACTIONAL" else np.uint8)
    written = hd.seg.Segmentation(headers, stack, kind, described, hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "2")
    written.save_as(tmp_path / "a.dcm")
    values = labels_of(tmp_path / "a.dcm", scan, {"liver": 4, "spleen": 2}).volume.array[0]
    np.testing.assert_array_equal(values, 4 * masks["liver"] + 2 * masks["spleen"])


def test_a_segmentation_is_what_its_frames_say(scan, tmp_path):
    """Frames and their places as pydicom has them: neither highdicom nor we have a part in it."""
    masks = {"liver": blob((2, 2, 1), (5, 5, 3)), "spleen": blob((4, 9, 0), (4, 3, 6))}
    path = drawn(scan, tmp_path / "a.dcm", "dicom-seg", masks)
    header = pydicom.dcmread(path)
    depths = [float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in series_of(scan).files]
    found = {name: np.zeros(SHAPE, bool) for name in masks}
    for frame, place in zip(header.pixel_array, header.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        depth = float(place.PlanePositionSequence[0].ImagePositionPatient[2])
        found[list(masks)[number - 1]][:, :, int(np.argmin(np.abs(np.array(depths) - depth)))] |= frame.T > 0
    values = labels_of(path, scan, {"liver": 1, "spleen": 2}).volume.array[0]
    for value, name in enumerate(masks, start=1):
        np.testing.assert_array_equal(found[name], masks[name])
        np.testing.assert_array_equal(values == value, masks[name])


def test_a_segmentation_lies_where_simple_itk_puts_it(scan, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    mask = blob((2, 2, 1), (5, 5, 3))
    path = drawn(scan, tmp_path / "a.dcm", "dicom-seg", {"liver": mask})
    series = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(scan)))
    placed = sitk.Resample(sitk.ReadImage(str(path)), series, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(placed).T > 0, mask)


def test_segments_beyond_their_series_are_refused(scan, tmp_path):
    path = drawn(scan, tmp_path / "a.dcm", "dicom-seg", {"liver": blob((2, 2, 1), (5, 5, 3))})
    read = pydicom.dcmread(path)
    for frame in read.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [position[0], position[1], float(position[2]) + 400]
    read.save_as(path)
    with pytest.raises(DataError, match=r"a.dcm does not lie on the slices of series"):
        labels_of(path, scan, {"liver": 1})


def test_outlines_finer_than_the_slices_are_joined_and_make_no_holes(scan, tmp_path):
    mask = blob((2, 2, 1), (5, 5, 3))
    path = drawn(scan, tmp_path / "a.dcm", "rtstruct", {"liver": mask})
    read = pydicom.dcmread(path)
    contours = read.ROIContourSequence[0].ContourSequence
    for contour in list(contours):
        for shift in (-1.2, 1.2):  # of slices 4 mm apart
            more = pydicom.Dataset()
            more.update(contour)
            more.ContourData = [float(x) + shift * (place % 3 == 2) for place, x in enumerate(contour.ContourData)]
            contours.append(more)
    read.save_as(path)
    np.testing.assert_array_equal(labels_of(path, scan, {"liver": 1}).volume.array[0], mask)
