"""Pictures of cases: what is drawn where, in which colour, and what is written beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.datasets.case import read_case, read_dataset
from medseg.errors import DataError
from medseg.pictures.panels import colour, overlay, picture
from medseg.pictures.slices import slices
from medseg.space.labels import IGNORED
from medseg.space.volume import Volume
from medseg.verify.case_pictures import draw, names_of_values, spread_out, write_figures


def dominant(rgb: np.ndarray, value: int) -> np.ndarray:
    """Where the pure colour of a label, as in a legend, is seen."""
    return (rgb == np.array(colour(value))).all(-1)


def test_a_few_cases_spread_over_the_dataset(toy_dataset, tmp_path):
    written = write_figures(toy_dataset, tmp_path / "figures", cases=2)
    assert [path.name for path in written] == ["toy_0.png", "toy_3.png"]
    pillow = pytest.importorskip("PIL.Image")
    rgb = np.asarray(pillow.open(written[0]))
    assert dominant(rgb, 1).sum() == dominant(rgb, 5).sum() == 15 * 15  # the boxes of the legend
    coloured = rgb.max(axis=-1) != rgb.min(axis=-1)
    assert 0.02 < coloured.mean() < 0.5


def test_what_cannot_be_read_is_left_out(toy_dataset, tmp_path):
    (toy_dataset / "labelsTr/toy_0.nii.gz").unlink()
    assert [path.name for path in write_figures(toy_dataset, tmp_path / "figures", cases=2)] == ["toy_3.png"]
    with pytest.raises(DataError, match="does not exist"):
        write_figures(toy_dataset, tmp_path / "none", cases=1)


def test_a_folder_that_cannot_be_written(toy_dataset, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written .*choose another place"):
        write_figures(toy_dataset, tmp_path / "file", cases=1)


def test_every_modality_has_a_row_and_ignored_voxels_are_named(toy_dataset):
    dataset = replace(read_dataset(toy_dataset), modalities=("T1", "T2"))
    image, labels = read_case(read_dataset(toy_dataset).cases[3], read_dataset(toy_dataset))
    two = Volume(np.concatenate([image.array, -image.array]), image.affine)
    one_row = draw(image, labels, replace(dataset, modalities=("T1",)), title="one")
    two_rows = draw(two, labels, dataset, title="two")
    assert two_rows.shape[1] == one_row.shape[1]
    alone = draw(image, None, replace(dataset, modalities=("T1",)), title="alone")
    assert two_rows.shape[0] - one_row.shape[0] == alone.shape[0] - 24  # a title is 24 high
    assert one_row[-24:].tolist() != draw(image, None, replace(dataset, modalities=("T1",)), title="x")[-24:].tolist()


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64])
def test_a_picture_does_not_depend_on_the_type_of_the_label_file(toy_dataset, kind):
    dataset = read_dataset(toy_dataset)
    image, labels = read_case(dataset.cases[3], dataset)
    assert (labels.array == dataset.ignore).any()
    stored = replace(labels, array=labels.array.astype(kind))
    expected = replace(labels, array=np.where(labels.array == dataset.ignore, IGNORED, labels.array.astype(np.int64)))
    assert (draw(image, stored, dataset, title="") == draw(image, expected, dataset, title="")).all()


VOXELS = np.zeros((8, 10, 6), dtype=np.uint8)


def drawn(voxels: np.ndarray, spacing_mm=(1.0, 1.0, 1.0), title: str = "") -> np.ndarray:
    volume = Volume(voxels[None], np.diag([*spacing_mm, 1.0]))
    return picture(volume, None, windows=[(0.0, 255.0)], title=title, names={})


@pytest.mark.parametrize(
    ("axis", "far", "where"),
    [  # a plate at the far end of an RAS axis, and where it must be seen: (panel, side)
        (0, 7, (0, "left")),
        (0, 7, (1, "left")),
        (1, 9, (0, "top")),
        (1, 9, (2, "left")),
        (2, 5, (1, "top")),
        (2, 5, (2, "top")),
    ],
)
def test_right_and_front_are_left_and_the_head_is_up(axis, far, where):
    volume = VOXELS.copy()
    np.moveaxis(volume, axis, 0)[far] = 255
    panel, side = where
    rgb = drawn(volume)
    widths = [8 * 40, 8 * 40, 10 * 40]  # axial (i, j), coronal (i, k), sagittal (j, k) at 40 pixels per mm
    heights = [10 * 40, 6 * 40, 6 * 40]
    left = sum(widths[:panel]) + 6 * panel
    tile = rgb[24 : 24 + heights[panel], left : left + widths[panel]].mean(-1)
    bright = tile[:40] if side == "top" else tile[:, :40]
    assert bright.mean() > 240
    assert np.delete(tile, np.s_[:40], axis=0 if side == "top" else 1).mean() < 15


def test_proportions_are_true_and_all_views_share_one_scale():
    rgb = drawn(VOXELS + 255, (1.0, 1.0, 5.0))
    dark = drawn(VOXELS, (1.0, 1.0, 5.0))[24:].max(-1) == 0
    scale = 400 / 30  # pixels per mm: six slices of 5 mm are the longest edge
    assert rgb.shape[0] == 24 + 400 + 6
    assert dark[0].sum() == pytest.approx((8 + 8 + 10) * scale, abs=2)
    assert dark[:, 0].sum() == pytest.approx(10 * scale, abs=20)  # but for the letters in the first panel
    assert dark[:, 200].sum() == 400  # within the second


def test_the_slice_shown_counts_small_organs_as_much_as_large_ones():
    labels = np.zeros((20, 20, 20), dtype=int)
    labels[:, 5:15, 5:15] = 1
    labels[3, 7, 7] = 2
    assert slices(labels.shape, labels)[0] == 3
    assert slices((5, 7, 9), None) == slices((5, 7, 9), np.zeros((5, 7, 9), int)) == (2, 3, 4)


def test_colours_differ_where_a_dataset_has_many_labels():
    distances = {
        (a, b): sum(abs(x - y) for x, y in zip(colour(a), colour(b), strict=True))
        for a in range(1, 120)
        for b in range(a + 1, min(a + 14, 120))
    }
    assert min(distances.values()) > 60


def test_ignored_voxels_are_darker_and_background_is_clear():
    drawn = overlay(np.full((1, 3), 100, np.uint8), np.array([[0, IGNORED, 4]]))
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[0, 1].tolist() == [50, 50, 50]
    assert len(set(drawn[0, 2].tolist())) > 1


def test_names_of_overlapping_regions():
    assert names_of_values({"whole": (1, 2), "core": (2,)}) == {1: "whole", 2: "whole + core"}


def test_few_cases_are_all_drawn(toy_dataset):
    cases = read_dataset(toy_dataset).cases
    assert spread_out(cases, 9) == cases
    assert spread_out((), 4) == ()


@pytest.mark.parametrize(("text", "twin"), [("Nüsse", "Nusse"), ("☃", "?")])
def test_letters_without_a_shape_of_their_own(text, twin):
    titled = [drawn(VOXELS, title=title) for title in (text, twin)]
    np.testing.assert_array_equal(*titled)
    assert titled[0][:24].min() < 60  # and something is written


def test_volumes_of_any_orientation_look_the_same(tmp_path, toy_dataset):
    dataset = read_dataset(toy_dataset)
    image, labels = toy_case(0)
    flipped = oblique_affine(0) @ np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[:3, 3] = oblique_affine(0)[:3, 3] + oblique_affine(0)[:3, 0] * (image.shape[0] - 1)
    for part, voxels in (("imagesTr", image), ("labelsTr", labels)):
        write_nifti(toy_dataset / part / "toy_1.nii.gz", voxels[::-1], flipped)
    one, other = (draw(*read_case(case, dataset), dataset, title="same") for case in dataset.cases[:2])
    np.testing.assert_array_equal(one, other)


def test_paths_are_named_after_cases(toy_dataset, tmp_path):
    assert write_figures(toy_dataset / "dataset.json", tmp_path, cases=1) == (Path(tmp_path / "toy_0.png"),)
