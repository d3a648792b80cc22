"""Folds: a partition, patients kept whole, the same for the same seed; split files checked."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medseg.datasets.case import Case
from medseg.datasets.split import Fold, folds, read_split
from medseg.errors import DataError, UsageError


def make_cases(patients: list[int]) -> list[Case]:
    return [Case(f"case_{index}", (), None, f"patient_{patient}") for index, patient in enumerate(patients)]


@st.composite
def patients_and_n(draw):
    patients = draw(st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1))
    return patients, draw(st.integers(2, len(set(patients))))


@given(patients_and_n(), st.integers(0, 2**31))
def test_folds_are_a_partition_that_keeps_patients_whole(drawn, seed):
    patients, n = drawn
    cases = make_cases(patients)
    patient_of = {case.id: case.patient for case in cases}
    made = folds(cases, n, seed=seed)
    assert len(made) == n
    assert sorted(case for fold in made for case in fold.val) == sorted(patient_of)
    for fold in made:
        assert fold.val
        assert set(fold.train) | set(fold.val) == set(patient_of)
        assert not {patient_of[case] for case in fold.train} & {patient_of[case] for case in fold.val}


@given(patients_and_n(), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_folds_do_not_depend_on_the_order_of_the_cases(drawn, seed, random):
    patients, n = drawn
    cases = make_cases(patients)
    shuffled = random.sample(cases, len(cases))
    by_patient = {fold.val for fold in folds(cases, n, seed=seed)}
    assert {fold.val for fold in folds(shuffled, n, seed=seed)} == by_patient


@given(st.integers(5, 60), st.integers(0, 99))
def test_fold_sizes_differ_by_one_where_every_case_is_a_patient(count, seed):
    sizes = [len(fold.val) for fold in folds(make_cases(list(range(count))), 5, seed=seed)]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_changes_the_folds_and_nothing_else_does():
    cases = make_cases(list(range(20)))
    assert folds(cases, 5, seed=1) == folds(cases, 5, seed=1)
    assert folds(cases, 5, seed=1) != folds(cases, 5, seed=2)


def test_folds_are_the_ones_of_yesterday():
    # other values would let the training cases of models that exist already leak into their validation
    yesterday = Fold(("case_1", "case_2", "case_3", "case_4"), ("case_0", "case_5"))
    assert folds(make_cases(list(range(6))), 3, seed=0)[0] == yesterday


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_number_of_folds_that_cannot_be(n):
    with pytest.raises(UsageError, match=r"between 2 and the number of patients \(3\)"):
        folds(make_cases([0, 0, 1, 2]), n)


@pytest.mark.parametrize(("name", "dump"), [("splits_final.json", json.dumps), ("split.yaml", yaml.safe_dump)])
def test_a_split_file_is_read_as_it_is(tmp_path, name, dump):
    path = tmp_path / name
    path.write_text(dump([{"train": ["case_2", "case_0"], "val": ["case_1"]}]))
    assert read_split(path, make_cases([0, 1, 2, 3])) == (Fold(("case_0", "case_2"), ("case_1",)),)


def test_folds_written_to_a_file_come_back(tmp_path):
    cases = make_cases([0, 0, 1, 2, 3, 4])
    made = folds(cases, 3)
    path = tmp_path / "split.json"
    path.write_text(json.dumps([{"train": fold.train, "val": fold.val} for fold in made]))
    assert read_split(path, cases) == made


WRONG = {
    "empty": ("", "no list of folds"),
    "not JSON": ("[{", "is not (valid JSON|YAML)"),
    "an object": ('{"train": []}', "no list of folds"),
    "no folds": ("[]", "no list of folds"),
    "no val": ('[{"train": ["case_0"]}]', 'no "val" cases in fold 0'),
    "empty train": ('[{"train": [], "val": ["case_0"]}]', 'no "train" cases in fold 0'),
    "a number": ('[{"train": [0], "val": ["case_0"]}]', "not text"),
    "unknown": ('[{"train": ["cas_0"], "val": ["case_1"]}]', "did you mean 'case_0'"),
    "unknown without guess": ('[{"train": ["zzz"], "val": ["case_1"]}]', "remove it"),
    "twice": ('[{"train": ["case_0", "case_0"], "val": ["case_2"]}]', "twice"),
    "leak": ('[{"train": ["case_0", "case_2"], "val": ["case_2"]}]', "'case_2' in both train and val"),
    "leak by patient": ('[{"train": ["case_0"], "val": ["case_1"]}]', "patient 'patient_0' in both"),
}


@pytest.mark.parametrize("ending", ["json", "yaml"])
@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_split_file_that_cannot_be_is_answered_with_a_sentence(tmp_path, ending, text, words):
    path = tmp_path / f"split.{ending}"
    path.write_text(text)
    if (text, ending) == ("", "json"):
        words = "not valid JSON"
    with pytest.raises(DataError, match=words):
        read_split(path, make_cases([0, 0, 1]))


def test_a_split_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_split(tmp_path / "split.json", make_cases([0, 1]))
