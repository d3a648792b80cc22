"""Which checkpoint a run folder stands for, and what is said where it is not there."""

import json

import pytest

from medseg.checkpoints.run import Run, checkpoints_in
from medseg.errors import CheckpointError


def run_with(folder, *names):
    run = Run(folder)
    run.checkpoints.mkdir(parents=True)
    for name in names:
        (run.checkpoints / name).write_bytes(b"")
    return run


def test_best_is_meant_where_nothing_is_said(tmp_path):
    run = run_with(tmp_path / "run", "best.ckpt", "last.ckpt")
    assert run.checkpoint() == run.checkpoint("best") == run.best
    assert run.checkpoint("last") == run.last
    assert run.checkpoint(str(run.last)) == run.last
    assert Run.holding(run.best) == run
    assert checkpoints_in([run.path, run.last]) == [run.best, run.last]


def test_a_run_holds_what_lies_in_it_wherever_its_links_lead(tmp_path):
    run, scratch = run_with(tmp_path / "run", "last.ckpt"), run_with(tmp_path / "scratch", "last.ckpt")
    linked = Run(tmp_path / "linked")
    linked.path.mkdir()
    linked.checkpoints.symlink_to(scratch.checkpoints)
    assert run.holds(tmp_path / "other" / ".." / "run" / "checkpoints" / "last.ckpt")
    assert run.holds(run.path / "epochs" / "3.ckpt")
    assert linked.holds(linked.last)
    assert not run.holds(scratch.last)


@pytest.mark.parametrize("asked", [None, "best"])
def test_a_run_without_a_validation_offers_its_last(tmp_path, asked):
    run = run_with(tmp_path / "run", "last.ckpt")
    with pytest.raises(CheckpointError, match=r"--ckpt_path last, or by its path .*last\.ckpt"):
        run.checkpoint(asked)
    with pytest.raises(CheckpointError, match=r"its path .*last\.ckpt"):
        checkpoints_in([run.path])


def test_what_is_no_checkpoint_is_named(tmp_path):
    run = run_with(tmp_path / "run")
    with pytest.raises(CheckpointError, match="Train first"):
        run.checkpoint()
    with pytest.raises(CheckpointError, match="is a folder"):
        run.checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="neither"):
        checkpoints_in([tmp_path])


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"checkpoints": []}), json.dumps({"checkpoints": 3})])
def test_a_broken_list_of_folds_is_a_sentence(tmp_path, content):
    (tmp_path / "ensemble.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"ensemble\.json"):
        checkpoints_in([tmp_path])
