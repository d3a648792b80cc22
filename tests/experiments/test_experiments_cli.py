"""``medseg compare`` and ``medseg cross-validate`` as they are typed: real trainings, and mistakes found before any."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from support.prediction import write_checkpoint
from support.sweeps import jobs_in_this_process
from support.toys import oblique_affine, toy_case, write_nifti, write_toy_dataset

from medseg.checkpoints.run import checkpoints_in
from medseg.cli import main
from medseg.errors import DataError
from medseg.experiments import trial
from medseg.experiments.data import require_unchanged, start_of
from medseg.plan.plan import read_plan, write_plan
from medseg.store.identity import identity, traces
from medseg.store.prepare import prepare
from medseg.store.store import Store

CONFIG = """
model: {net_options: {features: [4, 8, 8]}, optimizer: adamw}
data: {folds: 2, steps_per_epoch: 2, batch_size: 2}
trainer: {precision: 32, accelerator: cpu, num_sanity_val_steps: 0, log_every_n_steps: 1}
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def words(toy, command, output, *more):
    given = ["--config", str(toy / "config.yaml"), "--output", str(output), "--data.store", str(toy / "store")]
    return [command, *given, "--trainer.max_steps", "2", *more]


@pytest.mark.slow
def test_cross_validation_pools_every_case_once_and_predicts_with_all_folds(toy, capsys, monkeypatch):
    output = toy / "cv"
    images, labels = toy / "toy" / "imagesTs", output / "predicted"
    with jobs_in_this_process():
        assert main(words(toy, "cross-validate", output, "--predict", str(images))) == 0
    assert rows_of(output) == [(f"toy_{i}", organ) for i in range(4) for organ in ("liver", "spleen")]
    assert json.loads((output / "summary.json").read_text(encoding="utf-8"))["cases"] == 4
    assert "2 folds pooled" in (output / "report.html").read_text(encoding="utf-8")
    members = [output / f"fold{fold}" / "checkpoints" / "best.ckpt" for fold in (0, 1)]
    assert checkpoints_in([output]) == members
    assert checkpoints_in([output / "fold0", members[1]]) == members
    assert [path.name for path in labels.glob("*.nii.gz")] == ["toy_4.nii.gz"]
    assert len(list((output / "predictions").glob("*.nii.gz"))) == 4

    broken = (sys.executable, "-S", "-c", "import sys; sys.exit('medseg: out of order.')")
    monkeypatch.setattr(trial, "PROGRAM", broken)  # so whatever succeeds from here on was not done again
    capsys.readouterr()
    assert main(words(toy, "cross-validate", output)) == 0
    assert capsys.readouterr().err.count("done before") == 2

    label = toy / "toy" / "labelsTr" / "toy_1.nii.gz"
    before = label.read_bytes()
    voxels, affine = toy_case(1)[1], oblique_affine(1)
    write_nifti(label, np.where(voxels == 5, 0, voxels), affine)
    prepare(toy / "toy", toy / "store", workers=1)
    assert main(words(toy, "cross-validate", output)) == 1
    assert "was trained on other data: toy_1 was changed since. Remove that folder" in capsys.readouterr().err
    label.write_bytes(before)
    prepare(toy / "toy", toy / "store", workers=1)
    assert main(words(toy, "cross-validate", output)) == 0

    (output / "fold1" / "test" / "summary.json").unlink()
    assert main(words(toy, "cross-validate", output)) == 1
    said = capsys.readouterr()
    assert "fold 1: out of order. See" in said.out
    assert "1 of 2 folds have no result; their cases are missing" in said.err
    assert {case for case, _ in rows_of(output)} < {f"toy_{i}" for i in range(4)}
    assert "Folds without a result" in (output / "report.html").read_text(encoding="utf-8")
    assert json.loads((output / "ensemble.json").read_text())["lost"] == ["fold 1"]

    plan = read_plan(toy / "store" / "plan.yaml")
    write_plan(toy / "other" / "plan.yaml", type(plan).from_dict(plan.to_dict() | {"labels": {"liver": 1, "lung": 5}}))
    (toy / "store" / "plan.yaml").rename(toy / "plan.kept")
    (toy / "other" / "plan.yaml").rename(toy / "store" / "plan.yaml")
    assert main(words(toy, "cross-validate", output)) == 1
    assert "but the store was prepared with another plan" in capsys.readouterr().err
    (toy / "plan.kept").rename(toy / "store" / "plan.yaml")


@pytest.mark.slow
def test_seeds_change_the_training_and_not_the_cases(toy):
    output = toy / "seeds"
    with jobs_in_this_process():
        assert main(words(toy, "compare", output, "--losses", "dice", "focal", "--seeds", "1", "2")) == 0
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/job.json"))]
    assert [record["seed"] for record in records] == ["1", "2", "1", "2"]
    assert len({json.dumps(record["data"], sort_keys=True) for record in records}) == 1
    with (output / "compare.csv").open(newline="") as file:
        dice = {
            (line["loss"], line["seed"], line["case"], line["organ"]): line["dice"] for line in csv.DictReader(file)
        }
    assert len(dice) == 2 * 2 * 2 * 2
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(output.glob("*/*/last.ckpt"))]
    assert len({float(sum(each.double().sum() for each in one.values())) for one in weights}) == 4
    assert "One training beside another" in (output / "report.html").read_text(encoding="utf-8")


def test_a_store_that_was_prepared_anew_meanwhile_is_noticed(toy):
    letters = identity(Store(toy / "store"))
    require_unchanged(toy / "store", letters, None, None)
    before = {case: kept for case, kept in letters.items() if case != "toy_0"} | {"lost": "", "toy_1": ""}
    with pytest.raises(DataError, match=r"is not as it was before: toy_0 is new, lost is gone, toy_1 was changed"):
        require_unchanged(toy / "store", before, None, None)


