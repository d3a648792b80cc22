"""Several label files per case and weight maps: how raters agree, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialects import CASES, rated, write_rated
from support.toys import write_nifti

from medseg.datasets.case import read_case, read_dataset
from medseg.datasets.drawn import agreed
from medseg.errors import DataError
from medseg.space.volume import Volume
from medseg.verify.repair import repair
from medseg.verify.verify import verify

IGNORE = 9


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_the_value_of_most_raters_counts_and_a_tie_does_not(raters, seed):
    drawn = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (raters, 1, 6, 2, 1))
    found = agreed([Volume(one, np.eye(4)) for one in drawn], IGNORE).array
    for place in np.ndindex(found.shape):
        votes = Counter(int(one[place]) for one in drawn if one[place] != IGNORE).most_common()
        sure = len(votes) == 1 or (len(votes) > 1 and votes[0][1] > votes[1][1])
        assert found[place] == (votes[0][0] if sure else IGNORE)


@pytest.mark.parametrize("dialect", ["lists", "nnunet", "folders", "patterns", "bids"])
def test_every_dialect_finds_raters_and_weights(dialect, tmp_path):
    root = write_rated(tmp_path / "data", dialect, "majority")
    dataset = read_dataset(root)
    assert dataset.ignore == IGNORE
    assert [len(case.drawn) for case in dataset.cases] == [3] * 4
    assert [case.weight is not None for case in dataset.cases] == [False, True, True, True]
    for case, index in zip(dataset.cases, CASES.values(), strict=True):
        image, labels = read_case(case, dataset)
        np.testing.assert_array_equal(labels.array[0], rated(index)[1][0])
        np.testing.assert_array_equal(image.array[0], rated(index)[0])
    report = verify(root, workers=1)
    assert [problem for problem in report.problems if not problem.harmless] == []
    assert not [problem for problem in report.problems if problem.kind == "unlisted"]


def test_raters_need_not_have_drawn_every_case_and_a_copy_keeps_them(tmp_path):
    root = write_rated(tmp_path / "data", "folders", "majority")
    (root / "labelsTr" / "toy_0.nii.gz").unlink()
    (root / "labelsB" / "toy_1.nii.gz").unlink()
    cases = read_dataset(root).cases
    assert [[path.parent.name for path in case.drawn] for case in cases[:2]] == [
        ["labelsB", "labelsC"],
        ["labelsTr", "labelsC"],
    ]
    repair(verify(root, workers=1), tmp_path / "copy")
    assert [len(case.drawn) for case in read_dataset(tmp_path / "copy").cases] == [2, 2, 3, 3]


def change(root, **content):
    file = root / "dataset.json"
    described = json.loads(file.read_text()) | content
    file.write_text(json.dumps({key: value for key, value in described.items() if value is not None}))


BAD = {
    "no agreement": ({"raters": None}, r"lists 3 label files of case 'toy_0', and nothing says how they agree"),
    "another agreement": ({"raters": "staple"}, r"says \"raters\": 'staple', which is no way to agree"),
    "no folder of weights": ({"weight_folder": "nowhere"}, r"nowhere is missing"),
    "misspelt": ({"weights_folder": "weights"}, r"did you mean 'weight_folder'"),
}


@pytest.mark.parametrize("name", BAD)
def test_descriptions_that_mean_nothing_are_refused(name, tmp_path):
    content, sentence = BAD[name]
    root = write_rated(tmp_path / "data", "folders", "majority")
    change(root, **content)
    with pytest.raises(DataError, match=sentence):
        read_dataset(root)


def test_a_weight_map_of_no_case_is_named(tmp_path):
    root = write_rated(tmp_path / "data", "folders", "majority")
    (root / "weights" / "toy_1.nii.gz").rename(root / "weights" / "toy_7.nii.gz")
    with pytest.raises(DataError, match=r"toy_7.nii.gz is the weight map of no case"):
        read_dataset(root)


WEIGHTS = {
    "negative": (lambda weight: weight - 2, "holds weights from -2 to 0.5"),
    "all 0": (lambda weight: weight * 0, "holds weights from 0 to 0"),
    "NaN": (lambda weight: np.where(weight == 0, np.nan, weight), "NaN or infinite"),
    "of another grid": (lambda weight: weight[1:], "has shape"),
    "of two channels": (lambda weight: np.stack([weight, weight], -1), "2 channels, expected one weight a voxel"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be_meant_are_refused_by_verify_and_prepare_alike(name, tmp_path):
    from support.toys import oblique_affine

    from medseg.store.prepare import prepare

    root = write_rated(tmp_path / "data", "folders", "majority")
    damage, sentence = WEIGHTS[name]
    write_nifti(root / "weights" / "toy_1.nii.gz", damage(rated(1)[2]), oblique_affine(1))
    found = [problem for problem in verify(root, workers=1).problems if not problem.harmless]
    assert [(problem.case, problem.kind, problem.file.name) for problem in found] == [
        ("toy_1", "weight", "toy_1.nii.gz")
    ]
    assert sentence in found[0].problem
    with pytest.raises(DataError, match=sentence):
        prepare(root, tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()


def test_a_rater_on_another_grid_or_with_a_strange_value_is_named(tmp_path):
    from support.toys import oblique_affine

    root = write_rated(tmp_path / "data", "folders", "majority")
    write_nifti(root / "labelsB" / "toy_1.nii.gz", rated(1)[1][1] * 3, oblique_affine(1))
    write_nifti(root / "labelsC" / "toy_2.nii.gz", rated(2)[1][1][1:], oblique_affine(2))
    found = [problem for problem in verify(root, workers=1).problems if not problem.harmless]
    assert [(problem.kind, problem.file.parent.name) for problem in found] == [
        ("undeclared", "labelsB"),
        ("shape", "labelsC"),
    ]


def test_two_raters_who_differ_leave_voxels_that_count_for_nothing_and_verify_counts_them(tmp_path):
    from medseg.store.prepare import prepare

    root = write_rated(tmp_path / "data", "folders", "majority", weighted=False)
    (root / "labelsTr" / "toy_3.nii.gz").unlink()  # which has ignored voxels
    (root / "labelsB" / "toy_3.nii.gz").unlink()
    change(root, label_folder=["labelsTr", "labelsB"], labels={"liver": 1, "spleen": 5})
    (root / "imagesTr" / "toy_3.nii.gz").unlink()
    dataset = read_dataset(root)
    assert dataset.ignore == -1
    store = prepare(root, tmp_path / "store", workers=1)
    tied = {}
    for case in dataset.cases:
        one, two, _ = rated(CASES[case.id])[1]
        tied[case.id] = int((one != two).sum())
        assert store.info(case.id).voxels[-1] > 0
        np.testing.assert_array_equal(read_case(case, dataset)[1].array[0] == -1, one != two)
    told = {problem.case: problem.problem for problem in verify(root, workers=1).problems if problem.kind == "tie"}
    assert {
        case: f"agree on no value for {number} voxels" in told[case] for case, number in tied.items()
    } == dict.fromkeys(tied, True)


def test_a_folder_of_one_rater_is_the_reference_itself(tmp_path):
    from medseg.datasets.matching import read_references

    root = write_rated(tmp_path / "data", "folders", "majority")
    both, one = read_references(root), read_references(root / "labelsB")
    assert len(both.raters["toy_0"]) == 2
    assert one.raters == {}
    assert one.labels["toy_0"] == root / "labelsB" / "toy_0.nii.gz"
    assert one.organs == both.organs
