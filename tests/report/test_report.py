"""Evaluation: what is written, what is said of bad cases, and how numbers are summed up."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from scipy.stats import bootstrap

from medseg.datasets.matching import References
from medseg.errors import DataError, UsageError
from medseg.metrics import Outcome
from medseg.report.evaluate import evaluate
from medseg.report.html import render
from medseg.report.ranking import holm, signed_rank_p
from medseg.report.rows import columns, read_rows
from medseg.report.summary import bootstrap_means, summarise
from medseg.report.tables import print_summary
from medseg.report.two_runs import SECOND, compare_runs, print_comparison

ORGANS = {"liver": 1, "spleen": 5}
HIPPOCAMPUS = Path(__file__).parents[3] / "shared" / "data" / "Task04_Hippocampus"


def save(path, voxels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 1.0, 1.0, 1.0]) if affine is None else affine), path)


def labels(*, liver=True, spleen=True, shift=0):
    voxels = np.zeros((10, 12, 8), np.uint8)
    voxels[2:6, 2 + shift : 7 + shift, 2:6] = liver
    if spleen:
        voxels[7:9, 3:6, 3:5] = 5
    return voxels


@pytest.fixture
def folders(tmp_path):
    """Three cases: one perfect, one shifted that misses its spleen, one that invents a spleen."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for case, prediction, reference in (
        ("a", labels(), labels()),
        ("b", labels(shift=1, spleen=False), labels()),
        ("c", labels(), labels(spleen=False)),
    ):
        save(predictions / f"{case}.nii.gz", prediction)
        save(references / f"{case}.nii.gz", reference)
    return predictions, references


def run(folders, tmp_path, **options):
    return evaluate(*folders, output=tmp_path / "out", **{"organs": ORGANS, **options})


def printed(evaluation):
    console = Console(record=True, width=120, file=io.StringIO())
    print_summary(evaluation, console)
    return console.export_text()


def test_summary_and_rows_say_what_was_done_by_hand(folders, tmp_path):
    evaluation = run(folders, tmp_path)
    assert (evaluation.exit_status, evaluation.failures) == (0, ())
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    liver = [1.0, 2 * 64 / 160, 1.0]  # 4x5x4 voxels, shifted by one of five
    assert summary["cases"] == 3
    assert summary["organs"]["liver"]["dice"]["mean"] == pytest.approx(np.mean(liver))
    assert summary["organs"]["liver"]["dice"]["std"] == pytest.approx(np.std(liver, ddof=1))
    assert summary["organs"]["liver"]["dice"]["median"] == 1.0
    spleen = summary["organs"]["spleen"]
    assert {key: spleen[key] for key in ("found", "missed", "false", "absent")} == {
        "found": 1, "missed": 1, "false": 1, "absent": 0,
    }  # fmt: skip
    assert spleen["dice"]["mean"] == pytest.approx(1 / 3)
    assert spleen["dice"]["mean_where_present"] == pytest.approx(1 / 2)
    assert spleen["hd95_mm"]["mean"] == pytest.approx(2 / 3 * math.hypot(20, 12, 8))
    assert summary["mean_dice"] == pytest.approx((np.mean(liver) + 1 / 3) / 2)
    low, high = summary["organs"]["liver"]["dice"]["ci95"]
    assert low <= np.mean(liver) <= high
    with (tmp_path / "out/cases.csv").open() as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == columns()
    assert lines[0][:5] == ["case", "organ", "dice", "hd95_mm", "nsd"]
    assert [line[:3] for line in lines[1:3]] == [["a", "liver", "1"], ["a", "spleen", "1"]]


def test_rows_come_back_from_the_file(folders, tmp_path):
    evaluation = run(folders, tmp_path)
    rows = read_rows(tmp_path / "out/cases.csv")
    assert [(row.case, row.organ, row.scores.outcome) for row in rows] == [
        (row.case, row.organ, row.scores.outcome) for row in evaluation.rows
    ]
    assert [row.scores.hd95_mm for row in rows] == pytest.approx([r.scores.hd95_mm for r in evaluation.rows], rel=1e-5)


