"""A plan for a budget of time: what fits is chosen by what a step is measured to take."""

from itertools import pairwise

import pytest

from medseg.plan.budget import ENOUGH_STEPS, FEWEST_STEPS, TRAINING_SHARE, Budget, ladder, timing, within, work
from medseg.plan.topology import topology_for

SPACING = (1.0, 1.0, 1.0)
LARGE = topology_for((192, 128, 96), SPACING)


def machine(rate: float, *, overhead: float = 0.0):
    """A machine of so many multiplications a second, and the steps that it was asked to time."""
    asked = []

    def seconds_of(topology, batch):
        asked.append((topology, batch))
        return overhead + work(topology, batch) / rate

    return seconds_of, asked


def chosen(rate: float, minutes: float = 30.0, **options):
    seconds_of, asked = machine(rate, **options)
    return within(Budget(minutes, seconds_of, "a test"), LARGE, 2, SPACING), asked


def test_what_memory_allows_is_kept_where_time_allows_it():
    choice, asked = chosen(1e15)
    assert (choice.topology, choice.batch) == (LARGE, 2)
    assert len(asked) == 2


@pytest.mark.parametrize("rate", [1e10, 3e10, 1e11, 1e12])
def test_the_budget_holds_enough_steps_of_what_is_chosen(rate):
    choice, _ = chosen(rate)
    assert choice.steps >= ENOUGH_STEPS
    assert choice.steps == int(30 * 60 * TRAINING_SHARE / (work(choice.topology, choice.batch) / rate))
    assert f"about {choice.steps} steps" in choice.reason


@pytest.mark.parametrize("patch", [(192, 128, 96), (128, 128, 128), (48, 64, 48)])
def test_less_than_half_of_the_time_is_left_over(patch):
    largest = topology_for(patch, SPACING)
    for minutes in (5, 8, 13, 20, 30, 50, 80, 120):
        choice = within(Budget(minutes, machine(2e10)[0], "a test"), largest, 2, SPACING)
        assert choice.topology == largest or choice.steps <= 2.3 * ENOUGH_STEPS


@pytest.mark.parametrize("overhead", [0.02, 0.1, 0.5])
def test_a_small_network_that_mostly_does_other_things_than_multiply_does_not_hide_larger_ones(overhead):
    """Of which the budget holds enough steps: the next larger one than what is chosen does not fit."""
    largest = topology_for((48, 64, 48), SPACING)
    for minutes in (5, 13, 30, 80):
        budget = Budget(minutes, machine(1e11, overhead=overhead)[0], "a test")
        choice = within(budget, largest, 2, SPACING)
        rungs = list(ladder(largest, 2, SPACING, 2))
        at = rungs.index((choice.topology, choice.batch))
        assert at == 0 or budget.seconds_of(*rungs[at - 1]) > budget.seconds
        assert at == len(rungs) - 1 or choice.steps >= ENOUGH_STEPS


def test_many_organs_are_not_told_apart_by_few_features():
    budget = Budget(5.0, machine(1e8)[0], "a test")
    assert within(budget, LARGE, 2, SPACING, classes=3).topology.first_features == 8
    assert within(budget, LARGE, 2, SPACING, classes=24).topology.first_features == 16


def test_more_time_never_gives_a_smaller_network():
    sizes = [
        work(one.topology, one.batch) for one in (chosen(3e10, minutes)[0] for minutes in (5.0, 15.0, 60.0, 600.0))
    ]
    assert all(small <= large for small, large in pairwise(sizes))


def test_a_step_that_takes_longer_than_its_multiplications_say_is_found_out():
    choice, asked = chosen(1e12, overhead=2.0)
    assert (choice.topology, choice.batch) in asked or choice.steps < ENOUGH_STEPS
    assert choice.steps <= 30 * 60 * TRAINING_SHARE / 2


def test_what_no_network_can_do_is_said():
    choice, _ = chosen(1e7)
    assert choice.steps < FEWEST_STEPS
    assert "nothing smaller is tried" in choice.reason


def test_multiplications_are_those_that_torch_counts():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medseg.nets import NetSpec, build_net

    topology = topology_for((32, 32, 32), SPACING)
    net = build_net("unet", NetSpec(1, 3, topology.patch_size, topology.strides, topology.kernels, topology.features))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 32, 32, 32))
    assert work(topology, 1) == pytest.approx(counter.get_total_flops() / 2, rel=0.15)


def test_a_step_is_timed_on_this_machine():
    seconds_of, machine = timing(1, 3)
    assert seconds_of(topology_for((16, 16, 16), SPACING), 1) > 0
    assert "CPU" in machine or "NVIDIA" in machine
