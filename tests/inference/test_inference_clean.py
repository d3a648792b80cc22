"""Cleaning: by hand where it is small, and never where it does not help."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.prediction import write_checkpoint
from support.toys import write_nifti

from medseg.checkpoints.reading import read_checkpoint
from medseg.cli import main
from medseg.errors import CheckpointError, DataError
from medseg.inference.choose import choose_cleaning
from medseg.inference.clean import Rule, choose_rules, clean, rules_from_plain, rules_to_plain
from medseg.inference.predict import Predictor

MM = (1.0, 1.0, 2.0)


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def organ_with_strays():
    """A ball of value 1 with a hole, a speck of 1 far away, a ball of value 5 touching nothing."""
    labels = np.zeros((24, 24, 12), np.uint8)
    labels[ball(labels.shape, (8, 8, 6), 5)] = 1
    labels[8, 8, 6] = 0
    labels[20:22, 20, 2] = 1
    labels[ball(labels.shape, (18, 6, 6), 3)] = 5
    return labels


@pytest.mark.parametrize(
    ("rule", "hole", "speck"),
    [
        (Rule(), 0, 1),
        (Rule(largest_component=True), 0, 0),
        (Rule(fill_holes=True), 1, 1),
        (Rule(minimum_mm3=4.0), 0, 1),  # the speck has two voxels of 2 mm³
        (Rule(minimum_mm3=4.1), 0, 0),
        (Rule(True, 4.1, True), 1, 0),
    ],
)
def test_each_rule_by_hand(rule, hole, speck):
    labels = organ_with_strays()
    before = labels.copy()
    cleaned = clean(labels, MM, {1: rule, 77: Rule(largest_component=True)})
    assert (cleaned[8, 8, 6], cleaned[20, 20, 2]) == (hole, speck)
    np.testing.assert_array_equal(cleaned == 5, labels == 5)
    np.testing.assert_array_equal(labels, before)
    assert cleaned.dtype == labels.dtype


def test_another_organ_in_a_hole_stays():
    labels = organ_with_strays()
    labels[8, 8, 6] = 5
    np.testing.assert_array_equal(clean(labels, MM, {1: Rule(fill_holes=True)}), labels)


def test_diagonal_neighbours_are_one_part():
    labels = np.eye(4, dtype=np.uint8)[None]
    np.testing.assert_array_equal(clean(labels, MM, {1: Rule(largest_component=True)}), labels)


volumes = arrays.arrays(np.uint8, (5, 6, 4), elements=st.sampled_from([0, 0, 1, 2]))
some_rules = st.builds(Rule, st.booleans(), st.sampled_from([0.0, 3.0, 9.0]), st.booleans())


@given(labels=volumes, rule=some_rules)
def test_cleaning_twice_is_cleaning_once_and_touches_one_organ(labels, rule):
    once = clean(labels, MM, {1: rule})
    np.testing.assert_array_equal(clean(once, MM, {1: rule}), once)
    np.testing.assert_array_equal(once == 2, labels == 2)
    assert set(np.unique(once)) <= {0, 1, 2}


@given(rules=st.dictionaries(st.integers(1, 99), some_rules))
def test_rules_survive_as_plain_data(rules):
    assert rules_from_plain(rules_to_plain(rules)) == {value: rule for value, rule in rules.items() if not rule.idle}


def test_chooses_what_raises_dice_and_leaves_the_rest_alone():
    prediction = organ_with_strays()
    reference = prediction.copy()
    reference[20:22, 20, 2] = 0  # the speck is wrong, the hole is right
    choices = choose_rules([(prediction, reference, MM)] * 3, (1, 5))
    assert choices[1].rule == Rule(largest_component=True)
    assert choices[1].after == 1.0 > choices[1].before
    assert choices[5].rule.idle
    assert (choices[5].before, choices[5].after) == (1.0, 1.0)


def test_true_islands_keep_their_rule_away():
    both = organ_with_strays()
    both[18:22, 18:22, 0:6] = 1
    assert choose_rules([(both, both, MM)], (1,))[1].rule.idle


def test_a_rule_that_harms_as_many_cases_as_it_helps_is_no_rule():
    prediction = organ_with_strays()
    prediction[18:22, 18:22, 0:6] = 1
    without = prediction.copy()
    without[18:22, 18:22, 0:6] = 0
    assert choose_rules([(prediction, without, MM), (prediction, prediction, MM)], (1,))[1].rule.idle


def test_dice_of_the_choice_is_that_of_the_cleaned_labels():
    prediction = organ_with_strays()
    reference = np.zeros_like(prediction)
    reference[ball(prediction.shape, (9, 8, 6), 5)] = 1
    choice = choose_rules([(prediction, reference, MM)], (1,))[1]
    mask = clean(prediction, MM, {1: choice.rule}) == 1
    expected = 2 * (mask & (reference == 1)).sum() / (mask.sum() + (reference == 1).sum())
    assert choice.after == pytest.approx(expected)


def test_ignored_voxels_do_not_count():
    prediction = organ_with_strays()
    reference = prediction.copy()
    reference[20:22, 20, 2] = 9
    assert choose_rules([(prediction, reference, MM)], (1,), ignore=9)[1].rule.idle


def test_refuses_another_shape():
    with pytest.raises(ValueError, match="its reference"):
        choose_rules([(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), MM)], (1,))


@pytest.fixture
def checkpoint(tmp_path):
    """What medseg fit would write, without the fit."""
    return write_checkpoint(tmp_path / "a.ckpt")


@pytest.fixture
def folders(tmp_path):
    prediction = organ_with_strays()
    reference = prediction.copy()
    reference[20:22, 20, 2] = 0
    for case in ("a", "b"):
        write_nifti(tmp_path / "predictions" / f"{case}.nii.gz", prediction, np.diag([1.0, 1.0, 2.0, 1.0]))
        write_nifti(tmp_path / "references" / f"{case}.nii.gz", reference, np.diag([1.0, 1.0, 2.0, 1.0]))
    return tmp_path / "predictions", tmp_path / "references"


def test_rules_travel_in_the_checkpoint(checkpoint, folders, capsys):
    second = shutil.copy(checkpoint, checkpoint.with_name("b.ckpt"))
    words = ["choose-cleaning", "--ckpt", str(checkpoint), str(second)]
    assert main([*words, "--predictions", str(folders[0]), "--references", str(folders[1])]) == 0
    said = capsys.readouterr().out
    assert "keep the largest part" in said
    assert "spleen  left alone" in said
    assert read_checkpoint(checkpoint).cleaning == rules_to_plain({1: Rule(largest_component=True)})
    assert Predictor.load([checkpoint, second], device="cpu").rules == {1: Rule(largest_component=True)}
    assert Predictor.load([checkpoint], device="cpu", cleaning=False).rules == {}
    assert not list(checkpoint.parent.glob(".*"))
    change = Predictor.load([checkpoint], device="cpu").settings != Predictor.load([second], cleaning=False).settings
    assert change


def test_an_ensemble_of_one_mind_only(checkpoint, folders):
    shutil.copy(checkpoint, checkpoint.with_name("b.ckpt"))
    choose_cleaning([checkpoint], *folders)
    with pytest.raises(CheckpointError, match="cleans otherwise"):
        Predictor.load([checkpoint, checkpoint.with_name("b.ckpt")], device="cpu")


def test_a_missing_reference_is_named(checkpoint, folders):
    (folders[1] / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no reference for b\.nii\.gz"):
        choose_cleaning([checkpoint], *folders)
    assert read_checkpoint(checkpoint).cleaning == []
    with pytest.raises(DataError, match="holds no prediction"):
        choose_cleaning([checkpoint], checkpoint.parent / "nowhere", folders[1])


def test_another_grid_is_refused(checkpoint, folders):
    image = nib.load(folders[1] / "a.nii.gz")
    write_nifti(folders[1] / "a.nii.gz", np.asarray(image.dataobj)[:-1], image.affine)
    with pytest.raises(DataError, match="has shape"):
        choose_cleaning([checkpoint], *folders)