def test_the_same_files_give_the_same_numbers_whatever_the_workers(folders, tmp_path):
    first = run(folders, tmp_path, workers=1)
    text = (tmp_path / "out/summary.json").read_text(encoding="utf-8")
    second = run(folders, tmp_path, workers=4)
    assert first.summary == second.summary
    assert (tmp_path / "out/summary.json").read_text(encoding="utf-8") == text


def _truncated(p, r):
    whole = (p / "b.nii.gz").read_bytes()
    (p / "b.nii.gz").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("harm", "case", "reason"),
    [
        (lambda p, r: (p / "b.nii.gz").rename(p / "bb.nii.gz"), "bb", "has no reference of that name"),
        (lambda p, r: (p / "b.nii.gz").unlink(), "b", "holds no prediction b"),
        (lambda p, r: save(p / "b.nii.gz", labels()[:-1]), "b", "has shape (9, 12, 8), its reference has (10, 12, 8)"),
        (lambda p, r: save(p / "b.nii.gz", labels(), np.diag([-2.0, 1, 1, 1])), "b", "another affine"),
        (
            lambda p, r: save(p / "b.nii.gz", labels() + 2),
            "b",
            "3 values that no label names: 2, 3, 7",
        ),
        (lambda p, r: save(r / "b.nii.gz", labels() * 2), "b", "that no label names"),
        (lambda p, r: save(p / "b.nii.gz", labels() * 0.5), "b", "not whole numbers"),
        (_truncated, "b", "b.nii.gz"),
        (lambda p, r: save(p / "b.nii.gz", np.zeros((10, 12, 8, 3), np.uint8)), "b", "has 3 channels"),
    ],
)
def test_a_bad_case_is_named_and_the_rest_is_done(folders, tmp_path, harm, case, reason):
    harm(*folders)
    evaluation = run(folders, tmp_path)
    assert evaluation.exit_status == 1
    assert [row.case for row in evaluation.rows] == ["a", "a", "c", "c"]
    failure = next(failure for failure in evaluation.failures if failure.case == case)
    assert reason in failure.reason
    assert failure.reason in printed(evaluation)
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert {"case": case, "reason": failure.reason} in summary["failures"]
    assert summary["cases"] == 2


def test_no_good_case_at_all_still_leaves_a_summary(folders, tmp_path):
    for name in "abc":
        save(folders[0] / f"{name}.nii.gz", labels()[:-1])
    evaluation = run(folders, tmp_path)
    assert (evaluation.summary.mean_dice, evaluation.summary.cases, len(evaluation.failures)) == (None, 0, 3)
    assert "3 cases could not be scored" in printed(evaluation)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("missing", [True, False])
def test_an_empty_or_missing_folder_is_an_error_that_names_it(folders, tmp_path, side, missing):
    places = list(folders)
    places[side] = tmp_path / "nothing"
    if not missing:
        places[side].mkdir()
    with pytest.raises(DataError, match="nothing"):
        run(places, tmp_path)
    assert not (tmp_path / "out").exists()


def test_surfaces_may_be_weighed_by_area(folders, tmp_path):
    by_voxels, by_areas = (run(folders, tmp_path, element=element) for element in ("voxels", "areas"))
    assert by_voxels.summary.mean_dice == by_areas.summary.mean_dice
    assert by_voxels.rows != by_areas.rows
    assert json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))["surface_element"] == "areas"


def test_progress_is_shown_where_it_is_asked_for(folders, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True)
    run(folders, tmp_path, console=console)
    assert "scoring" in console.file.getvalue()


def test_two_files_of_one_case_are_named(folders, tmp_path):
    save(folders[0] / "b.nii", labels())
    with pytest.raises(DataError, match=r"b.nii and b.nii.gz could both be case b"):
        run(folders, tmp_path)


def test_an_output_that_is_a_file_is_refused_before_any_work(folders, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(DataError, match="cannot be written to"):
        run(folders, tmp_path)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf, {"liver": -1.0}])
def test_a_tolerance_that_is_no_length_is_refused(folders, tmp_path, tolerance):
    with pytest.raises(UsageError, match="is no length"):
        run(folders, tmp_path, tolerance_mm=tolerance)


