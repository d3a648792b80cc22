"""What the system refuses is said in one sentence, by every command: rights, links to nothing, folders like files."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.toys import oblique_affine, toy_case, write_nifti, write_toy_dataset

from medseg.cli import main
from medseg.errors import DataError, MachineError, explained
from medseg.machine.crew import run_tasks
from medseg.report.evaluate import evaluate

IMAGE, LABEL = "imagesTr/toy_0.nii.gz", "labelsTr/toy_0.nii.gz"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ENOSPC])
def test_an_error_of_the_system_is_a_sentence_with_a_way_out(number, monkeypatch, capsys):
    def refuse(_):
        raise OSError(number, os.strerror(number), "some/file.nii.gz")

    monkeypatch.setattr(sys.modules["medseg.cli.main"], "_run", refuse)
    assert main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("medseg: some/file.nii.gz ")
    assert told.endswith(".\n")
    assert told.count("\n") == 1
    assert isinstance(explained(OSError(number, "x", "y")), MachineError if number == errno.ENOSPC else DataError)


def test_an_error_without_a_number_is_no_file_s(monkeypatch):
    def fail(_):
        raise OSError("a library's own")

    monkeypatch.setattr(sys.modules["medseg.cli.main"], "_run", fail)
    with pytest.raises(OSError, match="own"):
        main([])


def refuse_odd(number: int) -> int:
    if number % 2:
        raise PermissionError(errno.EACCES, "Permission denied", f"{number}.nii.gz")
    return number


def test_a_case_that_may_not_be_read_takes_no_other_along():
    outcome = run_tasks(refuse_odd, {str(n): n for n in range(4)}, workers=1, title="trying")
    assert outcome.results == {"0": 0, "2": 2}
    assert str(outcome.failures["1"]).startswith("1.nii.gz cannot be opened (permission denied). Ask for the rights")


def test_evaluate_scores_what_it_may_read(toy_dataset, tmp_path, monkeypatch):
    shutil.copytree(toy_dataset / "labelsTr", tmp_path / "predictions")
    (tmp_path / "predictions/toy_0.nii.gz").unlink()
    (tmp_path / "predictions/toy_0.nii.gz").mkdir()
    done = evaluate(tmp_path / "predictions", toy_dataset, output=tmp_path / "scores", workers=1)
    first, ignored = done.failures
    assert "toy_0.nii.gz is a folder, though a file is expected there" in first.reason
    assert "1 value that no label names: 9" in ignored.reason  # what a reference ignores no prediction may hold
    assert {row.case for row in done.rows} == {"toy_1", "toy_2"}


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "moved.nii.gz")


@pytest.mark.parametrize("file", [IMAGE, LABEL])
@pytest.mark.parametrize(("damage", "words"), [(folder, "is a folder, though"), (nowhere, "a link leads to")])
def test_what_is_there_in_place_of_a_file_is_named(damage, words, file, toy_dataset, tmp_path, capsys):
    damage(toy_dataset / file)
    for command in (["plan", "--out", str(tmp_path / "plan.yaml")], ["prepare", "--out", str(tmp_path / "store")]):
        assert main([command[0], str(toy_dataset), *command[1:], "--workers", "1"]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
    assert main(["verify", str(toy_dataset), "--workers", "1"]) == 1


def test_references_that_are_scans_and_a_folder_given_twice_get_a_word(toy_dataset, tmp_path, capsys):
    labels, scans, scores = toy_dataset / "labelsTr", tmp_path / "scans", tmp_path / "scores"
    for case in range(4):
        write_nifti(scans / f"toy_{case}.nii.gz", toy_case(case)[0], oblique_affine(case))
    line = ["evaluate", "--predictions", str(labels), "--output", str(scores), "--workers", "1", "--references"]
    assert main([*line, str(scans)]) == 1
    captured = capsys.readouterr()
    assert "a scan, not a label map" in captured.out + captured.err
    assert len(captured.out) < 3000
    main([*line, str(labels)])
    assert "4 predictions are the very files scored against" in capsys.readouterr().out


def test_scans_in_place_of_all_masks_are_one_row_a_file(toy_dataset, capsys):
    for case in range(4):
        rng = np.random.default_rng(case)
        scan = rng.integers(-1024, 1500, toy_case(case)[1].shape).astype(np.int16)
        write_nifti(toy_dataset / f"labelsTr/toy_{case}.nii.gz", scan, oblique_affine(case))
    assert main(["verify", str(toy_dataset), "--json", str(toy_dataset / "p.json"), "--workers", "1"]) == 1
    assert (toy_dataset / "p.json").stat().st_size < 5000
    assert main(["plan", str(toy_dataset), "--out", str(toy_dataset / "plan.yaml"), "--workers", "1"]) == 1
    assert len(capsys.readouterr().err) < 1500


FIT = "fit --data.store store --run new --trainer.accelerator cpu --trainer.max_steps 2 --data.folds 2"
REFUSED = [
    "fit --data.store nowhere --run new",
    "fit --data.store toy --run new",
    "fit --config absent.yaml --run new",
    "fit --model.lss dice --run new",
    f"{FIT} --model.net nonet",
    f"{FIT} --model.loss dise",
    f"{FIT} --model.net_options {{features:[0]}}",
    f"{FIT} --data.fold 9",
    f"{FIT} --data.patch_size [0,16,16]",
    f"{FIT} --data.augmentation strong",
    f"{FIT} --model.init_from absent.ckpt",
    f"{FIT} --ckpt_path absent.ckpt",
    f"{FIT} --trainer.callbacks pytorch_lightning.callbacks.EarlyStopping --trainer.callbacks.monitor val/nothing",
    f"{FIT} --trainer.precision 17",
    "prepare nowhere --out new",
    "prepare toy --plan absent.yaml --out new",
    "plan nowhere --out new/plan.yaml",
    "predict --ckpt absent.ckpt --input toy/imagesTs --output new",
    "evaluate --predictions absent --references toy --output new",
    "test --run new",
    "export --ckpt absent.ckpt --out new",
    "model-card nowhere --out new/CARD.md",
    "merge nowhere toy --out new",
    "import-nnunet nowhere --out new.ckpt",
    "cross-validate --config absent.yaml --output new",
    "compare --config absent.yaml --losses dice focal --output new",
    "verify nowhere --fix new",
    "losses dcie",
    "nets uent",
    "info nowhere",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset and its store, beside which nothing may appear."""
    folder = tmp_path_factory.mktemp("place")
    write_toy_dataset(folder)
    assert main(["prepare", str(folder / "toy"), "--out", str(folder / "store"), "--workers", "1"]) == 0
    return folder


@pytest.mark.sweep(3)
@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_leaves_nothing_behind(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status in (1, 2), told
    assert "Traceback" not in told
    assert sorted(place.rglob("*")) == before
