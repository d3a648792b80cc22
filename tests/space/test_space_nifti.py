"""Label files of every type mean the same numbers; whatever is no label is refused with a sentence."""

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError
from medseg.space.labels import value_counts
from medseg.space.nifti import read_labels, read_volume, write_labels

LABELS = np.random.default_rng(0).choice([0, 1, 5, 17, 200], (5, 19, 7))


def write(path, voxels):
    image = nib.Nifti1Image(voxels, np.diag([2.0, 1.0, 3.0, 1.0]), dtype=voxels.dtype)
    image.header.set_data_dtype(voxels.dtype)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_labels_of_every_type_are_the_same_numbers(tmp_path, kind, ending):
    volume = read_labels(write(tmp_path / f"a{ending}", LABELS.astype(kind)))
    assert volume.array.dtype == np.int32
    assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array[0], LABELS)
    assert volume.spacing_mm == (2.0, 1.0, 3.0)


def with_slope(path, voxels, slope, inter):
    """What nibabel would undo on writing: stored numbers and a scale, as some scanners' software writes them."""
    write(path, voxels)
    content = bytearray(path.read_bytes())
    content[112:116], content[116:120] = np.float32(slope).tobytes(), np.float32(inter).tobytes()
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.0, 0.0), (0.5, 0.0), (1.0, -3.0), (0.1, 0.0), (3.0, 1.0)])
def test_scaling_is_applied_and_exact(tmp_path, slope, inter):
    stored = np.round((LABELS - inter) / (slope or 1.0)).astype(np.int16)
    path = with_slope(tmp_path / "a.nii", stored, slope, inter)
    expected = np.asarray(nib.load(path).dataobj, dtype=np.float64)  # 0.1 in float32 times 10 is 1.000000015
    np.testing.assert_array_equal(read_labels(path).array[0], np.rint(expected))


def test_large_integers_do_not_pass_through_floats(tmp_path):
    odd = LABELS.astype(np.int32) + 16_777_217  # the first integer that float32 lacks
    np.testing.assert_array_equal(read_labels(write(tmp_path / "a.nii", odd)).array[0], odd)


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (LABELS + 0.25, "not whole numbers"),
        (np.where(LABELS == 5, np.nan, LABELS), "not whole numbers"),
        (np.where(LABELS == 5, np.inf, LABELS), "not whole numbers"),
        (LABELS.astype(np.uint64) + 2**63, "too large for labels"),
        (LABELS * 1e17, "too large for labels"),
        (np.stack([LABELS, LABELS], axis=-1).astype(np.int16), "has 2 channels"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, voxels, words):
    with pytest.raises(DataError, match=words):
        read_labels(write(tmp_path / "a.nii.gz", np.asarray(voxels)))


def test_many_channels_come_first_in_memory_too(tmp_path):
    voxels = np.random.default_rng(1).normal(size=(4, 17, 3, 2)).astype(np.float32)
    volume = read_volume(write(tmp_path / "a.nii", voxels))
    assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array, np.moveaxis(voxels, -1, 0))


@pytest.mark.parametrize("shift", [0, -3, 20_000])
def test_values_are_counted(shift):
    labels = LABELS + shift
    labels[0, 0, 0] = 0
    values, counts = np.unique(labels, return_counts=True)
    assert value_counts(labels) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert value_counts(labels[0]) == value_counts(labels[:1])


@pytest.mark.parametrize(("unit", "edge"), [("mm", 2.0), ("unknown", 2.0), ("meter", 0.002), ("micron", 2000.0)])
def test_lengths_are_mm_whatever_the_unit_of_the_file(tmp_path, unit, edge):
    image = nib.Nifti1Image(LABELS.astype(np.uint8), np.diag([edge, edge, 2 * edge, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_labels(tmp_path / "a.nii.gz").spacing_mm == pytest.approx((2.0, 2.0, 4.0))
    write_labels(tmp_path / "b.nii.gz", LABELS, like=tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii.gz").affine, nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize("more", [b"", bytes(40), b"made by a scanner"])
def test_what_follows_a_compressed_file_harms_nobody(tmp_path, more):
    labels = np.tile(LABELS, (4, 4, 4)).astype(np.uint8)
    path = write(tmp_path / "a.nii.gz", labels)
    path.write_bytes(path.read_bytes() + more)
    np.testing.assert_array_equal(read_labels(path).array[0], labels)