def test_without_organs_and_without_labels_there_is_nothing_to_score(tmp_path):
    folders = tmp_path / "p", tmp_path / "r"
    for folder in folders:
        save(folder / "a.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(DataError, match="holds no label, and no prediction does"):
        run(folders, tmp_path, organs=None)
    assert run(folders, tmp_path).summary.mean_dice == 1


def test_without_organs_every_value_seen_is_one(folders, tmp_path):
    evaluation = run(folders, tmp_path, organs=None)
    assert evaluation.organs == {"label 1": 1, "label 5": 5}


def test_only_the_named_cases_count(folders, tmp_path):
    evaluation = run(folders, tmp_path, cases=["a", "d"])
    assert {row.case for row in evaluation.rows} == {"a"}
    assert [failure.case for failure in evaluation.failures] == ["d"]


def test_overlapping_regions_as_masks_and_as_values(folders, tmp_path):
    organs = {"any": (1, 5), "spleen": 5}
    by_values = run(folders, tmp_path, organs=organs)
    for path in folders[0].iterdir():
        voxels = np.asarray(nib.load(path).dataobj)
        save(path, np.stack([voxels > 0, voxels == 5], axis=-1).astype(np.uint8))
    assert run(folders, tmp_path, organs=organs).rows == by_values.rows


def test_a_dataset_names_organs_and_ignored_voxels(toy_dataset, tmp_path):
    predictions = tmp_path / "predictions"
    for path in (toy_dataset / "labelsTr").iterdir():
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).astype(np.uint8)
        voxels[voxels == 9] = 1  # whatever is predicted there counts for nothing
        save(predictions / path.name, voxels, image.affine)
    evaluation = evaluate(predictions, toy_dataset, output=tmp_path / "out")
    assert set(evaluation.organs) == {"liver", "spleen"}
    assert evaluation.summary.mean_dice == 1.0
    absent = [row.case for row in evaluation.rows if row.scores.outcome is Outcome.ABSENT]
    assert absent == ["toy_2"]
    assert set(evaluation.images) >= {row.case for row in evaluation.rows}


def test_a_label_folder_inside_a_dataset_takes_its_names(toy_dataset, tmp_path):
    evaluation = evaluate(toy_dataset / "labelsTr", toy_dataset / "labelsTr", output=tmp_path / "out", cases=["toy_0"])
    assert (set(evaluation.organs), evaluation.scoring.ignore) == ({"liver", "spleen"}, 9)
    assert "toy_0" in evaluation.images


def test_a_list_of_references_made_elsewhere(folders, tmp_path):
    listed = References({"a": folders[1] / "a.nii.gz"}, {}, ORGANS, None, all_expected=True)
    evaluation = evaluate(folders[0], listed, output=tmp_path / "out", cases=["a"])
    assert (evaluation.exit_status, evaluation.summary.mean_dice) == (0, 1.0)


def test_a_part_of_a_dataset_may_be_predicted(toy_dataset, tmp_path):
    path = sorted((toy_dataset / "labelsTr").iterdir())[0]
    image = nib.load(path)
    save(tmp_path / "predictions" / path.name, np.asarray(image.dataobj), image.affine)
    evaluation = evaluate(tmp_path / "predictions", toy_dataset, output=tmp_path / "out")
    assert (evaluation.exit_status, evaluation.not_predicted) == (0, 3)
    assert "3 further cases" in printed(evaluation)


