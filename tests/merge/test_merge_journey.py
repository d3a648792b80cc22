"""A merged dataset on its whole way, through the commands that know nothing of merges."""

import csv
import json

import numpy as np
import pytest
import torch
from support.hospitals import write_hospital
from support.sweeps import jobs_in_this_process

from medseg.cli import main
from medseg.datasets.case import read_case, read_dataset
from medseg.errors import UsageError
from medseg.metrics.overlap import count_labels, dice
from medseg.metrics.per_organ import PerOrganDice
from medseg.patches.datamodule import VolumesDataModule
from medseg.space.reading import read_labels
from medseg.store.store import Store

CONFIG = """
model: {net_options: {features: [4, 8]}, optimizer: adamw}
data: {folds: 2, steps_per_epoch: 3, batch_size: 2, workers: 0, balance: both}
trainer: {precision: 32, accelerator: cpu, num_sanity_val_steps: 0, log_every_n_steps: 1, max_steps: 3}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two hospitals of four and two cases, merged, verified, planned and prepared."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospital(folder / "a", {"liver": 1, "Spleen": 2}, {"liver": 1, "spleen": 2}, (0, 1, 2, 3))
    write_hospital(folder / "b", {"spleen": 7, "kidney": 3}, {"spleen": 7, "kidney_left": 3}, (10, 11))
    one = ["--workers", "1"]
    assert main(["merge", str(folder / "a"), str(folder / "b"), "--out", str(folder / "all"), *one]) == 0
    assert main(["verify", str(folder / "all"), *one]) == 0
    assert main(["plan", str(folder / "all"), "--out", str(folder / "plan.yaml"), *one]) == 0
    store = ["--out", str(folder / "store"), "--plan", str(folder / "plan.yaml")]
    assert main(["prepare", str(folder / "all"), *store, *one]) == 0
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def validated(place):
    """A cross-validation of it: every case was tested once."""
    words = ["--config", str(place / "config.yaml"), "--data.store", str(place / "store")]
    with jobs_in_this_process():
        assert main(["cross-validate", *words, "--output", str(place / "folds")]) == 0
    return place / "folds"


def rows_of(folder):
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_store_holds_what_each_hospital_drew(place):
    store = Store(place / "store")
    assert store.plan.labels == {"liver": 1, "Spleen": 2, "kidney": 3}
    for case in store.ids:
        info = store.info(case)
        assert info.dataset == case[0]
        drawn = {"a": ("liver", "Spleen"), "b": ("Spleen", "kidney")}[info.dataset]
        assert info.annotated == drawn
        assert {store.plan.organs[row - 1] for row in store.foreground(case)} == set(drawn)


def test_what_a_source_says_again_is_prepared_again_and_nothing_else(place, capsys):
    before = sorted(path.name for path in (place / "store/cases").iterdir())
    assert main(["prepare", str(place / "all"), "--out", str(place / "store"), "--workers", "1"]) == 0
    assert sorted(path.name for path in (place / "store/cases").iterdir()) == before


def test_every_case_is_scored_by_what_was_drawn_in_it(place, validated):
    """Against Dice that is counted here from the files alone, case by case."""
    dataset = read_dataset(place / "all")
    rows = rows_of(validated)
    assert {(row["case"], row["organ"]) for row in rows} == {
        (case.id, organ) for case in dataset.cases for organ in case.annotated or dataset.organs
    }
    cases = {case.id: case for case in dataset.cases}
    for row in rows:
        assert row["dataset"] == cases[row["case"]].dataset
        predicted = read_labels(validated / "predictions" / f"{row['case']}.nii.gz").array[0]
        _, reference = read_case(cases[row["case"]], dataset)
        value = {row["organ"]: dataset.labels[row["organ"]]}
        counts = count_labels(torch.tensor(predicted), torch.tensor(reference.array[0]), value)
        assert float(row["dice"]) == pytest.approx(dice(counts[row["organ"]]), abs=1e-5)


def test_scores_are_told_per_organ_and_per_dataset(place, validated):
    rows, summary = rows_of(validated), json.loads((validated / "summary.json").read_text())
    assert set(summary["datasets"]) == {"a", "b"}
    for name, part in summary["datasets"].items():
        own = [row for row in rows if row["dataset"] == name]
        assert part["cases"] == len({row["case"] for row in own})
        for organ, told in part["organs"].items():
            values = [float(row["dice"]) for row in own if row["organ"] == organ]
            assert told["dice"]["mean"] == pytest.approx(np.mean(values), abs=1e-5)
    assert "Per dataset" in (validated / "report.html").read_text()
    with (validated / "fold0/metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    logged = {column for column in columns if column.startswith("val/dice_by_dataset/")}
    assert logged == {f"val/dice_by_dataset/{of}" for of in ("a/liver", "a/Spleen", "b/Spleen", "b/kidney")}


def test_each_fold_holds_out_some_of_each_hospital(validated):
    for fold in (0, 1):
        held = {row["case"] for row in rows_of(validated / f"fold{fold}" / "test")}
        assert sorted(case[0] for case in held) == ["a", "a", "b"]


def test_evaluate_says_of_the_merged_dataset_what_the_test_said(place, validated, capsys):
    words = ["--predictions", str(validated / "predictions"), "--references", str(place / "all")]
    assert main(["evaluate", *words, "--output", str(place / "scores")]) == 0
    assert "Dice per dataset" in capsys.readouterr().out
    assert rows_of(place / "scores") == rows_of(validated)


def test_predict_and_cleaning_take_it_like_any_other(place, validated, capsys):
    best = validated / "fold0/checkpoints/best.ckpt"
    words = ["--ckpt", str(best), "--input", str(place / "all"), "--all", "--output", str(place / "predicted")]
    assert main(["predict", *words]) == 0
    assert len(list((place / "predicted").glob("*.nii.gz"))) == 6
    test = validated / "fold0/test/predictions"
    words = ["--ckpt", str(best), "--predictions", str(test), "--references", str(place / "all")]
    assert main(["choose-cleaning", *words]) == 0
    assert "kidney" in capsys.readouterr().out


@pytest.mark.slow
def test_losses_are_compared_on_it(place):
    words = ["--config", str(place / "config.yaml"), "--data.store", str(place / "store")]
    with jobs_in_this_process():
        assert main(["compare", *words, "--losses", "dice", "dice + focal", "--output", str(place / "losses")]) == 0
    with (place / "losses/compare.csv").open(newline="") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == {"a", "b"}


def test_balance_deals_the_small_hospital_as_often(place):
    """Of two hospitals of two and one training case each patch comes from either equally often."""
    shares = {}
    for balance in ("none", "datasets"):
        data = VolumesDataModule(place / "store", folds=2, batch_size=1, steps_per_epoch=60, workers=0, balance=balance)
        schedule = data.train_dataloader().dataset.schedule
        slots = [slot for number in range(60) for slot in schedule.batch(0, number)]
        names = data.cases.train
        shares[balance] = sum(names[slot.case].startswith("b") for slot in slots) / len(slots)
    assert shares["none"] == pytest.approx(1 / 3, abs=0.03)
    assert shares["datasets"] == pytest.approx(1 / 2, abs=0.03)


def test_balance_over_datasets_needs_several(place, tmp_path):
    assert main(["prepare", str(place / "a"), "--out", str(tmp_path / "store"), "--workers", "1"]) == 0
    with pytest.raises(UsageError, match="comes from one dataset"):
        _ = VolumesDataModule(tmp_path / "store", folds=2, balance="datasets").cases


def test_dice_by_group_is_that_of_each_group_alone():
    """In one metric as in one metric for each hospital."""
    rng = np.random.default_rng(0)
    groups = {f"{name}_{index}": name for name in "ab" for index in range(3)}
    whole, *parts = (PerOrganDice({"liver": 1, "spleen": 2}) for _ in range(3))
    alone = dict(zip("ab", parts, strict=True))
    for case, name in groups.items():
        predicted, true = (torch.tensor(rng.integers(0, 3, (4, 4, 4))) for _ in range(2))
        drawn = ("liver",) if name == "a" else None
        for metric in (whole, alone[name]):
            metric.update(predicted, true, case, annotated=drawn)
    told = whole.compute(groups)
    for name, metric in alone.items():
        expected = {f"{name}/{organ}": value for organ, value in metric.compute().items() if organ != "mean"}
        assert {key: value for key, value in told.items() if key.startswith(f"{name}/")} == expected
    assert "a/spleen" not in told
