"""SIGKILL at random moments of real processes: preparing and training go on, to the same bits."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.runs import WORDS, assert_same_runs
from support.toys import write_toy_dataset

from medseg.cli import main
from medseg.store.identity import identity
from medseg.store.store import Store

STEPS = ["--trainer.max_steps", "60", "--checkpoint_minutes", "0.005", "--trainer.check_val_every_n_epoch", "2"]


def start(words):
    return subprocess.Popen(
        [sys.executable, "-m", "medseg", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_until_done(words, moments):
    """Start again and again, killed after so many seconds each; the moments that hit a running process."""
    hits = 0
    for moment in moments:
        process = start(words)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            hits += 1
        errors = process.communicate()[1]
        assert "Traceback" not in errors, errors
        if process.returncode == 0:
            return hits
        assert process.returncode == -signal.SIGKILL, errors
    process = start(words)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return hits


def trained(store, run, *more):
    return ["fit", "--data.store", str(store), "--run", str(run), *WORDS, *STEPS, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    assert main(["prepare", str(write_toy_dataset(folder)), "--out", str(folder / "store"), "--workers", "1"]) == 0
    process = start(trained(folder / "store", folder / "run"))
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return folder


def wait_and_kill(words, condition):
    process = start(words)
    while process.poll() is None and not condition():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.communicate()[1]


@pytest.mark.slow
def test_two_kills_change_nothing(whole, tmp_path):
    """One before there is any checkpoint, one while a checkpoint is written for the second time or later."""
    run = tmp_path / "run"
    words = trained(whole / "store", run, "--ckpt_path", "last")
    wait_and_kill(words, (run / "config.yaml").exists)
    assert not (run / "checkpoints" / "last.ckpt").exists()
    half = run / "checkpoints"
    errors = wait_and_kill(words, lambda: [*half.glob(".partial-*last.ckpt")] and (half / "last.ckpt").exists())
    assert "holds no checkpoint yet: training begins with the first step" in errors
    process = start(words)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert "training goes on after step" in errors
    assert_same_runs(run, whole / "run")
    assert not [*half.glob(".*")], "what a killed process left is removed"


def goes_on(errors):
    return [int(line.split("after step ")[1].split(",")[0]) for line in errors.splitlines() if "goes on after" in line]


@pytest.mark.slow
def test_twenty_kills_change_nothing(whole, tmp_path):
    """At random moments of preparing (5) and of training (15), from the start of the interpreter to the last step."""
    chance = random.Random(0)
    prepare = ["prepare", str(whole / "toy"), "--out", str(tmp_path / "store"), "--workers", "1"]
    hits = kill_until_done(prepare, [chance.uniform(0.5, 4) for _ in range(5)])
    assert identity(Store(tmp_path / "store")) == identity(Store(whole / "store"))
    run, steps, finished = tmp_path / "run", [], 0
    words = trained(whole / "store", run, "--ckpt_path", "last")
    began = time.monotonic()
    assert start(words).communicate()[1]
    lasts = time.monotonic() - began
    shutil.rmtree(run)
    while hits < 20 or finished == 0:
        process = start(words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0.2, 1.0) * lasts if hits < 20 else None)
        process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1]
        assert "Traceback" not in errors, errors
        hits += process.returncode != 0
        steps += goes_on(errors)
        if process.returncode == 0:  # it got through between kills: compare, and kill another from its beginning
            assert_same_runs(run, whole / "run")
            shutil.rmtree(run)
            finished += 1
    sys.stderr.write(f"{hits} kills, {finished} runs finished; training went on after the steps {steps}\n")