def test_what_was_drawn_is_known_by_value_where_organs_are_called_otherwise(toy_dataset, tmp_path):
    content = json.loads((toy_dataset / "dataset.json").read_text())
    content["annotated"] = {"toy_0": ["liver"]}
    (toy_dataset / "dataset.json").write_text(json.dumps(content))
    named = {"foie": 1, "rate": 5, "both": (1, 5)}
    found = evaluate(toy_dataset / "labelsTr", toy_dataset, output=tmp_path / "a", organs=named)
    rows = [row.organ for row in found.rows if row.case == "toy_0"]
    assert rows == ["foie"]
    assert len(found.rows) == 1 + 2 * 3  # a prediction with the ignored value of toy_3 is refused
    content["annotated"] = {f"toy_{case}": ["liver"] for case in range(4)}
    (toy_dataset / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is called annotated in 3 cases, but with none of both"):
        evaluate(toy_dataset / "labelsTr", toy_dataset, output=tmp_path / "b", organs={"both": (1, 5)})


@pytest.mark.parametrize(
    ("table", "options"),
    [
        ("case, organ, dice\na, liver, 0.5\n", {}),
        ("case,organ,hd95_mm,dice\na,liver,inf,0.5\nb,liver,,0.5\n,,,\n", {}),
        ("case,organ,dice,outcome\na,liver,0.5,good\n", {}),
        ("case,organ,dice,dataset\na,liver,0.5,X\na,liver,0.7,Y\n", {"dataset": "X"}),
        ("case,organ,dice,by,fold\na,liver,0.5,A,1\na,liver,0.6,A,2\na,liver,0.7,B,1\n", {"by": "A", "fold": "1"}),
    ],
)
def test_a_table_of_others_is_read_for_the_measure_that_is_asked_for(tmp_path, table, options):
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    write_cases(ours, {"liver": {"a": 0.5, "b": 0.5}})
    ours.write_text(re.sub(r",0$", ",", ours.read_text(), flags=re.MULTILINE))  # cases of one dataset
    theirs.write_text(table)
    assert compare_runs(ours, theirs, where=options).mean.entry(SECOND).change.mean == 0
    theirs.write_text("case,organ,dice,by,fold\na,liver,0.5,A,2\na,liver,0.7,B,1\n")
    with pytest.raises(DataError, match=r"has no row whose fold is '2' and whose by is 'B'\. Choose one of 1\."):
        compare_runs(ours, theirs, where={"by": "B", "fold": "2"})


def test_organs_that_a_reference_does_not_cover_have_no_row(toy_dataset, tmp_path):
    description = json.loads((toy_dataset / "dataset.json").read_text(encoding="utf-8"))
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (toy_dataset / "labelsTr").iterdir())
    (toy_dataset / "dataset.json").write_text(json.dumps({**description, "annotated": {cases[0]: ["liver"]}}))
    for case in cases[:2]:
        image = nib.load(toy_dataset / "labelsTr" / f"{case}.nii.gz")
        save(tmp_path / "predictions" / f"{case}.nii.gz", np.asarray(image.dataobj), image.affine)
    evaluation = evaluate(tmp_path / "predictions", toy_dataset, output=tmp_path / "out")
    assert [(row.case, row.organ) for row in evaluation.rows] == [
        (cases[0], "liver"), (cases[1], "liver"), (cases[1], "spleen"),
    ]  # fmt: skip
    assert evaluation.summary.organs["spleen"].found == 1


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real volumes are not beside this checkout")
def test_real_labels_against_themselves_are_perfect(tmp_path):
    for path in sorted((HIPPOCAMPUS / "labelsTr").iterdir())[:3]:
        (tmp_path / "predictions").mkdir(exist_ok=True)
        (tmp_path / "predictions" / path.name).write_bytes(path.read_bytes())
    evaluation = evaluate(tmp_path / "predictions", HIPPOCAMPUS, output=tmp_path / "out")
    assert set(evaluation.organs) == {"Anterior", "Posterior"}
    assert (evaluation.summary.mean_dice, evaluation.summary.cases) == (1.0, 3)


def test_bootstrap_interval_is_scipys():
    values = np.random.default_rng(1).beta(8, 2, 40)
    ours = np.percentile(bootstrap_means(values[:, None]), [2.5, 97.5])
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=0).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=2e-3)


def test_a_single_case_has_no_spread(folders, tmp_path):
    evaluation = run(folders, tmp_path, cases=["b"])
    dice = evaluation.summary.organs["liver"].measures["dice"]
    assert (dice.std, dice.ci95) == (0.0, (0.8, 0.8))
    assert summarise(()).mean_dice is None
    assert "0.800 ±" not in printed(evaluation)
    assert "±" not in render(evaluation, title="One").partition("<tbody>")[2]


