"""Sweeps: what is kept, what goes on, what is named. A quick stand-in does what `medseg fit` and `medseg test` do."""

import csv
import io
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import ttest_rel, wilcoxon

from medseg.checkpoints.run import Run
from medseg.errors import DataError, UsageError
from medseg.experiments import trial
from medseg.experiments.comparison_files import write_comparison, write_comparison_csv
from medseg.experiments.comparison_jobs import comparison_jobs
from medseg.experiments.comparison_page import JobComparison, dice_plot
from medseg.experiments.data import JobData
from medseg.experiments.executors import ClusterExecutor, LocalExecutor, environments
from medseg.experiments.job import LOCK, Job, State
from medseg.experiments.results import Result, read_result
from medseg.experiments.sweep import JobEnd, run_sweep
from medseg.experiments.trainings import by_training, training_rows
from medseg.machine.files import locked
from medseg.metrics.cases import OrganScores
from medseg.metrics.empty import Outcome
from medseg.pictures.charts import standalone
from medseg.report.ranking import MEAN, holm, rank_runs
from medseg.report.rows import CaseRow, columns, measures, write_rows
from medseg.report.scores import SavedScores

STAND_IN = f"""
import json, os, sys, time
from pathlib import Path

command, words = sys.argv[1], sys.argv[2:]
run = Path(words[words.index("--run") + 1])
name = words[words.index("--model.loss") + 1] if "--model.loss" in words else ""
with (run.parent / "calls.txt").open("a") as calls:
    calls.write(" ".join([run.name, command, *(["last"] if "last" in words else [])]) + "\\n")
if command == "fit":
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "config.yaml").write_text("trust: []")
    (run / "metrics.csv").write_text(
        "step,val/dice,time/elapsed_s,time/compute_median_s,memory/peak_gib\\n"
        "1,0.5,60,,\\n1,,,0.02,1.5\\n3,0.75,120,,\\n3,,,0.04,2.5\\n"
    )
    if name == "dead":
        sys.exit("medseg: the gradient was not finite. Lower model.lr.")
    if name == "killed":
        os.kill(os.getpid(), 9)
    (run / "checkpoints" / "last.ckpt").write_text("")
    if name == "slow" and "last" not in words:
        time.sleep(60)
    (run / "threads.txt").write_text(os.environ.get("OMP_NUM_THREADS", "") + os.environ.get("CUDA_VISIBLE_DEVICES", ""))
else:
    (run / "test").mkdir()
    columns = {",".join(columns())!r}
    lines = [columns]
    for number in range(4):
        row = dict.fromkeys(columns.split(","), "0") | {{"case": f"c{{number}}", "organ": "liver", "outcome": "found"}}
        row["dice"] = str(0.5 + number / 10)
        lines.append(",".join(row.values()))
    (run / "test" / "cases.csv").write_text("\\n".join(lines) + "\\n")
    (run / "test" / "summary.json").write_text(json.dumps({{"failures": []}}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Jobs by loss, each a matter of milliseconds; ``dead`` and ``killed`` fail, ``slow`` hangs until it is resumed."""
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(trial, "PROGRAM", (sys.executable, "-S", str(path)))
    monkeypatch.setattr("medseg.experiments.sweep._GLANCE_S", 0.02)
    return tmp_path / "sweep"


def jobs_of(output, *losses, extra=()):
    return comparison_jobs(extra, losses, (), output)


def sweep(jobs, executor=None):
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115  # closed below
    try:
        return run_sweep(jobs, executor or LocalExecutor(), console=console)
    finally:
        console.file.close()


def calls(output):
    return (output / "calls.txt").read_text(encoding="utf-8").splitlines()


def test_a_dead_job_is_named_and_the_others_go_on(stand_in):
    outcomes = sweep(jobs_of(stand_in, "dice", "dead", "killed", "focal"))
    assert [outcome.failure for outcome in outcomes] == [
        None,
        "the gradient was not finite. Lower model.lr",
        "was ended by SIGKILL, as the system does when memory is short",
        None,
    ]
    assert calls(stand_in) == ["dice fit", "dice test", "dead fit", "killed fit", "focal fit", "focal test"]


