"""The torchmetrics shells: each case once, whatever the number of processes."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medseg.metrics import PerOrganDice

ORGANS = {"liver": 1, "tumour": 2}
CASES = {
    "a": ([0, 1, 1, 2], [0, 1, 2, 2]),
    "b": ([0, 0, 0, 0], [1, 1, 0, 0]),  # liver missed, tumour absent
    "c": ([2, 2, 1, 1], [0, 0, 1, 1]),  # tumour invented
}
EXPECTED = {"liver": (2 / 3 + 0 + 1) / 3, "tumour": (2 / 3 + 1 + 0) / 3}
EXPECTED["mean"] = (EXPECTED["liver"] + EXPECTED["tumour"]) / 2


def update(metric, case, **options):
    prediction, reference = (torch.tensor(values).reshape(1, 2, 2) for values in CASES[case])
    metric.update(prediction, reference, case, **options)


def test_dice_is_the_mean_over_cases():
    metric = PerOrganDice(ORGANS)
    for case in CASES:
        update(metric, case)
    assert metric.compute() == pytest.approx(EXPECTED)


def test_a_case_seen_twice_counts_once():
    metric = PerOrganDice(ORGANS)
    for case in ("a", "b", "c", "a", "a"):
        update(metric, case)
    assert metric.compute() == pytest.approx(EXPECTED)


def test_reset_forgets():
    metric = PerOrganDice(ORGANS)
    update(metric, "b")
    metric.compute()
    metric.reset()
    update(metric, "c")
    assert metric.compute()["liver"] == 1.0


def test_without_a_case_there_is_no_score():
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert PerOrganDice(ORGANS).compute() == {"mean": 0.0}


def test_organs_that_a_reference_does_not_cover_do_not_count():
    metric = PerOrganDice(ORGANS)
    for case in CASES:
        update(metric, case, annotated=["liver"] if case == "c" else None)
    assert metric.compute()["tumour"] == pytest.approx((2 / 3 + 1) / 2)


def test_an_organ_that_no_reference_covers_is_left_out_of_the_mean():
    metric = PerOrganDice(ORGANS)
    for case in ("a", "b"):
        update(metric, case, annotated=["liver"])
    assert metric.compute() == pytest.approx({"liver": 1 / 3, "mean": 1 / 3})


def test_background_is_an_organ_like_others_and_whole_floats_are_labels():
    metric = PerOrganDice({"background": 0, "rest": (0, 2)}, ignore=9)
    prediction, reference = torch.tensor([0.0, 0.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 2.0, 9.0])
    metric.update(prediction, reference, "a")
    assert metric.compute() == pytest.approx({"background": 0.5, "rest": 2 / 3, "mean": (0.5 + 2 / 3) / 2})


def test_probabilities_and_values_below_zero_are_refused():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"expected the prediction as label values.*float32; take the argmax"):
        PerOrganDice(ORGANS).update(torch.tensor([0.2, 0.8]), labels, "a")
    with pytest.raises(ValueError, match="whole numbers of 0 or more, got -1"):
        PerOrganDice({"nothing": -1})


def test_masks_of_regions():
    metric = PerOrganDice({"whole": (1, 2), "core": 2})
    metric.update(torch.tensor([[True, True, False], [False, True, False]]), torch.tensor([1, 2, 1]), "a")
    assert metric.compute() == pytest.approx({"whole": 0.8, "core": 1.0, "mean": 0.9})


def test_no_organ_is_refused():
    with pytest.raises(ValueError, match="at least one organ"):
        PerOrganDice({})


SHARES = {
    "padded": (["a", "b"], ["c", "a"]),  # the sampler pads the second process with a case of the first
    "empty": (["a", "b", "c"], []),
}


def _score_shares(rank, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=results["port"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name, shares in SHARES.items():
        metric = PerOrganDice(ORGANS)
        for case in shares[rank]:
            update(metric, case)
        metric._update_count = 1  # an empty process would warn, which is an error here
        results[name, rank] = metric.compute()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_give_the_score_of_one(unused_port):
    with mp.Manager() as manager:
        results = manager.dict(port=unused_port)
        mp.spawn(_score_shares, args=(results,), nprocs=2)
        for name in SHARES:
            for rank in range(2):
                assert results[name, rank] == pytest.approx(EXPECTED)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