def write_cases(path, dice):
    """Write a cases.csv with this Dice by organ and case, everything else 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        writer = csv.DictWriter(file, columns())
        writer.writeheader()
        for organ, values in dice.items():
            for case, value in values.items():
                row = {**dict.fromkeys(columns(), "0"), "case": case, "organ": organ, "outcome": "found", "dice": value}
                writer.writerow(row)
    return path


def test_two_runs_are_compared_organ_by_organ(tmp_path):
    names = [f"case_{index}" for index in range(12)]
    a = {"liver": dict.fromkeys(names, 0.8), "spleen": dict.fromkeys(names, 0.5)}
    better = {name: 0.8 + 0.001 * (index + 1) for index, name in enumerate(names)}
    b = {"liver": better, "spleen": {**dict.fromkeys(names, 0.5), "case_7": 0.1, "extra": 0.9}, "Spleen": {"extra": 1}}
    comparison = compare_runs(write_cases(tmp_path / "a/cases.csv", a).parent, write_cases(tmp_path / "b.csv", b))
    liver, spleen = (ranking.entry(SECOND) for ranking in comparison.organs)
    assert liver.p == pytest.approx(2 / 2**12)  # all twelve signs agree: the smallest p there is
    assert (liver.p_holm, spleen.p_holm) == pytest.approx((2 * liver.p, 1.0))
    assert (liver.differs, spleen.differs) == (True, False)
    assert (liver.higher, liver.lower, spleen.higher, spleen.lower) == (12, 0, 0, 1)
    assert (comparison.changes[0].case, comparison.changes[0].organ) == ("case_7", "spleen")
    assert (comparison.only["first run"], comparison.only["second run"]) == ([], ["extra"])
    console = Console(record=True, width=100, file=io.StringIO())
    print_comparison(comparison, console)
    text = console.export_text()
    assert "case_7" in text
    assert "Only in the second run: extra" in text
    assert "Only in the second run, organs: Spleen" in text
    assert "+0.000" not in text[text.index("Changed most") :]


@pytest.mark.parametrize("width", [20, 80, 300])
def test_no_number_is_cut_in_a_narrow_terminal(width, tmp_path):
    organs = {"Anterior": {"one": 0.8, "two": 0.7}, "Posterior": {"one": 0.6, "two": 0.8}}
    comparison = compare_runs(*(write_cases(tmp_path / name / "cases.csv", organs).parent for name in "ab"))
    console = Console(record=True, width=width, file=io.StringIO())
    print_comparison(comparison, console)
    text = console.export_text()
    assert "…" not in text
    assert re.search(r"mean of organs +2 +0\.725 +0\.725 +\+0\.0000 \[\+0\.0000, \+0\.0000\] ", text)
    assert console.width == width


def test_a_published_table_is_held_against_a_run(tmp_path):
    """Such as nnU-Net's Dice of each case: other columns, several programs, no outcomes."""
    names = [f"case_{index}" for index in range(20)]
    ours = write_cases(tmp_path / "ours.csv", {"liver": dict.fromkeys(names, 0.8), "spleen": dict.fromkeys(names, 0.6)})
    theirs = tmp_path / "published.csv"
    gain = {"A": 0.01, "B": -0.02}
    rows = [
        f"{program},{name},{organ},{dice + gain[program] * index / 10:.4f}"
        for program in gain
        for index, name in enumerate(names)
        for organ, dice in (("liver", 0.8), ("spleen", 0.6))
    ]
    theirs.write_text("\n".join(["program,case,organ,dice", *rows]))
    with pytest.raises(DataError, match="--where"):
        compare_runs(ours, theirs)
    with pytest.raises(UsageError, match=r"'prog' is no column .*, did you mean 'program'"):
        compare_runs(ours, theirs, where={"prog": "A"})
    with pytest.raises(DataError, match="Choose one of A, B"):
        compare_runs(ours, theirs, where={"program": "C"})
    with pytest.raises(UsageError, match="'hd95' is no column"):
        compare_runs(ours, theirs, measure="hd95", where={"program": "A"})
    for program, step in gain.items():
        comparison = compare_runs(ours, theirs, where={"program": program})
        change = comparison.mean.entry(SECOND).change
        assert change.mean == pytest.approx(step * 0.95, abs=1e-4)
        assert change.ci95[0] < change.mean < change.ci95[1]
        assert abs(change.ci95[1] - change.ci95[0]) == pytest.approx(
            2 * 1.96 * abs(step) * np.std(np.arange(20) / 10) / 20**0.5, rel=0.1
        )
    console = Console(record=True, width=120, file=io.StringIO())
    print_comparison(comparison, console)
    assert "mean of organs" in console.export_text()


