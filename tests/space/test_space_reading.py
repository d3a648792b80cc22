"""One volume in every format is one volume; a picture is a slice; what is neither is refused in a sentence."""

import numpy as np
import pytest
from PIL import Image
from support.foreign import itk_image, sitk, write_series
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.errors import DataError
from medseg.space.reading import case_name, images_in, parts_of, read_header, read_labels, read_volume
from medseg.space.writing import label_ending, write_labels_for

needs_itk = pytest.mark.skipif(sitk is None, reason="SimpleITK is not installed: pip install 'medseg[formats]'")


def written(folder, kind, voxels, affine):
    if kind == "dicom":
        return write_series(folder / "a", voxels, affine)
    if kind == "nii.gz":
        return write_nifti(folder / "a.nii.gz", voxels, affine)
    sitk.WriteImage(itk_image(voxels, affine), str(folder / f"a.{kind}"))
    return folder / f"a.{kind}"


@needs_itk
@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "nhdr", "mha", "mhd", "dicom"])
def test_a_volume_is_the_same_in_every_format(tmp_path, kind):
    voxels, affine = toy_case(1)[0], oblique_affine(1)
    path = written(tmp_path, kind, voxels, affine)
    header, volume, labels = read_header(path), read_volume(path), read_labels(path)
    np.testing.assert_array_equal(volume.array[0], voxels)
    np.testing.assert_array_equal(labels.array[0], voxels)
    assert (header.shape, header.channels) == (voxels.shape, 1)
    for found in (header, volume, labels):
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert case_name(path) == "a"
    assert sum(part.stat().st_size for part in parts_of(path)) > 5000, "the voxels belong to the parts"


@needs_itk
def test_a_file_of_two_axes_is_one_slice(tmp_path):
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.array[0, :, :, 0], pixels.T)
    assert read_header(tmp_path / "a.mha").shape == volume.shape == (5, 4, 1)
    assert volume.spacing_mm == (0.5, 2.0, 1.0)


GREY = (np.arange(20) * 12).astype(np.uint8).reshape(4, 5)
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_a_picture_is_one_slice_in_the_axes_of_itk(tmp_path, ending):
    Image.fromarray(GREY).save(tmp_path / f"grey{ending}")
    Image.fromarray(COLOURS).save(tmp_path / f"colours{ending}")
    grey, colours = read_volume(tmp_path / f"grey{ending}"), read_volume(tmp_path / f"colours{ending}")
    np.testing.assert_array_equal(grey.array[0, :, :, 0], GREY.T)
    np.testing.assert_array_equal(colours.array[..., 0], COLOURS.transpose(2, 1, 0))
    assert grey.spacing_mm == (1, 1, 1)
    assert grey.orientation == "LPS"
    assert read_header(tmp_path / f"colours{ending}").channels == 3
    assert read_header(tmp_path / f"grey{ending}").shape == grey.shape
    np.testing.assert_array_equal(read_labels(tmp_path / f"grey{ending}").array, grey.array)


