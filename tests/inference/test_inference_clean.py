"""Cleaning: by hand where it is small, and never where it does not help."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import examples
from support.prediction import PLAN, REGIONS, write_checkpoint
from support.toys import write_nifti

from medseg.checkpoints.reading import read_checkpoint
from medseg.cli import main
from medseg.errors import CheckpointError, DataError
from medseg.inference.choose import choose_cleaning
from medseg.inference.clean import clean
from medseg.inference.predict import Predictor
from medseg.inference.trial import Example, choose_rules
from medseg.plan.cleaning import Rule, rules_from_plain, rules_to_plain

MM3 = 2.0


def chosen(*pairs, plan=PLAN):
    """The choices on predictions and references."""
    return choose_rules([Example(f"case_{n}", *pair, MM3) for n, pair in enumerate(pairs)], plan)


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
    cleaned = clean(labels, MM3, {"liver": rule, "heart": Rule(largest_component=True)}, PLAN)
    assert (cleaned[8, 8, 6], cleaned[20, 20, 2]) == (hole, speck)
    np.testing.assert_array_equal(cleaned == 5, labels == 5)
    np.testing.assert_array_equal(labels, before)
    assert cleaned.dtype == labels.dtype


def test_another_organ_in_a_hole_stays():
    labels = organ_with_strays()
    labels[8, 8, 6] = 5
    np.testing.assert_array_equal(clean(labels, MM3, {"liver": Rule(fill_holes=True)}, PLAN), labels)


def test_diagonal_neighbours_are_one_part():
    labels = np.eye(4, dtype=np.uint8)[None]
    np.testing.assert_array_equal(clean(labels, MM3, {"liver": Rule(largest_component=True)}, PLAN), labels)


volumes = arrays.arrays(np.uint8, (5, 6, 4), elements=st.sampled_from([0, 0, 1, 5]))
some_rules = st.builds(Rule, st.booleans(), st.sampled_from([0.0, 3.0, 9.0]), st.booleans())


@given(labels=volumes, rule=some_rules)
def test_cleaning_twice_is_cleaning_once_and_touches_one_organ(labels, rule):
    once = clean(labels, MM3, {"liver": rule}, PLAN)
    np.testing.assert_array_equal(clean(once, MM3, {"liver": rule}, PLAN), once)
    np.testing.assert_array_equal(once == 5, labels == 5)
    assert set(np.unique(once)) <= {0, 1, 5}


@given(rules=st.dictionaries(st.sampled_from(PLAN.organs), some_rules))
def test_rules_survive_as_plain_data(rules):
    plain, kept = rules_to_plain(rules, PLAN), {organ: rule for organ, rule in rules.items() if not rule.idle}
    assert rules_from_plain(plain, PLAN) == kept
    of_old = [{key: value for key, value in row.items() if key != "organ"} for row in plain]
    assert rules_from_plain(of_old, PLAN) == kept, "before rules named the organ, its value did"


def test_chooses_what_raises_dice_and_leaves_the_rest_alone():
    prediction = organ_with_strays()
    reference = prediction.copy()
    reference[20:22, 20, 2] = 0  # the speck is wrong, the hole is right
    choices = chosen(*[(prediction, reference)] * 3)
    assert choices["liver"].rule == Rule(largest_component=True)
    assert choices["liver"].after == 1.0 > choices["liver"].before
    assert choices["spleen"].rule.idle
    assert (choices["spleen"].before, choices["spleen"].after) == (1.0, 1.0)


def test_true_islands_keep_their_rule_away():
    both = organ_with_strays()
    both[18:22, 18:22, 0:6] = 1
    assert chosen((both, both))["liver"].rule.idle


def test_a_rule_that_harms_as_many_cases_as_it_helps_is_no_rule():
    prediction = organ_with_strays()
    prediction[18:22, 18:22, 0:6] = 1
    without = prediction.copy()
    without[18:22, 18:22, 0:6] = 0
    assert chosen((prediction, without), (prediction, prediction))["liver"].rule.idle


def test_dice_of_the_choice_is_that_of_the_cleaned_labels():
    prediction = organ_with_strays()
    reference = np.zeros_like(prediction)
    reference[ball(prediction.shape, (9, 8, 6), 5)] = 1
    choice = chosen((prediction, reference))["liver"]
    mask = clean(prediction, MM3, {"liver": choice.rule}, PLAN) == 1
    expected = 2 * (mask & (reference == 1)).sum() / (mask.sum() + (reference == 1).sum())
    assert choice.after == pytest.approx(expected)


def test_ignored_voxels_do_not_count():
    prediction = organ_with_strays()
    reference = prediction.copy()
    reference[20:22, 20, 2] = 9
    assert chosen((prediction, reference), plan=replace(PLAN, ignore=9))["liver"].rule.idle


def blob(size, *places, shape=(40, 8, 8)):
    """Cuboids of a value along the first axis: ``size`` voxels by 4 by 4 from each place on."""
    labels = np.zeros(shape, np.uint8)
    for place in places:
        labels[place : place + size, 2:6, 2:6] = 1
    return labels


def test_no_organ_is_removed_to_gain_where_it_is_not():
    """A small liver in one case, invented ones of its size in many: any rule against these would lose that one."""
    small, nothing = blob(2, 10), np.zeros((40, 8, 8), np.uint8)
    assert chosen((small, small), *[(small, nothing)] * 9)["liver"].rule.idle
    large = blob(20, 10)  # without the case that has a small one the same rule is worth having
    assert chosen((large, large), *[(small, nothing)] * 9)["liver"].rule.minimum_mm3 == 100.0


def test_the_part_that_was_found_is_not_given_for_a_larger_stray_one():
    prediction, stray = blob(4, 4), blob(8, 25)
    many = [(blob(8, 4) | blob(2, 30), blob(8, 4))] * 5
    assert chosen(*many)["liver"].rule == Rule(largest_component=True)
    assert not chosen((prediction | stray, prediction), *many)["liver"].rule.largest_component


@examples(15)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), strays=st.integers(1, 6))
def test_no_threshold_is_above_the_smallest_part_that_references_have(sizes, strays):
    references = [blob(size, 4) for size in sizes]
    rule = chosen(*[(reference | blob(strays, 25), reference) for reference in references])["liver"].rule
    assert rule.minimum_mm3 <= min(sizes) * 16 * MM3


def test_without_any_true_part_nothing_is_removed():
    assert chosen(*[(blob(2, 10), np.zeros((40, 8, 8), np.uint8))] * 3)["liver"].rule.idle


def test_organs_that_were_not_annotated_do_not_count():
    strayed = blob(8, 4) | blob(2, 30)
    undrawn = Example("a", strayed, np.zeros_like(strayed), MM3, annotated=("spleen",))
    found = choose_rules([undrawn, Example("b", strayed, blob(8, 4), MM3)], PLAN)
    assert found["liver"].cases == {"b": (pytest.approx(8 / 9), 1.0)}


def test_a_region_is_cleaned_as_a_region():
    """The whole organ in three layers of the values 1, 5, 1: none of its values is a part of it alone."""
    sound = blob(8, 4)
    sound[6:10] *= 5
    strayed = sound | blob(2, 30)
    choices = chosen(*[(strayed, sound)] * 3, plan=REGIONS)
    assert choices["abdomen"].rule == Rule(largest_component=True)
    rules = {organ: choice.rule for organ, choice in choices.items()}
    np.testing.assert_array_equal(clean(strayed, MM3, rules, REGIONS), sound)


def test_a_region_takes_along_what_lies_in_it_and_leaves_what_lies_around_it():
    labels = blob(8, 4) | blob(3, 30)
    labels[[6, 31]] *= 5
    no_specks = {"spleen": Rule(largest_component=True)}
    assert set(np.unique(clean(labels, MM3, no_specks, REGIONS)[30:33, 2:6, 2:6])) == {1}
    assert not clean(labels, MM3, {"abdomen": Rule(largest_component=True)}, REGIONS)[30:].any()


def test_every_change_is_told():
    strayed, sound = blob(8, 4) | blob(2, 30), blob(8, 4)
    choice = chosen((strayed, sound), (sound, sound))["liver"]
    assert "changed in 1 of 2 cases (case_0 0.8889 -> 1.0000)" in choice.sentence
    assert "and 3 more" in chosen(*[(strayed, sound)] * 8)["liver"].sentence


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
    words += ["--predictions", str(folders[0]), "--references", str(folders[1])]
    assert main([*words, "--json", str(checkpoint.with_name("told.json"))]) == 0
    said = capsys.readouterr().out
    assert "keep the largest part" in said
    told = json.loads(checkpoint.with_name("told.json").read_text())["liver"]
    assert (told["rule"], told["cases"], [*told["changed"]]) == ("keep the largest part", 2, ["a", "b"])
    assert told["changed"]["a"] == told["dice"]
    assert "spleen  left alone" in said
    assert read_checkpoint(checkpoint).cleaning == rules_to_plain({"liver": Rule(largest_component=True)}, PLAN)
    assert Predictor.load([checkpoint, second], device="cpu").rules == {"liver": Rule(largest_component=True)}
    assert Predictor.load([checkpoint], device="cpu", cleaning=False).rules == {}
    assert main(["info", str(checkpoint)]) == 0
    assert "'liver': 'keep the largest part'" in capsys.readouterr().out
    assert not list(checkpoint.parent.glob(".*"))
    change = Predictor.load([checkpoint], device="cpu").settings != Predictor.load([second], cleaning=False).settings
    assert change


@pytest.mark.parametrize(("others", "rule"), [("background", True), ("ignore", False)])
def test_parts_over_what_is_left_out_count_as_was_said_of_it(tmp_path, folders, others, rule):
    """The speck lies on an organ that nobody declared: beside the liver, or neither for nor against it."""
    for path in folders[1].iterdir():
        labels = np.asarray(nib.load(path).dataobj).copy()
        labels[20:22, 20, 2] = 77
        write_nifti(path, labels, nib.load(path).affine)
    checkpoint = write_checkpoint(tmp_path / "others.ckpt", replace(PLAN, others=others, ignore=None if rule else -1))
    choices = choose_cleaning([checkpoint], *folders)
    assert choices["liver"].rule.largest_component == rule
    assert choices["liver"].before == pytest.approx(1.0) or rule


def test_what_a_reference_covers_is_known_by_value_where_its_dataset_has_other_names(checkpoint, folders):
    """Of a the liver was drawn, of b the spleen: what is predicted of the liver in b says nothing of cleaning."""
    names = {"background": 0} | {f"nom_{organ}": values for organ, values in PLAN.labels.items()}
    dataset = folders[0].with_name("dataset")
    shutil.copytree(folders[1], dataset / "labelsTr")
    shutil.copytree(folders[1], dataset / "imagesTr")
    cases = [{"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"} for case in ("a", "b")]
    drawn = {"a": ["nom_liver"], "b": ["nom_spleen"]}
    content = {"modality": {"0": "MR"}, "labels": names, "training": cases, "annotated": drawn}
    (dataset / "dataset.json").write_text(json.dumps(content))
    assert [*choose_cleaning([checkpoint], folders[0], dataset)["liver"].cases] == ["a"]


def test_an_ensemble_of_one_mind_only(checkpoint, folders):
    shutil.copy(checkpoint, checkpoint.with_name("b.ckpt"))
    choose_cleaning([checkpoint], *folders)
    with pytest.raises(CheckpointError, match="cleans otherwise"):
        Predictor.load([checkpoint, checkpoint.with_name("b.ckpt")], device="cpu")


def test_a_missing_reference_is_named(checkpoint, folders):
    (folders[1] / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"holds b without partner.*b\.nii\.gz has no reference of that name"):
        choose_cleaning([checkpoint], *folders)
    assert read_checkpoint(checkpoint).cleaning == []
    with pytest.raises(DataError, match="is not a folder"):
        choose_cleaning([checkpoint], checkpoint.parent / "nowhere", folders[1])


def test_another_grid_is_refused(checkpoint, folders):
    image = nib.load(folders[1] / "a.nii.gz")
    write_nifti(folders[1] / "a.nii.gz", np.asarray(image.dataobj)[:-1], image.affine)
    with pytest.raises(DataError, match="has shape"):
        choose_cleaning([checkpoint], *folders)
