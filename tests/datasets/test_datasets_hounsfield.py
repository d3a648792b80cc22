"""Hounsfield units told from other units by the intensities: what is odd is named, what is legal passes."""

import nibabel as nib
import numpy as np
import pytest
from support.prediction import SHARED

from medseg.datasets.hounsfield import Spread, odd_ones, oddity, sampled, spread_of, unlike_window

ABDOMEN = SHARED / "ct_abdomen"
LIVER, LUNG = 5, 11


@pytest.fixture(scope="module")
def scan():
    """A CT of the abdomen and its labels."""
    if not ABDOMEN.is_dir():
        pytest.skip("needs the shared data")
    image, labels = (np.asarray(nib.load(ABDOMEN / f"{name}.nii.gz").dataobj) for name in ("ct", "labels"))
    return image.astype(np.float32), labels.astype(int)


LEGAL = {
    "whole": lambda image, labels: image,
    "padded": lambda image, labels: np.pad(image, 20, constant_values=-3024),
    "a crop without air": lambda image, labels: image[tuple(np.argwhere(labels == 3).T[:, ::50])],
    "an organ alone": lambda image, labels: image[labels == LIVER],
    "clipped": lambda image, labels: image.clip(-160, 240),
}
ODD = {
    "1024 added": lambda image, labels: image + 1024,
    "and padded": lambda image, labels: np.pad(image + 1024, 5, constant_values=-2000),
    "1024 taken away": lambda image, labels: image - 1024,
    "from 0 to 1": lambda image, labels: (image + 1100) / 2400,
    "labels": lambda image, labels: labels * (labels < 10),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_legal_passes(scan, name):
    voxels, bounds = LEGAL[name](*scan), np.percentile(scan[0][scan[1] == LIVER], (0.5, 99.5))
    assert oddity(spread_of(voxels)) == ""
    assert unlike_window(voxels, *bounds) == ""


@pytest.mark.parametrize("name", ODD)
def test_another_unit_is_odd(scan, name):
    voxels, bounds = ODD[name](*scan), np.percentile(scan[0][scan[1] == LIVER], (0.5, 99.5))
    assert oddity(spread_of(voxels))
    assert unlike_window(voxels, *bounds)


def test_scans_where_training_had_numbers_from_0_to_1_are_odd(scan):
    assert unlike_window(scan[0], 0.2, 0.9) == "next to no voxel in that range"
    assert unlike_window((scan[0] + 1100) / 2400, 0.2, 0.9) == ""


def test_every_slice_is_sampled():
    seen = sampled(np.broadcast_to(np.arange(20), (446, 446, 20)))
    assert np.bincount(seen).min() > 0.9 * seen.size / 20


def test_what_most_cases_are_sets_none_apart():
    sound, raw = Spread(-1000, 0, 50, 300), Spread(0, 1000, 1050, 1300)
    assert set(odd_ones({"a": sound, "b": raw, "c": sound})) == {"b"}
    assert odd_ones({"a": raw, "b": raw, "c": sound}) == odd_ones({"a": raw}) == {}