def test_a_sweep_notes_what_its_trainings_begin_with(toy, tmp_path, monkeypatch, capsys):
    source, noted = tmp_path / "source.ckpt", []

    def stand_in(jobs, executor):
        noted.extend(job.data.start for job in jobs)
        source.write_bytes(b"other weights")
        return []

    monkeypatch.setattr("medseg.experiments.sweep.run_sweep", stand_in)
    source.write_bytes(b"weights")
    begun = words(toy, "compare", tmp_path / "sweep", "--losses", "dice", "focal", "--model.init_from", str(source))
    assert main(begun) == 1
    assert "is not as it was before: the file of model.init_from was changed" in capsys.readouterr().err
    assert noted[0] == noted[1] != start_of(str(source))


def test_a_sweep_from_weights_that_know_the_cases_to_test_is_refused_before_it_starts(toy, tmp_path, capsys):
    seen = traces(Store(toy / "store").info("toy_1"))
    write_checkpoint(tmp_path / "source.ckpt", signature={"trained_on": sorted(seen)})
    begun = words(toy, "cross-validate", tmp_path / "sweep", "--model.init_from", str(tmp_path / "source.ckpt"))
    assert main(begun) == 2
    assert "was trained on 1 of the cases to test (toy_1)" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def rows_of(output):
    with (output / "cases.csv").open(newline="") as file:
        return [(row["case"], row["organ"]) for row in csv.DictReader(file)]


MISTAKES = [
    ("compare", ["--losses", "dice", "dcie"], "Did you mean 'dice'"),
    ("compare", ["--losses", "dice", "focal(gama=2)"], "gamma"),
    ("compare", ["--losses", "dice", "focal", "--nets", "unet", "vnett"], "did you mean 'vnet'"),
    ("compare", ["--losses", "dice"], "at least two"),
    ("compare", ["--losses", "dice", "focal", "--model.loss", "dice"], "--model.loss is not for all jobs alike"),
    ("compare", ["--losses", "dice", "focal", "--run", "x"], "--run is not for all jobs alike"),
    ("compare", ["--losses", "dice", "focal", "--trainer.max_stepz", "3"], "did you mean 'trainer.max_steps'"),
    ("compare", ["--losses", "dice", "focal", "--jobs", "0"], "at least 1"),
    ("compare", ["--losses", "dice", "focal", "--slurm-options", "a=1"], "--slurm"),
    ("compare", ["--losses", "dice", "focal", "--data.organs", "[heart]"], "the config is made for heart"),
    ("compare", ["--losses", "dice + focal", "focal+dice()"], "'focal+dice()' is the same as 'dice + focal'"),
    ("compare", ["--losses", "", "dice"], "without a name"),
    ("compare", ["--losses", "dice", "focal", "--trainer.max_steps", "0"], "the budget is 0 steps"),
    ("compare", ["--losses", "dice", "focal", "--trainer.max_steps", "-3"], "max_steps"),
    ("compare", ["--losses", "dice", "focal", "--trainer.fast_dev_run", "true"], "leaves no checkpoint to test"),
    ("cross-validate", ["--trainer.limit_val_batches", "0"], "leaves no best.ckpt"),
    ("compare", ["--losses", "dice", "focal", "--devices", "99"], "'99' is no CUDA device of this machine"),
    ("compare", ["--losses", "dice", "focal", "--trainer.accelerator", "tpu"], "tpu"),
    ("cross-validate", ["--data.fold", "1"], "--data.fold is not for all jobs alike"),
    ("cross-validate", ["--folds", "0", "7"], "there is no fold 7"),
    ("cross-validate", ["--predictions", "x"], "--predictions without --predict"),
    ("cross-validate", ["--predict", "nowhere", "--predictions", "x"], "nowhere does not exist"),
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("command", "more", "expected"), MISTAKES, ids=[" ".join(more) for _, more, _ in MISTAKES])
def test_a_mistake_is_one_sentence_before_anything_trains(toy, tmp_path, capsys, command, more, expected):
    assert main(words(toy, command, tmp_path / "out", *more)) in (1, 2)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in message
    assert message.startswith("medseg: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["compare", "cross-validate"])
def test_a_sweep_keeps_out_of_files_and_stores(toy, capsys, command):
    losses = ["--losses", "dice", "focal"] if command == "compare" else []
    before = sorted(path.name for path in (toy / "store").iterdir())
    for output, expected in (("config.yaml", "is a file"), ("config.yaml/x", "is a file"), ("store", "is a store")):
        assert main(words(toy, command, toy / output, *losses)) in (1, 2)
        assert expected in capsys.readouterr().err
    assert main(words(toy, "cross-validate", toy / "out", "--predict", str(toy / "store"))) == 1
    assert "store holds no image" in capsys.readouterr().err
    assert sorted(path.name for path in (toy / "store").iterdir()) == before


def test_a_folder_that_holds_no_checkpoint_is_no_predictor(tmp_path, capsys):
    line = ["predict", "--ckpt", str(tmp_path), "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(line) == 1
    assert "neither checkpoints/best.ckpt nor ensemble.json" in capsys.readouterr().err
    (tmp_path / "ensemble.json").write_text("{}")
    assert main(line) == 1
    (tmp_path / "ensemble.json").write_text('{"checkpoints": []}')
    assert main(line) == 1
    assert "lists no checkpoint" in capsys.readouterr().err
