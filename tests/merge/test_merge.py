"""One dataset of several: what becomes of organs, values, patients and files, and who decides."""

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from support.hospitals import HOUNSFIELD, patient, write_hospital
from support.toys import write_nifti

from medseg.cli import main
from medseg.datasets.case import read_case, read_dataset, read_weight
from medseg.datasets.split import folds
from medseg.errors import DataError, UsageError
from medseg.merge.choices import read_choices
from medseg.merge.details import details, shared
from medseg.merge.facts import coarse
from medseg.merge.findings import SHARED
from medseg.merge.merge import plan_merge, write_merge

HIPPOCAMPUS = Path(__file__).parents[3] / "shared" / "data" / "Task04_Hippocampus"


def write_three(folder):
    """Spleen in two hospitals under other values, a kidney that is misspelt, ten other cases in each."""
    write_hospital(folder / "a", {"liver": 1, "Spleen": 2}, {"liver": 1, "spleen": 2}, (0, 1, 2))
    write_hospital(folder / "b", {"spleen": 7, "kidney_left": 3}, {"spleen": 7, "kidney_left": 3}, (10, 11, 12))
    write_hospital(folder / "c", {"Liver": 9, "left-kidney": 4}, {"liver": 9, "kidney_left": 4}, (20, 21))
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three hospitals and their merge, to be read."""
    folder = write_three(tmp_path_factory.mktemp("three"))
    words = ["merge", *(str(folder / name) for name in "abc"), "--out", str(folder / "all"), "--workers", "1"]
    assert main([*words, "--rename", "left-kidney=kidney_left"]) == 0
    return folder


def merge(folder, *names, out="all", **options):
    return plan_merge([str(folder / name) for name in names], folder / out, workers=1, **options)


def kinds(merged):
    return {finding.kind for finding in merged.findings}


def test_every_voxel_means_what_its_own_hospital_said(three):
    """Read through the merge, each organ is the ball that was drawn, whatever its value was; no file was copied."""
    merged = read_dataset(three / "all")
    assert merged.labels == {"liver": 1, "Spleen": 2, "kidney_left": 3}
    assert merged.modalities == ("CT",)
    drawn = {"a": ("liver", "Spleen"), "b": ("Spleen", "kidney_left"), "c": ("liver", "kidney_left")}
    assert len(merged.cases) == 8
    for case in merged.cases:
        seed, organs = int(case.id.rsplit("_", 1)[1]), drawn[case.dataset]
        assert case.id == f"{case.dataset}_case_{seed}"
        assert case.annotated == organs
        assert case.images[0].resolve() == (three / case.dataset / "imagesTr" / f"case_{seed}.nii.gz").resolve()
        _, labels = read_case(case, merged)
        _, masks = patient(seed)
        for organ, value in merged.labels.items():
            inside = labels.array[0] == value
            expected = masks[organ.lower()] if organ in organs else np.zeros_like(inside)
            assert not (inside & ~expected).any()
            assert inside.sum() >= 0.8 * expected.sum()  # where two touch, the later was painted over
    assert sorted(path.name for path in (three / "all").iterdir()) == ["dataset.json", "merge.yaml"]


def test_the_table_tells_what_became_of_each_organ(three, capsys):
    assert main(["merge", "--yaml", str(three / "all/merge.yaml"), "--out", str(three / "all"), "--workers", "1"]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "left-kidney" in told
    assert "not drawn" in told
    assert "8 labelled cases" in told


def test_patients_and_splits_stay_within_their_hospital(tmp_path):
    """Both call their patients 1, 2, 3; folds part each hospital by itself."""
    for name, first in (("a", 0), ("b", 10)):
        seeds = tuple(range(first, first + 6))
        patients = {f"case_{seed}": str(seed % 10 // 2) for seed in seeds}
        write_hospital(tmp_path / name, {"liver": 1}, {"liver": 1}, seeds, patients=patients)
    merged = merge(tmp_path, "a", "b")
    assert write_merge(merged)
    dataset = read_dataset(tmp_path / "all")
    assert len({case.patient for case in dataset.cases}) == 6
    for fold in folds(dataset.cases, 3):
        assert sorted(case.split("_")[0] for case in fold.val) == ["a", "a", "b", "b"]
    file = tmp_path / "all/merge.yaml"
    file.write_text(file.read_text().replace("patients: apart", "patients: shared"))
    assert write_merge(plan_merge([], tmp_path / "all", yaml=file, workers=1))
    assert len({case.patient for case in read_dataset(tmp_path / "all").cases}) == 3


def test_names_unite_only_where_they_are_equal_but_for_spelling(tmp_path):
    write_hospital(tmp_path / "a", {"kidney_left": 1, "Gall Bladder": 2}, {"kidney_left": 1, "liver": 2})
    write_hospital(tmp_path / "b", {"left_kidney": 1, "gall-bladder": 2}, {"kidney_left": 1, "liver": 2}, (10, 11))
    merged = merge(tmp_path, "a", "b")
    assert merged.evidence.choices.organs == ("kidney_left", "Gall Bladder", "left_kidney")
    assert [f.remedy for f in merged.findings if f.kind == "alike"] == [
        "If they are one: --rename 'left_kidney=kidney_left'"
    ]


def test_regions_keep_their_meaning_beside_plain_labels(tmp_path):
    """One hospital has a tumour within the liver, another the liver alone, a third calls both parts liver by YAML."""
    regions = {"liver": [1, 2], "tumour": [2]}
    write_hospital(tmp_path / "a", regions, {"liver": 1, "spleen": 2})
    write_hospital(tmp_path / "b", {"liver": 5}, {"liver": 5}, (10, 11))
    write_hospital(tmp_path / "c", {"Liver": 1, "lesion": 3}, {"liver": 1, "spleen": 3}, (20, 21))
    first = merge(tmp_path, "a", "b", "c")
    assert not first.stopping
    file = tmp_path / "all/merge.yaml"
    file.write_text(file.read_text().replace("lesion: lesion", "lesion: [liver, tumour]"))
    merged = plan_merge([], tmp_path / "all", yaml=file, workers=1)
    assert write_merge(merged)
    dataset = read_dataset(tmp_path / "all")
    assert set(dataset.labels) == {"liver", "tumour"}
    for case in dataset.cases:
        _, masks = patient(int(case.id.rsplit("_", 1)[1]))
        _, labels = read_case(case, dataset)
        inside = {organ: np.isin(labels.array[0], values) for organ, values in dataset.labels.items()}
        assert (inside["liver"] >= masks["liver"]).all()
        if case.dataset == "b":
            assert case.annotated == ("liver",)
            assert not inside["tumour"].any()
        else:
            assert case.annotated is None
            assert np.array_equal(inside["tumour"], masks["spleen"])
            assert np.array_equal(inside["liver"], masks["liver"] | masks["spleen"])


def test_two_of_a_hospital_may_become_one_and_one_may_be_left_out(tmp_path):
    both = {"left kidney": 1, "right kidney": 2, "spleen": 3}
    write_hospital(tmp_path / "a", both, {"kidney_left": 1, "kidney_right": 2, "spleen": 3})
    seen = {f"case_{seed}": ["left kidney", "spleen"] for seed in (10,)}
    write_hospital(tmp_path / "b", both, {"kidney_left": 1, "kidney_right": 2, "spleen": 3}, (10, 11), annotated=seen)
    write_hospital(tmp_path / "c", {"kidney": 8}, {"kidney_left": 8, "kidney_right": 8}, (20, 21))
    merge(tmp_path, "a", "b", "c", renames=["left kidney=kidney", "right kidney=kidney"])
    file = tmp_path / "all/merge.yaml"
    content = yaml.safe_load(file.read_text())
    content["sets"]["a"]["organs"]["spleen"] = None
    file.write_text(yaml.safe_dump(content))
    assert write_merge(plan_merge([], tmp_path / "all", yaml=file, workers=1))
    dataset = read_dataset(tmp_path / "all")
    assert dataset.labels == {"kidney": 1, "spleen": 2}
    annotated = {case.id: case.annotated for case in dataset.cases}
    assert annotated["a_case_0"] == annotated["c_case_20"] == ("kidney",)
    assert annotated["b_case_10"] == ("spleen",), "half of the kidneys is not the kidneys"
    assert annotated["b_case_11"] is None
    _, labels = read_case(dataset.cases[0], dataset)
    assert set(np.unique(labels.array)) == {0, 1}


def test_ignored_and_other_values_keep_their_fate(tmp_path):
    """255 is ignored in one; in another all else is background, in a third ignored, in a fourth refused."""
    write_hospital(tmp_path / "a", {"liver": 1, "ignore": 255}, {"liver": 1, "spleen": 255})
    write_hospital(tmp_path / "b", {"liver": 4}, {"liver": 4, "spleen": 9}, (10, 11), others="background")
    write_hospital(tmp_path / "c", {"liver": 2}, {"liver": 2, "spleen": 9}, (20, 21), others="ignore")
    assert write_merge(merge(tmp_path, "a", "b", "c"))
    dataset = read_dataset(tmp_path / "all")
    assert dataset.ignore == 2
    fate = {}
    for case in dataset.cases:
        _, labels = read_case(case, dataset)
        _, masks = patient(int(case.id.rsplit("_", 1)[1]))
        (fate[case.dataset],) = np.unique(labels.array[0][masks["spleen"] & ~masks["liver"]])
    assert fate == {"a": 2, "b": 0, "c": 2}
    write_hospital(tmp_path / "d", {"liver": 2}, {"liver": 2, "spleen": 9}, (30, 31))
    with pytest.raises(DataError, match="no label names: 9"):
        merge(tmp_path, "a", "d", out="strict")


def test_raters_and_weights_come_along(tmp_path):
    """Where two raters of a case share no value, the voxel counts for nothing, by the value that is for it here."""
    root = write_hospital(tmp_path / "a", {"liver": 3}, {"liver": 3}, (0, 1))
    write_hospital(tmp_path / "b", {"spleen": 1, "liver": 2}, {"spleen": 1, "liver": 2}, (10, 11))
    _, masks = patient(0)
    second, affine = np.where(masks["liver"], 3, 0).astype(np.uint8), np.diag([2.0, 2.0, 4.0, 1.0])
    second[:14] = 0
    write_nifti(root / "second.nii.gz", second, affine)
    write_nifti(root / "weight.nii.gz", np.full(second.shape, 2.0, np.float32), affine)
    files = {
        case: {"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"} for case in ("case_0", "case_1")
    }
    files["case_0"] |= {"label": ["labelsTr/case_0.nii.gz", "second.nii.gz"], "weight": "weight.nii.gz"}
    content = {"modality": ["CT"], "labels": {"liver": 3}, "raters": "majority", "training": list(files.values())}
    (root / "dataset.json").write_text(json.dumps(content))
    assert write_merge(merge(tmp_path, "a", "b"))
    dataset = read_dataset(tmp_path / "all")
    case = next(case for case in dataset.cases if case.id == "a_case_0")
    assert len(case.raters) == 1
    assert read_weight(case, read_case(case, dataset)[0]).array.max() == 2
    _, labels = read_case(case, dataset)
    inside = masks["liver"] & (np.arange(22) >= 14)[:, None, None]
    assert np.array_equal(labels.array[0] == dataset.labels["liver"], inside)
    assert np.array_equal(labels.array[0] == dataset.ignore, masks["liver"] & ~inside)
    (tmp_path / "b/dataset.json").write_text(json.dumps({**content, "raters": "mean", "training": [
        {key: f"../a/{path}" for key, path in files["case_1"].items()}]}))  # fmt: skip
    with pytest.raises(UsageError, match="raters agree by 'majority' in a and 'mean' in b"):
        merge(tmp_path, "a", "b", out="other")


def test_a_merge_of_a_merge_is_as_one_of_all(three, tmp_path):
    """Values, origin and meaning pass through both."""
    write_hospital(tmp_path / "d", {"spleen": 1, "liver": 5}, {"spleen": 1, "liver": 5}, (30, 31))
    words = [str(tmp_path / "d"), str(three / "all")]
    assert write_merge(plan_merge(words, tmp_path / "both", workers=1))
    dataset = read_dataset(tmp_path / "both")
    assert {case.dataset for case in dataset.cases} == {"d", "all.a", "all.b", "all.c"}
    for case in dataset.cases:
        _, labels = read_case(case, dataset)
        _, masks = patient(int(case.id.rsplit("_", 1)[1]))
        for organ in case.annotated or dataset.organs:
            inside = labels.array[0] == dataset.labels[organ]
            assert inside.any()
            assert not (inside & ~masks[organ]).any()


def test_the_same_volume_is_found_however_it_is_stored(tmp_path):
    """Turned about, in other units, rounded to eight bits, or with a finer grid: one patient, who is not parted."""
    write_hospital(tmp_path / "a", {"liver": 1}, {"liver": 1}, (0, 1, 2, 3, 4))
    root = write_hospital(tmp_path / "b", {"liver": 1}, {"liver": 1}, (10, 11))
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    turned = affine @ np.array([[-1, 0, 0, 21], [0, -1, 0, 19], [0, 0, 1, 0], [0, 0, 0, 1]])
    copies = {
        "same": (patient(0)[0], patient(0)[1]["liver"], affine),
        "turned": (patient(1)[0][::-1, ::-1], patient(1)[1]["liver"][::-1, ::-1], turned),
        "scaled": ((patient(2)[0] + 1024) * 0.25, patient(2)[1]["liver"], affine),
        "bytes": (np.rint((patient(3)[0] + 1600) / 10).astype(np.uint8), patient(3)[1]["liver"], affine),
    }
    for name, (image, mask, place) in copies.items():
        write_nifti(root / "imagesTr" / f"{name}.nii.gz", image, place)
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", mask.astype(np.uint8), place)
    merged = merge(tmp_path, "a", "b", accept=["units"])
    found = {twins.cases: twins.found for twins in merged.evidence.choices.twins}
    assert set(found) == {(f"a_case_{seed}", f"b_{name}") for seed, name in enumerate(copies)}
    exact = {pair for pair, how in found.items() if how == "the same voxels"}
    assert exact == {("a_case_0", "b_same"), ("a_case_1", "b_turned")}
    assert write_merge(merged)
    patients = {case.id: case.patient for case in read_dataset(tmp_path / "all").cases}
    assert all(patients[one] == patients[other] for one, other in found)
    file = tmp_path / "all/merge.yaml"
    content = yaml.safe_load(file.read_text())
    content["twins"][0]["decision"], content["twins"][1]["decision"] = "leave_out", "apart"
    file.write_text(yaml.safe_dump(content))
    assert write_merge(plan_merge([], tmp_path / "all", yaml=file, workers=1))
    patients = {case.id: case.patient for case in read_dataset(tmp_path / "all").cases}
    assert "b_same" not in patients
    assert patients["b_turned"] != patients["a_case_1"]
    assert patients["b_bytes"] == patients["a_case_3"]


def test_a_copy_that_was_cropped_padded_or_mirrored_is_found(tmp_path):
    """Half of a scan, one in a frame of air, one mirrored, and all of it: one patient each."""
    write_hospital(tmp_path / "a", {"liver": 1}, {"liver": 1}, (0, 1, 2, 3, 4))
    root = write_hospital(tmp_path / "b", {"liver": 1}, {"liver": 1}, (10, 11))
    affine, frame = np.diag([2.0, 2.0, 4.0, 1.0]), ((4, 3), (0, 5), (2, 2))
    for seed, (name, change) in enumerate({
        "half": lambda scan: scan[:, :, :8],
        "framed": lambda scan: np.pad(scan, frame),
        "mirrored": lambda scan: scan[::-1],
        "all": lambda scan: np.pad(3 * scan[2:-2, 2:, ::-1] + 1024, frame),
    }.items()):  # fmt: skip
        image, masks = patient(seed)
        write_nifti(root / "imagesTr" / f"{name}.nii.gz", change(image), affine)
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", (change(masks["liver"]) == 1).astype(np.uint8), affine)
    merged = merge(tmp_path, "a", "b", accept=["units", "sides"])
    told = {twins.cases: twins.found for twins in merged.evidence.choices.twins}
    assert set(told) == {
        ("a_case_0", "b_half"),
        ("a_case_1", "b_framed"),
        ("a_case_2", "b_mirrored"),
        ("a_case_3", "b_all"),
    }
    assert all("details in common" in how for how in told.values())
    assert "two-organs" not in kinds(merged)
    assert write_merge(merged)
    patients = {case.id: case.patient for case in read_dataset(tmp_path / "all").cases}
    assert all(patients[one] == patients[other] for one, other in told)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real volumes are not beside this checkout")
def test_half_a_hippocampus_knows_its_own_and_no_other():
    """An eighth of the volume of every fourth of 208 real scans, mirrored and framed."""
    files = sorted((HIPPOCAMPUS / "imagesTr").glob("hippocampus_*.nii.gz"))[::4]
    scans = [nib.as_closest_canonical(nib.load(file)).get_fdata(dtype=np.float32) for file in files]
    rng, whole, parts = np.random.default_rng(0), [], []
    for scan in scans:
        edges = [(start, start + size // 2) for size in scan.shape for start in [rng.integers(size - size // 2)]]
        part = scan[tuple(slice(*edge) for edge in edges)]
        whole.append(details(scan))
        parts.append(details(np.pad(part[::-1], 3) * np.float32(0.4)))
    common = shared([*whole, *parts])
    for (one, other), count in common.items():
        assert count >= SHARED if other - one == len(scans) else count < SHARED / 2
    assert sum(other - one == len(scans) for one, other in common) == len(scans)


def test_bodies_alike_are_no_twins():
    """The coarse copies of different bodies with the same organs are far from the threshold."""
    rows = np.stack([coarse(patient(seed)[0].astype(np.float32)) for seed in range(30)])
    assert np.sort((rows @ rows.T)[~np.eye(30, dtype=bool)])[-1] < 0.97


def test_a_twin_shows_one_organ_under_two_names_and_two_under_one(tmp_path):
    write_hospital(tmp_path / "a", {"spleen": 1, "kidney_left": 2}, {"spleen": 1, "kidney_left": 2}, (0, 1, 2))
    write_hospital(tmp_path / "b", {"milz": 1, "kidney left": 2}, {"spleen": 1, "kidney_right": 2}, (2, 11))
    merged = merge(tmp_path, "a", "b", accept=["sides"])
    told = {finding.kind: finding for finding in merged.stopping}
    assert set(told) == {"two-names", "two-organs"}
    assert told["two-names"].remedy == "If they are one: --rename 'b:milz=spleen'"
    assert "'kidney_left' of a and 'kidney left' of b, united, have Dice 0.00" in told["two-organs"].problem
    assert not write_merge(merged)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"offset": 1024}, "units", "CT holds no air in b"),
        ({"mirrored": True}, "sides", "'kidney_left' lies to the right of 'kidney_right' in b"),
    ],
)
def test_what_would_poison_it_stops_it_until_accepted(tmp_path, capsys, change, kind, says):
    labels = {"kidney_left": 1, "kidney_right": 2}
    write_hospital(tmp_path / "a", labels, labels)
    write_hospital(tmp_path / "b", labels, labels, (10, 11, 12), **change)
    words = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "all"), "--workers", "1"]
    assert main(words) == 1
    told = capsys.readouterr()
    assert says in " ".join(told.out.split())
    assert f"--accept {kind}" in told.err
    assert not (tmp_path / "all/dataset.json").exists()
    assert main([*words, "--accept", kind]) == 0
    assert read_choices(tmp_path / "all/merge.yaml")[0].accept == (kind,)


def test_a_single_case_in_another_unit_is_told_of(tmp_path):
    labels = {"kidney_left": 1, "kidney_right": 2}
    write_hospital(tmp_path / "a", labels, labels)
    write_hospital(tmp_path / "b", labels, labels, (10, 11, 12))
    write_hospital(tmp_path / "raw", labels, labels, (11,), offset=1024)
    (tmp_path / "raw/imagesTr/case_11.nii.gz").replace(tmp_path / "b/imagesTr/case_11.nii.gz")
    (found,) = [finding for finding in merge(tmp_path, "a", "b").findings if finding.kind == "units"]
    assert found.problem.startswith("CT of b_case_11 has a fifth of the voxels above 700")
    assert not found.stops


def test_organs_without_a_side_in_their_name_show_a_mirror_too(tmp_path):
    labels = {"liver": 1, "spleen": 2}
    write_hospital(tmp_path / "a", labels, labels)
    write_hospital(tmp_path / "b", labels, labels, (10, 11, 12), mirrored=True)
    (finding,) = merge(tmp_path, "a", "b").stopping
    assert finding.kind == "sides"
    assert "'liver' lies beyond 'spleen' to the right in a and to the left in b" in finding.problem


def test_remarks_on_size_and_volume_stop_nothing(tmp_path):
    write_hospital(tmp_path / "a", {"liver": 1}, {"liver": 1})
    write_hospital(tmp_path / "b", {"liver": 1}, {"kidney_left": 1}, (10, 11), spacing_mm=(0.5, 0.5, 1.0))
    merged = merge(tmp_path, "a", "b")
    assert kinds(merged) >= {"spacing", "field-of-view", "volume"}
    assert not [finding for finding in merged.stopping if finding.kind != "sides"]


def test_what_is_only_to_be_predicted_stays_so(tmp_path):
    """Test images are merged as such; one that the other hospital trains on is left out of the test."""
    for name, seeds in (("a", (0, 1)), ("b", (10, 11))):
        root = write_hospital(tmp_path / name, {"liver": 1}, {"liver": 1}, seeds)
        (root / "imagesTs").mkdir()
        for other in (0, 5 + seeds[0]):
            write_nifti(root / "imagesTs" / f"new_{other}.nii.gz", patient(other)[0], np.diag([2.0, 2.0, 4.0, 1.0]))
    assert write_merge(merge(tmp_path, "a", "b"))
    dataset = read_dataset(tmp_path / "all")
    assert [case.id for case in dataset.test] == ["a_new_0", "a_new_5", "b_new_15"], "b's copy of a's case is out"
    assert len(dataset.cases) == 4


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        (["--rename", "splen=Spleen"], 2, "there is no 'splen' in a, b, c, did you mean 'spleen'"),
        (["--rename", "liver=livr"], 2, "no set has an organ 'livr', did you mean 'liver'"),
        (["--rename", "liver"], 2, "does not say what becomes of what"),
        (["--rename", "a:liver=Spleen"], 1, "has 'liver' and 'Spleen', which would be one organ"),
        (["--accept", "side"], 2, "did you mean 'sides'"),
        (["--yaml", "x.yaml"], 2, "not both"),
        (["{0}/a"], 2, "two datasets are called a"),
        (["again={0}/a"], 2, "are one dataset"),
        (["{0}/nowhere"], 1, "does not exist"),
    ],
)
def test_refuses_with_a_sentence_and_writes_nothing(three, tmp_path, capsys, more, status, says):
    words = [word.format(three) for word in ("{0}/a", "{0}/b", "{0}/c", *more)]
    assert main(["merge", *words, "--out", str(tmp_path / "out"), "--workers", "1"]) == status
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_decisions_are_not_written_over(tmp_path, capsys):
    write_three(tmp_path)
    words = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "all"), "--workers", "1"]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "all/dataset.json").exists()
    assert main(words) == 0, "the same command goes on"
    before = (tmp_path / "all/merge.yaml").read_bytes()
    assert main([*words, "--rename", "Spleen=spleen"]) == 2
    assert "holds other decisions" in capsys.readouterr().err
    assert (tmp_path / "all/merge.yaml").read_bytes() == before
    assert main([*words[:3], "--out", str(tmp_path / "b"), "--yaml", str(tmp_path / "all/merge.yaml")]) == 2
    assert main(["merge", "--yaml", str(tmp_path / "all/merge.yaml"), "--out", str(tmp_path / "b")]) == 2
    assert "is the dataset b" in capsys.readouterr().err
    write_hospital(tmp_path / "other", {"liver": 1}, {"liver": 1})
    assert main(["merge", "--yaml", str(tmp_path / "all/merge.yaml"), "--out", str(tmp_path / "other")]) == 1
    assert "holds another dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c["sets"]["a"]["organs"].pop("liver"), "does not say what becomes of 'liver' of a"),
        (lambda c: c["sets"]["a"]["organs"].update(livr="x"), "names an organ 'livr' of a, which has none, did you"),
        (lambda c: c["sets"]["a"].update(modalities=["CT", "MR"]), "names 2 channels of a, which has 1"),
        (lambda c: c["sets"]["a"].update(modalities=["MR"]), "has the channels CT, a has MR"),
        (lambda c: c["sets"]["a"].update(organs={"liver": "ignore", "Spleen": "x"}), "no organ can be called 'ignore'"),
        (lambda c: c.update(patients="both"), "patients"),
        (lambda c: c.update(twin=[]), "key of the file 'twin' is not known, did you mean 'twins'"),
        (lambda c: c.pop("sets"), "the key sets is missing"),
        (lambda c: c["sets"]["a"].update(root="nowhere"), "nowhere"),
    ],
)
def test_a_yaml_that_does_not_fit_is_refused(tmp_path, capsys, edit, says):
    write_three(tmp_path)
    organs = {"a": ["liver", "Spleen"], "b": ["spleen", "kidney_left"]}
    sets = {
        name: {"root": f"../{name}", "modalities": ["CT"], "organs": dict(zip(own, own, strict=True))}
        for name, own in organs.items()
    }
    content = {"name": "all", "sets": sets}
    edit(content)
    (tmp_path / "all").mkdir()
    file = tmp_path / "all/merge.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["merge", "--yaml", str(file), "--out", str(tmp_path / "all"), "--workers", "1"]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "all/dataset.json").exists()


def test_nothing_shared_is_one_sentence(tmp_path, capsys):
    write_hospital(tmp_path / "a", {"liver": 1}, {"liver": 1})
    write_hospital(tmp_path / "b", {"spleen": 1}, {"spleen": 1}, (10, 11))
    words = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "all"), "--workers", "1"]
    assert main(words) == 1
    assert "a (liver) shares no organ with the other sets (spleen)" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--accept", "nothing-shared"]) == 0


def test_other_channels_are_put_in_order_or_refused(tmp_path, capsys):
    """Files per channel are reordered, and one too many is left out; what lies in one file is not."""
    names = {"a": ("T1", "T2"), "b": ("t2", "t1", "flair")}
    for name, channels in names.items():
        root = write_hospital(tmp_path / name, {"liver": 1}, {"liver": 1}, (0, 1) if name == "a" else (10, 11))
        for path in sorted((root / "imagesTr").iterdir()):
            case = path.name.removesuffix(".nii.gz")
            for index, channel in enumerate(channels):
                image = patient(int(case.rsplit("_", 1)[1]))[0] + np.int16(
                    {"t1": 0, "t2": 500, "flair": 900}[channel.lower()]
                )
                write_nifti(root / "imagesTr" / f"{case}_{index:04d}.nii.gz", image, np.diag([2.0, 2.0, 4.0, 1.0]))
            path.unlink()
        (root / "dataset.json").write_text(json.dumps({"labels": {"liver": 1}, "modality": list(channels)}))
    with pytest.raises(DataError, match="has the channels T2, T1, flair, a has T1, T2"):
        merge(tmp_path, "a", "b")
    file = tmp_path / "all/merge.yaml"
    file.write_text(file.read_text().replace("flair]", "null]"))
    assert write_merge(plan_merge([], tmp_path / "all", yaml=file, workers=1))
    dataset = read_dataset(tmp_path / "all")
    for case in dataset.cases:
        image, _ = read_case(case, dataset)
        assert np.allclose(image.array[1] - image.array[0], 500)


def test_links_read_only_sources_and_a_folder_that_is_a_link(three, tmp_path):
    """Nothing is written to a source, and paths are right from wherever the merged folder truly lies."""
    source = tmp_path / "source"
    source.mkdir()
    for part in ("imagesTr", "labelsTr"):
        (source / part).symlink_to(os.path.relpath(three / "a" / part, source))
    shutil.copy(three / "a/dataset.json", source)
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/away")
    before = sorted((path, path.stat().st_mtime_ns) for path in (three / "b").rglob("*"))
    source.chmod(0o555)
    try:
        assert write_merge(plan_merge([str(source), str(three / "b")], tmp_path / "near/all", workers=1))
    finally:
        source.chmod(0o755)
    dataset = read_dataset(tmp_path / "far/away/all")
    assert all(read_case(case, dataset)[1] is not None for case in dataset.cases)
    assert sorted((path, path.stat().st_mtime_ns) for path in (three / "b").rglob("*")) == before
    assert not json.loads((tmp_path / "far/away/all/dataset.json").read_text())["training"][0]["image"].startswith("/")


def test_a_source_whose_description_changes_afterwards_is_told(tmp_path, capsys):
    write_three(tmp_path)
    assert write_merge(merge(tmp_path, "a", "b"))
    description = tmp_path / "a/dataset.json"
    description.write_text(description.read_text().replace('"liver": 1', '"liver": 3'))
    assert main(["verify", str(tmp_path / "all"), "--workers", "1"]) == 1
    assert "as it was before that file changed" in capsys.readouterr().err


def test_labels_off_their_image_and_broken_files_are_named(tmp_path, capsys):
    write_three(tmp_path)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    write_nifti(tmp_path / "a/labelsTr/case_1.nii.gz", np.zeros((22, 20, 12), np.uint8), affine)
    words = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "all"), "--workers", "1"]
    assert main(words) == 1
    assert "labelsTr/case_1.nii.gz has another affine" in capsys.readouterr().err
    (tmp_path / "a/imagesTr/case_1.nii.gz").write_bytes(gzip.compress(b"no image"))
    assert main(words) == 1
    assert "case_1.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "all/dataset.json").exists()


def test_a_copy_of_a_merge_stands_alone(three, tmp_path):
    """`verify --fix` gathers the files; what becomes of the sources later is nothing to it."""
    root = tmp_path / "hospitals"
    shutil.copytree(three, root)
    assert main(["verify", str(root / "all"), "--fix", str(tmp_path / "copy"), "--workers", "1"]) == 0
    for name in "abc":
        shutil.rmtree(root / name)
    dataset = read_dataset(tmp_path / "copy")
    assert len(dataset.cases) == 8
    assert read_case(dataset.cases[0], dataset)[0].array.max() < max(HOUNSFIELD.values()) + 100