def test_scores_against_other_labels_are_not_compared(folders, tmp_path):
    """Of two references in one place, the file as it is packed does not matter; what it says does."""
    results = [evaluate(*folders, output=tmp_path / name, organs=ORGANS).output for name in ("one", "two", "three")]
    path = folders[1] / "a.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj)
    save(path, voxels.astype(np.int16), nib.load(path).affine)
    evaluate(*folders, output=results[1], organs=ORGANS)
    assert compare_runs(*results[:2]).doubts == []
    voxels[0, 0, 0] = 1 - voxels[0, 0, 0]
    save(path, voxels, nib.load(path).affine)
    evaluate(*folders, output=results[2], organs=ORGANS, tolerance_mm=3.0)
    with pytest.raises(DataError, match=r"three/cases.csv was scored against other labels than .*one/cases.csv \(a\)"):
        compare_runs(results[0], results[2])
    evaluate(*folders, output=results[0], organs=ORGANS)
    assert "Surfaces were measured differently" in compare_runs(results[0], results[2]).doubts[0]
    (results[0] / "summary.json").unlink()
    assert "Whether the labels were the same cannot be told" in compare_runs(results[0], results[2]).doubts[0]


def test_equal_runs_do_not_differ():
    assert signed_rank_p(np.zeros(5)) == 1.0
    noise = np.array([0.9 - 0.8, 0.7 - 0.8, 0.3 - 0.2, 0.4 - 0.5, 0.6 - 0.5, 0.1])  # all of one size, but as floats
    assert signed_rank_p(noise) == signed_rank_p(np.array([1.0, -1.0, 1.0, -1.0, 1.0, 1.0]))
    assert holm([1.0, 1.0]) == [1.0, 1.0]


def line(dice):
    return (
        ",".join({"case": "a", "organ": "liver", "outcome": "found", "dice": dice}.get(c, "0") for c in columns())
        + "\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("case,organ\n", "holds no case"),
        ("case,organ\na,liver\n", "lacks the column dice"),
        (",".join(columns()) + "\n" + ",".join("x" for _ in columns()) + "\n", "bad cell"),
        (",".join(columns()) + "\n" + line("nan"), r"bad cell for liver of a \(nan is no score\)"),
        ("case,organ,dice\na,liver,0,85\n", "more cells in row 2 than columns, the last of them '85'"),
        ("\ufeff" + ",".join(columns()) + "\n" + line("0.5") + line("0.6"), "scores liver of a 2 times"),
    ],
)
def test_a_bad_cases_csv_is_named(tmp_path, text, message):
    path = tmp_path / "cases.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_runs_without_a_common_case_and_measures_without_a_column(tmp_path):
    a = write_cases(tmp_path / "a.csv", {"liver": {"x": 1}})
    b = write_cases(tmp_path / "b.csv", {"liver": {"y": 1}})
    with pytest.raises(DataError, match="shares no case"):
        compare_runs(a, b)
    c = write_cases(tmp_path / "c.csv", {"Leber": {"x": 1}})
    with pytest.raises(DataError, match=r"scores other organs than .*: Leber, there liver"):
        compare_runs(a, c)
    with pytest.raises(UsageError, match="did you mean 'dice'"):
        compare_runs(a, a, measure="dise")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,organ,dice\nx,liver,87.4\n", r"a dice of 87\.4 \(liver of x\), expected 0 to 1\. Divide percentages"),
        ("case,organ,dice\nx,liver,-1\n", r"a dice of -1 .*, expected 0 to 1\. Leave out"),
        ("case;organ;dice\nx;liver;0.8\n", r"it has case;organ;dice.*commas between its columns case, organ and dice"),
    ],
)
def test_a_table_of_another_kind_is_refused(tmp_path, text, message):
    ours = write_cases(tmp_path / "ours.csv", {"liver": {"x": 0.5}})
    (tmp_path / "theirs.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        compare_runs(ours, tmp_path / "theirs.csv")


def test_columns_are_known_however_they_are_capitalised(tmp_path):
    ours = write_cases(tmp_path / "ours.csv", {"liver": {"x": 0.5}})
    (tmp_path / "theirs.csv").write_text("Case, Organ,Dice,recall\nx,liver,0.75,75\n")
    assert compare_runs(ours, tmp_path / "theirs.csv").changes[0].b == 0.75
