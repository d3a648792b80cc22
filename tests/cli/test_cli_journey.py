"""The whole journey on a toy dataset through the real command line, and every bad input on its way."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support.toys import toy_case, write_nifti, write_toy_dataset

from medseg.cli import main

SHARED = Path(__file__).parents[3] / "shared" / "data"
FAST = [
    *("--model.net_options", '{"features": [4, 8, 8]}', "--model.optimizer", "adamw"),
    *("--data.steps_per_epoch", "4", "--data.batch_size", "2", "--trainer.precision", "32"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_model_summary", "false"),
]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fit(store, run, *more):
    return main(["fit", "--data.store", str(store), "--data.folds", "2", "--run", str(run), *FAST, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A prepared store and a run of eight steps, shared by the tests that only read them."""
    folder = tmp_path_factory.mktemp("journey")
    dataset = write_toy_dataset(folder)
    assert main(["prepare", str(dataset), "--out", str(folder / "store"), "--workers", "1"]) == 0
    assert fit(folder / "store", folder / "run", "--trainer.max_steps", "8", "--model.ema", "0.5") == 0
    return folder


@pytest.fixture(scope="module")
def tested(trained):
    """The predictions of that run's own test."""
    assert main(["test", "--run", str(trained / "run")]) == 0
    return sorted((trained / "run" / "test" / "predictions").glob("*.nii.gz"))


def test_the_run_folder_is_as_designed(trained):
    run = trained / "run"
    assert (run / "config.yaml").is_file()
    assert list(run.glob("events.out.tfevents*"))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    rows = table(run / "metrics.csv")
    assert {"val/dice", "val/dice/liver", "val/dice/spleen", "train/loss"} <= set(rows[0])
    means = [float(row["val/dice"]) for row in rows if row["val/dice"]]
    organs = [(float(r["val/dice/liver"]), float(r["val/dice/spleen"])) for r in rows if r["val/dice"]]
    assert means == pytest.approx([sum(pair) / 2 for pair in organs], abs=1e-6)


def test_a_checkpoint_is_plain_data(trained):
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["plan"]["labels"] == {"liver": 1, "spleen": 5}


def test_a_checkpoint_alone_predicts_on_the_grid_of_the_image(trained, tmp_path):
    alone = shutil.copy(trained / "run" / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    images = trained / "toy" / "imagesTs"
    assert main(["predict", "--ckpt", str(alone), "--input", str(images), "--output", str(tmp_path / "out")]) == 0
    source, written = nib.load(images / "toy_4.nii.gz"), nib.load(tmp_path / "out" / "toy_4.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(written.get_qform(), source.get_qform())
    for code in ("qform_code", "sform_code"):
        assert written.header[code] == source.header[code]
    assert np.issubdtype(written.get_data_dtype(), np.integer)
    assert set(np.unique(written.dataobj)) <= {0, 1, 5}


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["ct_aorta_lps", "mr_lps", "ct"])
def test_real_volumes_of_any_orientation_come_back_on_their_grid(trained, tmp_path, name):
    image = SHARED / "ct_abdomen" / f"{name}.nii.gz"
    if not image.is_file():
        pytest.skip(f"{image} is not there")
    checkpoint = trained / "run" / "checkpoints" / "last.ckpt"
    assert main(["predict", "--ckpt", str(checkpoint), "--input", str(image), "--output", str(tmp_path)]) == 0
    source, written = nib.load(image), nib.load(tmp_path / image.name)
    assert nib.aff2axcodes(written.affine) == nib.aff2axcodes(source.affine)
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.get_sform(), source.get_sform())
    np.testing.assert_array_equal(written.get_qform(), source.get_qform())
    assert written.header["sform_code"] == source.header["sform_code"]


