"""Asked to stop: by SIGTERM, by Ctrl-C, by SLURM; within a step, within a validation; and gone on as if never asked."""

import os
import signal

import pytest
from support.runs import assert_same_runs, fit, load, rows

from medseg.training.interrupt import REQUEUE, STOP
from medseg.training.task import SegmentationTask

STEPS = ["--trainer.max_steps", "8"]


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert fit(store, run, *STEPS) == 0
    return run


def asking(monkeypatch, signum, *, within, at):
    """Send this process a signal in the middle of the step or validation case with that number, from 1, once."""
    plain, seen = getattr(SegmentationTask, within), []

    def step(self, batch, index):
        seen.append(index)
        if len(seen) == at:
            os.kill(os.getpid(), signum)
        return plain(self, batch, index)

    monkeypatch.setattr(SegmentationTask, within, step)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("signum", STOP, ids=lambda signum: signum.name)
def test_a_signal_stops_after_the_step_and_the_run_goes_on(store, whole, tmp_path, monkeypatch, capsys, signum):
    asking(monkeypatch, signum, within="training_step", at=5)
    before = {each: signal.getsignal(each) for each in STOP}
    assert fit(store, tmp_path, *STEPS) == 128 + signum
    assert {each: signal.getsignal(each) for each in STOP} == before
    message = capsys.readouterr().err
    assert f"medseg: stopped by {signum.name} after step 5, which {tmp_path}/checkpoints/last.ckpt holds." in message
    assert "--ckpt_path last" in message
    assert "Traceback" not in message
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 5
    monkeypatch.undo()
    assert fit(store, tmp_path, *STEPS, "--ckpt_path", "last") == 0
    assert_same_runs(tmp_path, whole)


def test_a_validation_is_broken_off_and_repeated(store, whole, tmp_path, monkeypatch, capsys):
    asking(monkeypatch, signal.SIGTERM, within="validation_step", at=3)  # the first of the second validation
    assert fit(store, tmp_path, *STEPS) == 128 + signal.SIGTERM
    assert "after step 6" in capsys.readouterr().err
    assert not [row for row in rows(tmp_path) if row["step"] == "5" and "val/dice" in row]
    monkeypatch.undo()
    assert fit(store, tmp_path, *STEPS, "--ckpt_path", "last") == 0
    assert_same_runs(tmp_path, whole)


def test_the_last_validation_is_finished(store, whole, tmp_path, monkeypatch):
    asking(monkeypatch, signal.SIGTERM, within="validation_step", at=5)
    assert fit(store, tmp_path, *STEPS) == 0
    assert_same_runs(tmp_path, whole)


def test_a_second_ctrl_c_does_not_wait(store, tmp_path, monkeypatch, capsys):
    plain = SegmentationTask.training_step

    def step(self, batch, index):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return plain(self, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", step)
    assert fit(store, tmp_path, *STEPS) == 128 + signal.SIGINT
    assert "stopped by SIGINT at once" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize(("signum", "array"), [*zip(REQUEUE, [False, True], strict=False)])
def test_slurm_requeues_the_job_which_goes_on_by_itself(store, whole, tmp_path, monkeypatch, signum, array):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
    job |= {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"} if array else {}
    for name, value in {**job, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        asking(patch, signum, within="training_step", at=4)
        assert fit(store, tmp_path / "run", *STEPS) == 128 + signum
    assert (tmp_path / "asked").read_text() == f"requeue {'70_3' if array else '77'}\n"
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(store, tmp_path / "run", *STEPS) == 0
    assert_same_runs(tmp_path / "run", whole)
