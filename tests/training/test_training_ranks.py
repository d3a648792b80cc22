"""Several processes that train together: different data, a death, a silence; two nodes of one process on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import WORDS
from support.toys import write_toy_dataset

from medseg.store.prepare import prepare

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    return folder / "store"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(stores, run):
    """One process per store, as two nodes."""
    port, processes = free_port(), []
    for rank, store in enumerate(stores):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank), "LOCAL_RANK": "0"}
        words = [
            *("fit", "--data.store", str(store), "--run", str(run), *WORDS, "--trainer.max_steps", "100000"),
            *("--trainer.strategy", "ddp", "--trainer.num_nodes", str(len(stores)), "--trainer.devices", "1"),
        ]
        with (Path(run).parent / f"said_{rank}.txt").open("w") as heard:
            process = subprocess.Popen(
                [sys.executable, "-m", "medseg", *words],
                env={**os.environ, **env, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stderr=heard,
                stdout=subprocess.DEVNULL,
            )
        processes.append(process)
    return processes


def said(run, rank):
    return (Path(run).parent / f"said_{rank}.txt").read_text()


def wait_for(condition, processes, *, seconds=400):
    for _ in range(seconds * 10):
        if condition() or any(process.poll() is not None for process in processes):
            return
        time.sleep(0.1)
    raise TimeoutError


def end(processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_different_data_on_two_machines_are_told_apart_at_the_start(store, tmp_path):
    other = tmp_path / "other"
    prepare(write_toy_dataset(tmp_path), other, workers=1)
    index = other / "index.json"
    text = index.read_text()
    folder = next(line for line in text.splitlines() if '"toy_2"' in line)
    index.write_text(text.replace(folder + "\n", ""))
    processes = start([store, other], tmp_path / "run")
    try:
        for process in processes:
            assert process.wait(timeout=400) == 1
    finally:
        end(processes)
    assert "is not the same everywhere: process 1" in said(tmp_path / "run", 0)
    assert "has 3 cases" in said(tmp_path / "run", 0)
    assert "Traceback" not in said(tmp_path / "run", 0) + said(tmp_path / "run", 1)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "signum"), [
    (1, signal.SIGKILL),
    (0, signal.SIGKILL),
    (1, signal.SIGSTOP),
    (0, signal.SIGSTOP),
])  # fmt: skip
def test_a_process_that_dies_ends_the_other_within_a_minute(store, tmp_path, victim, signum):
    run = tmp_path / "run"
    processes = start([store, store], run)
    try:
        wait_for((run / "checkpoints" / "last.ckpt").exists, processes)
        processes[victim].send_signal(signum)
        assert processes[1 - victim].wait(timeout=60) == 1
    finally:
        end(processes)
    words = said(run, 1 - victim)
    assert "this training" in words
    assert "--ckpt_path last" in words
    assert "Traceback" not in words
    shutil.rmtree(run)


def launched_by(parent):
    """The process that Lightning started as the second of a training."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    raise LookupError(parent)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="children are found in /proc")
def test_who_dies_of_what_is_told_by_the_process_that_started_it(store, tmp_path):
    run = tmp_path / "run"
    with (tmp_path / "said.txt").open("w") as heard:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "medseg", "fit", "--data.store", str(store), "--run", str(run), *WORDS),
                *("--trainer.max_steps", "100000", "--trainer.strategy", "ddp", "--trainer.devices", "2"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stderr=heard,
            stdout=subprocess.DEVNULL,
        )
    try:
        wait_for((run / "checkpoints" / "last.ckpt").exists, [process])
        os.kill(launched_by(process.pid), signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    finally:
        end([process])
    words = (tmp_path / "said.txt").read_text()
    assert words.count("process 1 of this training was ended by SIGKILL") == 1
    assert "--ckpt_path last" in words
    assert "Traceback" not in words