def test_test_scores_the_held_back_cases_on_their_own_grid(trained, capsys):
    assert main(["test", "--run", str(trained / "run"), "--trainer.logger", "false"]) == 0
    summary = json.loads((trained / "run" / "test" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["organs"]) == {"liver", "spleen"}
    assert summary["cases"] == 2
    assert "<html" in (trained / "run" / "report.html").read_text(encoding="utf-8")
    predicted = {path.name for path in (trained / "run" / "test" / "predictions").iterdir()}
    rows = table(trained / "run" / "test" / "cases.csv")
    assert {f"{row['case']}.nii.gz" for row in rows} == predicted
    assert "liver" in capsys.readouterr().out


def test_test_and_predict_write_the_same_labels(trained, tested, tmp_path):
    """Whatever rounding the store keeps images with; in the run's precision, which need not be this device's best."""
    images, checkpoint = trained / "toy" / "imagesTr", str(trained / "run" / "checkpoints" / "best.ckpt")
    words = ["predict", "--ckpt", checkpoint, "--input", str(images), "--output", str(tmp_path), "--no-cleaning"]
    assert main([*words, "--device", "cpu", "--precision", "32"]) == 0
    assert len(tested) == 2
    for path in tested:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_model_card_has_the_numbers_of_the_report_and_blanks_for_the_rest(trained, tested, tmp_path, capsys):
    card, words = tmp_path / "CARD.md", ["model-card", str(trained / "run"), "--out", str(tmp_path / "CARD.md")]
    assert main(words) == 0
    text = card.read_text(encoding="utf-8")
    assert f"{text.count('*(to be filled in)*') - 1} blanks" in capsys.readouterr().out
    summary = json.loads((trained / "run" / "test" / "summary.json").read_text(encoding="utf-8"))
    for organ, told in summary["organs"].items():
        assert f"| {organ} | {told['dice']['mean']:.3f} |" in text
        assert f"{told['missed']} of {told['found'] + told['missed']}" in text
    for told in (
        "modalities: CT",
        "loss: dice + cross_entropy",
        "not a medical device",
        "best.ckpt",
        "2 cases are few",
        "4 cases, of which fold 0 was held back from training",
    ):
        assert told in text
    assert main(words) == 2  # blanks may have been filled in
    assert card.read_text(encoding="utf-8") == text
    best = trained / "run" / "checkpoints" / "best.ckpt"
    assert main(["model-card", str(best), "--out", str(tmp_path / "best.md")]) == 0
    assert (tmp_path / "best.md").read_text(encoding="utf-8") == text
    alone = shutil.copy(trained / "run" / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    assert main(["model-card", str(alone), "--out", str(tmp_path / "other.md")]) == 0
    assert "None were given" in (tmp_path / "other.md").read_text(encoding="utf-8")


def test_a_model_card_says_of_which_cases_and_of_which_checkpoint_its_scores_are(trained, tested, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    words = ["test", "--run", str(run), "--on_training_cases", "true", "--data.fold", "1"]
    assert main([*words, "--data.store", str(trained / "store")]) == 0
    assert main(["model-card", str(run), "--out", str(tmp_path / "seen.md")]) == 0
    assert (tmp_path / "seen.md").read_text(encoding="utf-8").count("of these 2 cases were trained on") == 2
    summary = run / "test" / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8"))
    failures = [{"case": "toy_9", "reason": "gone"}]
    summary.write_text(json.dumps({**known, "note": "", "steps": 3, "failures": failures}), encoding="utf-8")
    assert main(["model-card", str(run), "--out", str(tmp_path / "stale.md")]) == 0
    told = (tmp_path / "stale.md").read_text(encoding="utf-8")
    assert "the scores are those of step 3, this checkpoint is of step 8" in told
    assert "1 case had no score" in told


def test_predictions_do_not_overwrite_the_labels_of_a_dataset(trained, tmp_path, capsys):
    dataset = shutil.copytree(trained / "toy", tmp_path / "toy")
    before = {path: path.read_bytes() for path in (dataset / "labelsTr").iterdir()}
    checkpoint = str(trained / "run" / "checkpoints" / "best.ckpt")
    words = ["predict", "--ckpt", checkpoint, "--input", str(dataset / "imagesTr"), "--output"]
    assert main([*words, str(dataset / "labelsTr")]) == 2
    assert "holds the labels of the dataset" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (dataset / "labelsTr").iterdir()}


def test_a_source_that_vanished_fails_its_own_test_case(trained, tested, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    case = tested[0].name
    (trained / "toy" / "imagesTr" / case).rename(tmp_path / case)
    try:
        assert main(["test", "--run", str(run)]) == 1
    finally:
        (tmp_path / case).rename(trained / "toy" / "imagesTr" / case)
    assert f"{case} does not exist" in capsys.readouterr().err
    assert len(list((run / "test" / "predictions").iterdir())) == 1
    assert json.loads((run / "test" / "summary.json").read_text(encoding="utf-8"))["cases"] == 1


def test_validate_repeats_the_score_of_the_checkpoint(trained, capsys):
    assert main(["validate", "--run", str(trained / "run")]) == 0
    best = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)["medseg"]["scores"]["val/dice"]
    assert f"{best:.6f}"[:6] in capsys.readouterr().out


def test_evaluate_names_the_organs(trained, tmp_path, capsys):
    labels = tmp_path / "labels"
    shutil.copytree(trained / "toy" / "labelsTr", labels)
    (labels / "toy_3.nii.gz").unlink()  # its ignored voxels are no prediction
    folders = ["--predictions", str(labels), "--references", str(labels), "--output", str(tmp_path)]
    assert main(["evaluate", *folders, "--labels", str(trained / "toy")]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["organs"]["liver"]["dice"]["mean"] == 1
    assert summary["mean_dice"] == 1


def test_info_knows_checkpoint_store_and_dataset(trained, capsys):
    for path in ("run/checkpoints/best.ckpt", "store", "toy"):
        assert main(["info", str(trained / path), "--json"]) == 0
        assert "liver" in json.loads(capsys.readouterr().out)["organs"]


def test_an_interrupted_run_goes_on_where_it_was(trained, tmp_path):
    """Eight steps at once and four plus four give the same weights, bit by bit, averaged weights included."""
    store = trained / "store"
    assert fit(store, tmp_path, "--trainer.max_steps", "4", "--model.schedule", "constant", "--model.ema", "0.5") == 0
    on = ["--trainer.max_steps", "8", "--model.schedule", "constant", "--model.ema", "0.5"]
    assert fit(store, tmp_path, *on, "--ckpt_path", "last") == 0
    assert fit(store, tmp_path / "whole", *on) == 0
    halves, whole = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (tmp_path, tmp_path / "whole")
    )
    for part in ("state_dict", "current_model_state"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, halves[part][name]), name
    steps = [int(row["step"]) for row in table(tmp_path / "metrics.csv")]
    assert min(steps) == 0
    assert max(steps) == 7


@pytest.mark.slow
def test_vnet_trains_by_its_name_and_so_do_overlapping_regions(trained, tmp_path):
    nested = json.loads((trained / "toy" / "dataset.json").read_text(encoding="utf-8"))
    root = tmp_path / "nested"
    shutil.copytree(trained / "toy", root)
    del nested["modality"], nested["test"]
    nested |= {
        "labels": {"background": 0, "abdomen": [1, 5], "spleen": [5], "ignore": 9},
        "regions_class_order": [1, 5],
        "channel_names": {"0": "CT"},
    }
    for folder in ("imagesTr", "imagesTs"):
        for path in (root / folder).iterdir():
            path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    del nested["training"]
    nested |= {"file_ending": ".nii.gz", "numTraining": 4}
    (root / "dataset.json").write_text(json.dumps(nested))
    assert main(["prepare", str(root), "--out", str(tmp_path / "store"), "--workers", "1"]) == 0
    assert fit(tmp_path / "store", tmp_path / "run", "--trainer.max_steps", "4") == 0
    assert main(["test", "--run", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "test" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["organs"]) == {"abdomen", "spleen"}
    vnet = ["--model.net", "vnet", "--model.net_options", "null", "--trainer.max_steps", "2"]
    assert fit(trained / "store", tmp_path / "vnet", *vnet, "--trainer.limit_val_batches", "1") == 0


CONFIG_MISTAKES = [
    (["--model.los", "dice"], "did you mean 'model.loss'"),
    (["--modle.loss", "dice"], "did you mean 'model.loss'"),
    (["--trainer.max_stepz", "3"], "did you mean 'trainer.max_steps'"),
    (["--model.lr", "fast"], "model.lr"),
    (["--model.loss", "dcie"], "dice"),
    (["--model.net", "unte"], "did you mean 'unet'"),
    (["--model.optimizer", "adamww"], "did you mean 'adamw'"),
    (["--model.schedule", "cosin"], "did you mean 'cosine'"),
    (["--trainer.max_time", "15m"], "DD:HH:MM:SS"),
    (["--trainer.precision", "bf17"], "precision"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["--data.fold", "7"], "fold"),
    (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
]


@pytest.mark.parametrize(("words", "expected"), CONFIG_MISTAKES, ids=[words[0] for words, _ in CONFIG_MISTAKES])
def test_a_mistake_in_the_config_is_one_sentence(trained, tmp_path, capsys, words, expected):
    assert fit(trained / "store", tmp_path / "run", *words) in (1, 2)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in message
    assert message.startswith("medseg: ")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_finished_run_is_not_trained_over(trained, capsys):
    assert fit(trained / "store", trained / "run", "--trainer.max_steps", "1") == 2
    assert "--ckpt_path last" in capsys.readouterr().err


def break_image(root):
    (root / "imagesTr" / "toy_1.nii.gz").unlink()


def truncate_image(root):
    path = root / "imagesTr" / "toy_1.nii.gz"
    path.write_bytes(path.read_bytes()[:300])


def shift_label(root):
    path = root / "labelsTr" / "toy_1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4)[:, [3, 3, 3, 0]] * 9), path)


def crop_label(root):
    path = root / "labelsTr" / "toy_1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)


def invent_value(root):
    path = root / "labelsTr" / "toy_1.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 77
    nib.save(nib.Nifti1Image(voxels, image.affine), path)


def put_nan(root):
    path = root / "imagesTr" / "toy_1.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), path)


def empty_description(root):
    (root / "dataset.json").write_text("")


BAD_DATA = [
    (break_image, "toy_1.nii.gz"),
    (truncate_image, "toy_1.nii.gz"),
    (shift_label, "toy_1.nii.gz"),
    (crop_label, "toy_1.nii.gz"),
    (invent_value, "77"),
    (put_nan, "NaN"),
    (empty_description, "dataset.json"),
]


@pytest.mark.parametrize(("damage", "expected"), BAD_DATA, ids=lambda value: getattr(value, "__name__", value))
def test_bad_data_is_named_and_nothing_half_written(toy_dataset, tmp_path, capsys, damage, expected):
    damage(toy_dataset)
    store = tmp_path / "store"
    assert main(["prepare", str(toy_dataset), "--out", str(store), "--workers", "1"]) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message
    assert not [path for path in store.rglob("*") if "partial" in path.name]


class Exploit:
    def __reduce__(self):
        return (print, ("this must never run",))


def foreign(path):
    torch.save({"state_dict": {}}, path)


def harmful(path):
    torch.save({"medseg": Exploit(), "state_dict": {}}, path)


def garbage(path):
    path.write_bytes(b"not a checkpoint")


def raw_pickle(path):
    path.write_bytes(pickle.dumps(Exploit()))


@pytest.mark.parametrize("make", [foreign, harmful, garbage, raw_pickle, Path.mkdir], ids=lambda value: value.__name__)
def test_a_checkpoint_that_is_not_ours_is_refused(make, tmp_path, capsys):
    path = tmp_path / "some.ckpt"
    make(path)
    for words in (["predict", "--ckpt", str(path), "--input", str(tmp_path), "--output", str(tmp_path / "out")],):
        assert main(words) == 1
        captured = capsys.readouterr()
        assert "some.ckpt" in captured.err
        assert "must never run" not in captured.out
    assert not (tmp_path / "out").exists()


def test_wrong_channels_at_prediction_are_named_and_the_others_go_on(trained, tmp_path, capsys):
    image, _ = toy_case(0)
    write_nifti(tmp_path / "in" / "good.nii.gz", image, np.diag([1.5, 1.5, 4, 1]))
    write_nifti(tmp_path / "in" / "two.nii.gz", np.stack([image, image], -1), np.diag([1.5, 1.5, 4, 1]))
    checkpoint = str(trained / "run" / "checkpoints" / "best.ckpt")
    words = ["predict", "--ckpt", checkpoint, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "two.nii.gz has 2 channels, expected 1" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.nii*")] == ["good.nii.gz"]


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["predict", "--ckpt", "x.ckpt", "--input", "a", "--output", "b", "--ttaa"], 2, "did you mean '--tta'"),
        (["losse"], 2, "did you mean 'losses'"),
        (["info", "nowhere"], 1, "nowhere does not exist"),
        (["prepare", "nowhere", "--out", "x"], 1, "nowhere"),
        (["test", "--run", "nowhere"], 2, "--run"),
    ],
)
def test_misuse_is_one_sentence(words, status, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        found = main(words)
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert expected in capsys.readouterr().err