@needs_itk
def test_a_picture_lies_where_itk_puts_it(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    sitk.WriteImage(sitk.JoinSeries(sitk.ReadImage(str(tmp_path / "a.png"))), str(tmp_path / "b.nii"))
    ours, theirs = read_volume(tmp_path / "a.png"), read_volume(tmp_path / "b.nii")
    np.testing.assert_array_equal(ours.array, theirs.array)
    np.testing.assert_allclose(ours.affine, theirs.affine)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("uint16", ".png"), ("bool", ".png"), *((kind, ".tif") for kind in ("uint16", "int32", "float32", "bool"))],
)
def test_pictures_of_more_or_less_than_a_byte(tmp_path, kind, ending):
    pixels = (np.arange(20).reshape(4, 5) * (1 if kind == "bool" else 3000)).astype(kind)
    Image.fromarray(pixels).save(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{ending}").array[0, :, :, 0], pixels.T)
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{ending}").array[0, :, :, 0], pixels.T)


def test_palettes_hold_labels_by_number_and_images_by_colour(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    picture.save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").array[0, :, :, 0].T.tolist() == [[0, 1], [2, 1]]
    assert read_volume(tmp_path / "a.png").array[:, 1, 0, 0].tolist() == [200, 10, 10]
    assert read_header(tmp_path / "a.png").channels == 3
    picture.putpalette([0, 0, 0, 99, 99, 99, 7, 7, 7])
    picture.save(tmp_path / "b.png")
    assert read_volume(tmp_path / "b.png").array[0, :, :, 0].T.tolist() == [[0, 99], [7, 99]]
    assert read_header(tmp_path / "b.png").channels == 1


def test_what_hides_nothing_is_left_out(tmp_path):
    Image.fromarray(np.dstack([COLOURS, np.full((4, 5), 255, np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array[..., 0], COLOURS.transpose(2, 1, 0))
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png").array[0, :, :, 0], GREY.T)


def see_through(path):
    Image.fromarray(np.dstack([COLOURS, GREY])).save(path)


def cmyk(path):
    Image.fromarray(COLOURS).convert("CMYK").save(path, format="TIFF")


def pages(path):
    Image.fromarray(GREY).save(path, format="TIFF", save_all=True, append_images=[Image.fromarray(GREY)])


def turned(path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(COLOURS).save(path, exif=exif)


def cut_short(path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (99, 99)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def a_text(path):
    path.write_text("no picture")


def empty(path):
    path.touch()


def deep(path):
    sitk.WriteImage(sitk.GetImageFromArray((COLOURS * 200).astype(np.uint16), isVector=True), str(path))


BAD_PICTURES = {
    see_through: "see-through",
    cmyk: "as CMYK",
    pages: "2 pages",
    turned: "to be turned",
    cut_short: "not a readable picture",
    a_text: "not a readable picture",
    empty: "not a readable picture",
    deep: "16 bits",
}


@pytest.mark.parametrize("make", BAD_PICTURES, ids=lambda make: make.__name__)
def test_pictures_that_would_be_misread_are_refused(tmp_path, make):
    if make is deep and sitk is None:
        pytest.skip("SimpleITK is not installed: pip install 'medseg[formats]'")
    make(tmp_path / "a.png")
    for read in (read_volume, read_labels):
        with pytest.raises(DataError, match=BAD_PICTURES[make]):
            read(tmp_path / "a.png")


def test_labels_in_colours_or_with_a_loss_are_refused(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="labels as colours"):
        read_labels(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a JPEG"):
        read_labels(tmp_path / "a.jpg")
    assert read_volume(tmp_path / "a.jpg").array.shape == (1, 5, 4, 1)


def test_pictures_beside_volumes_illustrate_them(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "._a.png").touch()
    assert images_in(tmp_path) == [tmp_path / "a.nii.gz"]
    (tmp_path / "a.nii.gz").unlink()
    assert images_in(tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize("like", ["a.png", "a.jpg", "a.tif", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("highest", [3, 300, 70_000])
def test_labels_come_back_from_the_format_of_their_image(tmp_path, like, highest):
    if sitk is None and like in ("a.mha", "a.nrrd"):
        pytest.skip("SimpleITK is not installed: pip install 'medseg[formats]'")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    labels = np.arange(20, dtype=np.int32).reshape(5, 4, 1) % 4
    labels[0, 0, 0] = highest
    target = tmp_path / f"a{label_ending(tmp_path / like, highest)}"
    write_labels_for(tmp_path / like, target, labels, affine)
    back = read_labels(target)
    np.testing.assert_array_equal(back.array[0], labels)
    np.testing.assert_allclose(back.affine, affine)
    assert (target.suffix == ".gz") == (highest == 70_000 and like in ("a.png", "a.jpg", "a.tif"))


DETACHED = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = gone.raw\n"


def nrrd(**fields):
    lines = {"type": "short", "dimension": 3, "sizes": "2 3 4", "endian": "little", "encoding": "raw", **fields}
    head = "NRRD0004\n" + "".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in lines.items()) + "\n"
    return head.encode() + np.arange(24, dtype="<i2").tobytes()


@needs_itk
@pytest.mark.parametrize(("space", "sign"), [("right-anterior-superior", 1), ("left-posterior-superior", -1)])
def test_a_file_that_names_its_space_lies_there(tmp_path, space, sign):
    directions = "(2,0,0) (0,3,0) (0,0,4)"
    (tmp_path / "a.nrrd").write_bytes(nrrd(space=space, space_directions=directions, space_origin="(5,6,7)"))
    expected = np.array([[2 * sign, 0, 0, 5 * sign], [0, 3 * sign, 0, 6 * sign], [0, 0, 4, 7], [0, 0, 0, 1]])
    np.testing.assert_allclose(read_volume(tmp_path / "a.nrrd").affine, expected)


FLAT_SPACE = {"space": "left-posterior-superior", "space_directions": "(2,0,0) (2,0,0) (0,0,4)"}
BAD_FILES = {
    "two axes in one direction": ("a.nrrd", nrrd(**FLAT_SPACE), "singular affine"),
    "cut short": ("a.nrrd", nrrd(spacings="2 3 4")[:-9], "not a readable image"),
    "no image": ("a.mha", b"hello", "not a readable image"),
    "empty": ("a.mha", b"", "not a readable image"),
    "its data gone": ("a.mhd", DETACHED.encode(), "No such file"),
    "no header": ("a.nhdr", bytes(range(256)), "not a readable image"),
}


@needs_itk
@pytest.mark.parametrize(("name", "content", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_hold_no_volume_are_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    assert parts_of(tmp_path / name) == (tmp_path / name,)
    for read in (read_volume, read_labels):
        with pytest.raises(DataError, match=sentence):
            read(tmp_path / name)