def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing(stand_in):
    jobs = jobs_of(stand_in, "dice", "slow", "focal")

    def stop_when_slow_trains():
        while not (stand_in / "slow" / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_when_slow_trains, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep(jobs)
    assert signal.getsignal(signal.SIGTERM) is before
    assert [job.read_state() for job in jobs] == [State.DONE, State.INTERRUPTED, State.NEW]
    assert calls(stand_in) == ["dice fit", "dice test", "slow fit"]
    outcomes = sweep(jobs)
    assert [(outcome.failure, outcome.kept) for outcome in outcomes] == [(None, True), (None, False), (None, False)]
    assert calls(stand_in)[3:] == ["slow fit last", "slow test", "focal fit", "focal test"]


def test_a_training_that_died_before_its_first_checkpoint_begins_anew(stand_in):
    (job, _) = jobs_of(stand_in, "dice", "focal")
    job.claim()
    (job.run / "metrics.csv").write_text("step\n7\n")
    (job.run / "events").mkdir()
    sweep([job])
    assert "7" not in (job.run / "metrics.csv").read_text().split()
    assert not (job.run / "events").exists()


def test_a_folder_of_other_settings_is_refused_before_anything_starts(stand_in, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("a: 1")
    words = ("--config", str(config), "--trainer.max_steps")
    sweep(jobs_of(stand_in, "dice", "focal", extra=(*words, "2")))
    with pytest.raises(UsageError, match="2 there, 4 now"):
        sweep(jobs_of(stand_in, "dice", "focal", extra=(*words, "4")))
    config.write_text("a: 2")
    with pytest.raises(UsageError, match=r"config .* there, config .* now"):
        sweep(jobs_of(stand_in, "dice", "focal", extra=(*words, "2")))
    (stand_in / "tversky").mkdir()
    (stand_in / "tversky" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="no part of a sweep"):
        sweep(jobs_of(stand_in, "tversky", "focal"))
    assert len(calls(stand_in)) == 4


BEFORE = JobData({"a": "1", "b": "2"}, {"c": "3"}, {"patch_size": [8, 8, 8]}, "weights")
CHANGES = {
    "a was changed": JobData({"a": "9", "b": "2"}, {"c": "3"}, BEFORE.plan),
    "d is new": JobData({"a": "1", "b": "2", "d": "4"}, {"c": "3"}, BEFORE.plan),
    "c is gone": JobData({"a": "1", "b": "2"}, {}, BEFORE.plan),
    "b, c are in another part of the split": JobData({"a": "1", "c": "3"}, {"b": "2"}, BEFORE.plan),
    "the file of model.init_from was changed": replace(BEFORE, start="others"),
    "patch_size of the plan was changed": JobData(BEFORE.train, BEFORE.held_out, {"patch_size": [8, 8, 4]}),
}


def on(jobs, data):
    return [replace(job, data=data) for job in jobs]


@pytest.mark.parametrize("said", CHANGES)
def test_a_job_that_was_done_on_other_data_is_not_taken(stand_in, said):
    jobs = jobs_of(stand_in, "dice", "slow")
    sweep(on(jobs[:1], BEFORE))
    assert [end.kept for end in sweep(on(jobs[:1], BEFORE))] == [True]
    with pytest.raises(DataError, match=f"{said} since. Remove that folder to train it again") as refused:
        sweep(on(jobs, CHANGES[said]))
    assert str(refused.value).startswith(str(jobs[0].run))
    assert len(calls(stand_in)) == 2
    shutil.rmtree(jobs[0].run)
    sweep(on(jobs[:1], CHANGES[said]))
    assert len(calls(stand_in)) == 4


def test_a_job_that_only_waited_takes_the_data_of_now_and_one_that_trained_does_not(stand_in):
    waiting, begun = jobs_of(stand_in, "dice", "focal")
    for job in on((waiting, begun), BEFORE):
        job.claim()
    (begun.run / "checkpoints").mkdir()
    (begun.run / "checkpoints" / "last.ckpt").write_text("")
    with pytest.raises(DataError, match="a was changed"):
        sweep(on([begun], CHANGES["a was changed"]))
    assert sweep(on([waiting], CHANGES["a was changed"]))[0].failure is None
    assert sweep(on([waiting], CHANGES["a was changed"]))[0].kept


def test_of_an_older_sweep_it_is_told_that_nobody_knows_its_data(stand_in):
    jobs = jobs_of(stand_in, "dice", "focal")
    sweep(jobs)  # which notes no data
    console = Console(file=io.StringIO(), width=200)
    assert all(end.kept for end in run_sweep(on(jobs, BEFORE), LocalExecutor(), console=console))
    assert "cannot be told of dice, focal" in console.file.getvalue()
    assert all(end.kept for end in run_sweep(on(jobs, BEFORE), LocalExecutor(), console=console))


def test_two_sweeps_do_not_work_in_one_folder(stand_in):
    (job, _) = jobs_of(stand_in, "dice", "focal")
    job.claim()
    with locked(job.run / LOCK):
        (outcome,) = sweep([job])
    assert "worked in by another process" in outcome.failure
    with locked(Run(job.run).lock):  # a training whose sweep was killed
        (outcome,) = sweep([job])
    assert "worked in by another process" in outcome.failure
    assert sweep([job])[0].failure is None


def test_jobs_side_by_side_share_cores_and_devices(stand_in, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("medseg.experiments.executors.usable_cores", lambda: 8)
    slots = environments(2, ["3", "5"])
    assert slots == [{"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": d} for d in "35"]
    assert environments(1, []) == [{}]
    jobs = jobs_of(stand_in, *(f"loss{number}" for number in range(4)))
    sweep(jobs, LocalExecutor(None, ["3", "5"]))
    seen = {(job.run / "threads.txt").read_text() for job in jobs}
    assert seen <= {"43", "45"}
    with pytest.raises(UsageError, match="at least 1"):
        LocalExecutor(0)


@pytest.mark.slow
def test_a_cluster_does_the_same(stand_in, tmp_path):
    """submitit's local executor stands in for SLURM."""
    pytest.importorskip("submitit")
    jobs = jobs_of(stand_in, "dice", "dead")
    executor = ClusterExecutor(tmp_path / "logs", options={"timeout_min": 5}, cluster="local")
    good, dead = sweep(jobs, executor)
    assert (good.failure, dead.failure) == (None, "the gradient was not finite. Lower model.lr")
    assert jobs[0].read_state() is State.DONE
    assert sweep(jobs[:1], executor)[0].kept
    with pytest.raises(UsageError, match="submitit refuses"):
        ClusterExecutor(tmp_path / "logs", options={"no_such_option": 1}, cluster="local")


@pytest.mark.parametrize(
    ("losses", "nets", "message"),
    [(["dice"], [], "at least two"), ([], ["unet"], "at least two"), (["dice", "dice"], [], "given twice")],
)
def test_a_comparison_needs_two_that_differ(losses, nets, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        comparison_jobs((), losses, nets, tmp_path)


def test_networks_and_losses_are_crossed_in_folders_of_their_own(tmp_path):
    jobs = comparison_jobs(("--a", "1"), ["dice + focal", "dice - focal"], ["unet", "vnet"], tmp_path)
    assert len({job.run for job in jobs}) == 4
    assert jobs[0].title == "unet · dice + focal"
    assert jobs[-1].words == ("--a", "1", "--model.net", "vnet", "--model.loss", "dice - focal")


def test_each_loss_is_trained_once_per_seed(tmp_path):
    jobs = comparison_jobs(("--a", "1"), ["dice", "focal"], [], tmp_path, [3, 5])
    assert [job.title for job in jobs] == [f"{loss} · seed {seed}" for loss in ("dice", "focal") for seed in (3, 5)]
    assert [job.compared for job in jobs] == ["dice", "dice", "focal", "focal"]
    assert jobs[1].words == ("--a", "1", "--model.loss", "dice", "--seed_everything", "5", "--data.seed", "5")
    assert len({job.run for job in jobs}) == 4
    with pytest.raises(UsageError, match="'3' is given twice"):
        comparison_jobs((), ["dice", "focal"], [], tmp_path, [3, 3])


def row(case, organ, dice, outcome=Outcome.FOUND):
    numbers = dict.fromkeys(measures(), 0.0) | {"dice": float(dice), "hd95_mm": 10 * (1 - dice)}
    return CaseRow(case, organ, OrganScores(outcome, numbers))


def result(title, scores, tmp_path=Path("nowhere")):
    rows = tuple(row(f"c{n:02d}", organ, d) for organ, values in scores.items() for n, d in enumerate(values))
    job = Job(title, tmp_path / title, (), {"loss": title})
    curve = ((1.0, 0.2), (2.0, 0.8))
    return Result(job, SavedScores(job.run, rows), curve, curve, 12.0, 1.5)


def rank(results, **options):
    return rank_runs({one.job.title: one.scores.rows for one in results}, **options)


RNG = np.random.default_rng(0)
GOOD = RNG.uniform(0.7, 0.9, 20)
SCORES = {
    "worse": {"liver": GOOD - 0.1, "spleen": GOOD - 0.05},
    "good": {"liver": GOOD, "spleen": GOOD},
    "as good": {"liver": GOOD + RNG.normal(0, 1e-3, 20), "spleen": GOOD + 1e-3},
}


def test_ranks_and_p_values_are_those_of_scipy_and_holm():
    rankings = rank([result(*item) for item in SCORES.items()])
    assert [ranking.organ for ranking in rankings] == [MEAN, "liver", "spleen"]
    raw, got = [], []
    for ranking in rankings[1:]:
        means = {title: np.mean(scores[ranking.organ]) for title, scores in SCORES.items()}
        best = max(means, key=means.get)
        assert [entry.title for entry in ranking.entries] == sorted(means, key=means.get, reverse=True)
        assert [entry.rank for entry in ranking.entries] == [1, 2, 3]
        assert ranking.reference == best
        for entry in ranking.entries:
            assert entry.measures["dice"].mean == pytest.approx(means[entry.title])
            low, high = entry.measures["dice"].ci95
            assert low < means[entry.title] < high
            if entry.title != best:
                changes = SCORES[entry.title][ranking.organ] - SCORES[best][ranking.organ]
                raw.append(wilcoxon(changes).pvalue)
                got.append(entry.p_holm)
    assert got == pytest.approx(holm(raw))
    last = rankings[1].entries[-1]
    assert (last.title, last.differs, last.higher, last.lower) == ("worse", True, 0, 20)


def test_a_baseline_is_what_the_others_are_tested_against():
    (mean, *_) = rank([result(*item) for item in SCORES.items()], baseline="worse")
    assert mean.reference == "worse"
    assert {entry.title: entry.median_change is None for entry in mean.entries} == {
        "good": False,
        "as good": False,
        "worse": True,
    }
    assert all(entry.higher == 20 for entry in mean.entries if entry.title != "worse")


def test_equal_jobs_share_a_rank_and_a_missed_organ_is_counted():
    rows = (row("c1", "liver", 0.0, Outcome.MISSED), row("c1", "spleen", 0.9), row("c2", "liver", 0.8))
    mean, liver, spleen = rank_runs({"one": rows, "two": rows})
    assert [entry.rank for entry in mean.entries] == [1, 1]
    assert mean.entries[0].measures["dice"].mean == pytest.approx((0.45 + 0.8) / 2)
    assert (liver.entries[0].missed, liver.entries[0].cases, spleen.entries[0].cases) == (1, 2, 1)
    assert mean.entries[1].p_holm == 1.0


def test_everything_is_written_and_says_what_failed(tmp_path):
    results = [result(title, scores, tmp_path) for title, scores in SCORES.items()]
    outcomes = [JobEnd(one.job, None) for one in results]
    outcomes.append(JobEnd(Job("a < b", tmp_path / "dead", ()), "the gradient was not finite"))
    comparison = JobComparison(
        "3 losses", tuple(outcomes), tuple(results), rank(results), None, "medseg compare", "model: {}", 2
    )
    files = {path.name: path.read_text(encoding="utf-8") for path in write_comparison(comparison, tmp_path)}
    assert {"report.html", "compare.csv", "compare.md", "dice_0.svg", "curves_steps.svg", "cost.svg"} <= set(files)
    for text in (files["report.html"], files["compare.md"]):
        assert "the gradient was not finite" in text
        assert "2 jobs shared the machine" in text
    assert "a &lt; b" in files["report.html"]
    assert "http" not in files["report.html"].replace("http://www.w3.org/2000/svg", "")
    shown = [line.split("](")[1].rstrip(")") for line in files["compare.md"].splitlines() if line.startswith("![")]
    assert set(shown) == {name for name in files if name.endswith(".svg")}
    rows = list(csv.DictReader(files["compare.csv"].splitlines()))
    assert len(rows) == 3 * 2 * 20
    best = [float(row["dice"]) for row in rows if (row["job"], row["organ"]) == ("good", "liver")]
    assert best == pytest.approx(GOOD, rel=1e-5)


def trained(title, seed, scores, tmp_path):
    one = result(f"{title} · seed {seed}", scores, tmp_path)
    return replace(one, job=replace(one.job, facts={"loss": title, "seed": str(seed)}))


def test_the_chance_of_a_training_has_an_interval_of_its_own(tmp_path):
    """SciPy's of the paired t test over seeds; a training without its pair takes no part."""
    chance = {title: np.random.default_rng(number).normal(0, 0.01, 4) for number, title in enumerate(SCORES)}
    results = [
        trained(title, seed, {organ: values + shift for organ, values in SCORES[title].items()}, tmp_path)
        for title, shifts in chance.items()
        for seed, shift in enumerate(shifts if title != "worse" else shifts[:3])
    ]
    rows = {title: [row for one in results if one.job.compared == title for row in one.scores.rows] for title in SCORES}
    rankings = rank_runs(rows, baseline="good")
    assert [entry.cases for entry in rankings[0].entries] == [20] * 3
    of = {one.title: one for one in by_training(results, "good")}
    assert of["good"].change is of["good"].interval is None
    mean = {title: np.mean([*SCORES[title].values()]) + chance[title] for title in SCORES}
    for title, seeds in (("worse", 3), ("as good", 4)):
        assert [*of[title].dice.values()] == pytest.approx(mean[title][:seeds])
        tested = ttest_rel(mean[title][:seeds], mean["good"][:seeds]).confidence_interval(0.95)
        assert of[title].interval == pytest.approx((tested.low, tested.high))
        low, high = of[title].interval
        assert training_rows([of[title]])[0][-1].endswith(" *") == (low > 0 or high < 0)
    ends = tuple(JobEnd(one.job, None) for one in results)
    comparison = JobComparison("3 losses", ends, tuple(results), rankings, "good", "medseg compare", "model: {}")
    files = {path.name: path.read_text(encoding="utf-8") for path in write_comparison(comparison, tmp_path)}
    for text in (files["report.html"], files["compare.md"]):
        assert "One training beside another" in text
        assert "t interval" in text
        assert "One seed" not in text
    assert {line["seed"] for line in csv.DictReader(files["compare.csv"].splitlines())} == {"0", "1", "2", "3"}
    assert [one.job.compared for one in comparison.order] == [entry.title for entry in rankings[0].entries]


def test_one_training_of_each_says_nothing_of_their_chance(tmp_path):
    assert by_training([result(title, scores, tmp_path) for title, scores in SCORES.items()], "good") == ()


def test_costs_and_curves_come_from_the_log_of_the_run(stand_in):
    jobs = jobs_of(stand_in, "dice", "focal")
    sweep(jobs)
    found = read_result(jobs[0])
    assert found.dice_by_step == ((1.0, 0.5), (3.0, 0.75))
    assert found.dice_by_minute == ((1.0, 0.5), (2.0, 0.75))
    assert (found.step_ms, found.peak_gib, found.minutes) == (pytest.approx(30.0), 2.5, 2.0)
    assert found.summary.mean_dice == pytest.approx(0.65)
    write_comparison_csv(stand_in / "compare.csv", [found])
    write_rows(stand_in / "again.csv", found.scores.rows)
    ours = [line.split(",", 4)[4] for line in (stand_in / "compare.csv").read_text().splitlines()]
    assert ours == (stand_in / "again.csv").read_text().splitlines()


def test_a_plot_is_one_svg_that_parses():
    from xml.etree import ElementTree

    (mean, *_) = rank([result(*item) for item in SCORES.items()])
    tree = ElementTree.fromstring(standalone(dice_plot(mean)))
    assert tree.tag.endswith("svg")
    circles = [float(dot.get("cx")) for dot in tree.iter("{http://www.w3.org/2000/svg}circle")]
    assert circles == sorted(circles, reverse=True)
    assert SimpleNamespace(**tree.attrib).role == "img"
