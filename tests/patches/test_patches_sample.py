from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples

from medseg.patches.sample import Deck, Schedule, decks, place_patch

settings_of_schedules = st.fixed_dictionaries(  # built in the test: run-time type checks use chance of their own
    {
        "cases": st.integers(3, 12),
        "with_organs": st.sampled_from([(0, 1, 2), (0,), (2, 1), ()]),
        "batch_size": st.integers(1, 9),
        "steps": st.integers(1, 12),
        "ranks": st.integers(1, 4),
        "seed": st.integers(0, 99),
        "oversample": st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 1.0]),
    }
)


def dealt_by(*, cases, with_organs, **numbers):
    return Schedule(Deck(tuple(range(cases))), Deck(tuple(with_organs)), **numbers)


@given(numbers=settings_of_schedules, epoch=st.integers(0, 5))
def test_every_batch_has_its_share_of_organs_last(numbers, epoch):
    schedule = dealt_by(**numbers)
    shares = []
    for number in range(schedule.steps):
        per_rank = [schedule.batch(epoch, number, rank) for rank in range(schedule.ranks)]
        for slots in per_rank:
            assert len(slots) == schedule.batch_size
            marks = [slot.foreground for slot in slots]
            assert marks == sorted(marks)
            assert all(slot.case in schedule.on_organs.cases for slot in slots if slot.foreground)
        counts = [sum(slot.foreground for slot in slots) for slots in per_rank]
        assert max(counts) - min(counts) <= 1  # shared out evenly
        shares.append(sum(counts))
    samples = schedule.batch_size * schedule.ranks
    if not schedule.on_organs.cases:
        assert not any(shares)
    elif samples > 1:
        assert set(shares) == {int(np.ceil(samples * schedule.oversample - 1e-9))}
    else:
        assert sum(shares) == int(np.ceil(len(shares) * schedule.oversample - 1e-9))


@given(numbers=settings_of_schedules, epoch=st.integers(0, 5), number=st.integers(0, 11))
def test_ranks_share_the_batch_that_one_process_would_have(numbers, epoch, number):
    alone = dealt_by(**numbers | {"ranks": 1, "batch_size": numbers["ranks"] * numbers["batch_size"]})
    schedule = dealt_by(**numbers)
    shared = [slot for rank in range(schedule.ranks) for slot in schedule.batch(epoch, number, rank)]
    assert sorted(shared, key=lambda slot: slot.sample) == list(alone.batch(epoch, number))


@given(numbers=settings_of_schedules, epoch=st.integers(0, 5))
def test_every_case_comes_once_before_any_comes_twice_over_all_ranks(numbers, epoch):
    schedule = dealt_by(**numbers)
    dealt = Counter(
        slot.case
        for number in range(schedule.steps)
        for rank in range(schedule.ranks)
        for slot in schedule.batch(epoch, number, rank)
        if not slot.foreground
    )
    total = sum(dealt.values())
    counts = [dealt[case] for case in schedule.anywhere.cases]
    if total >= len(counts):  # whole rounds, then a part of one
        assert min(counts) == total // len(counts)
        assert max(counts) == -(-total // len(counts))
    else:  # a part of a round, which may end and begin within the epoch
        assert max(counts, default=0) <= 2


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rounds_longer_than_an_epoch_run_on(steps):
    schedule = dealt_by(cases=10, with_organs=(), batch_size=2, steps=steps, oversample=0.0)
    first_round = [slot.case for turn in range(5) for slot in schedule.batch(turn // steps, turn % steps)]
    assert sorted(first_round) == list(range(10))


def test_a_batch_is_a_pure_function_and_epochs_ranks_and_seeds_differ():
    def cases(epoch=1, number=2, rank=0, seed=0):
        schedule = Schedule(
            Deck(tuple(range(200))), Deck(tuple(range(200))), batch_size=8, steps=50, ranks=2, seed=seed
        )
        return [slot.case for slot in schedule.batch(epoch, number, rank)]

    assert cases() == cases()
    others = [cases(epoch=2), cases(number=3), cases(rank=1), cases(seed=1)]
    assert all(other != cases() for other in others)


def test_ranks_never_share_a_card_within_a_round():
    schedule = dealt_by(cases=64, with_organs=range(64), batch_size=4, steps=4, ranks=4, oversample=0.0)
    dealt = [slot.case for b in range(4) for r in range(4) for slot in schedule.batch(0, b, r)]
    assert sorted(dealt) == list(range(64))


@pytest.mark.parametrize(
    ("wrong", "sentence"), [({"cases": 0}, "at least one case"), ({"oversample": 1.5}, "between 0 and 1")]
)
def test_refuses_with_a_way_out(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        dealt_by(**({"cases": 1, "with_organs": (), "batch_size": 1, "steps": 1} | wrong))


@pytest.mark.parametrize("balance", ["none", "datasets", "organs", "both"])
def test_what_is_balanced_comes_equally_often_and_every_case_comes(balance):
    """One organ in two cases of a dataset of four, another in all of a dataset of twelve and in one of the first."""
    datasets = ["small"] * 4 + ["large"] * 12
    organs = [{1}, {1}, {2}, set(), *[{2}] * 12]
    anywhere, on_organs = decks(balance, datasets, organs)
    schedule = Schedule(anywhere, on_organs, batch_size=6, steps=960, oversample=0.5)
    slots = [slot for number in range(960) for slot in schedule.batch(0, number)]
    assert {slot.case for slot in slots} == set(range(16))
    on = [slot for slot in slots if slot.foreground]
    assert all(slot.organ is None or slot.organ in organs[slot.case] for slot in on)

    def share(some, condition):
        return sum(map(condition, some)) / len(some)

    small = share([slot for slot in slots if not slot.foreground], lambda slot: datasets[slot.case] == "small")
    assert small == pytest.approx(0.5 if balance in ("datasets", "both") else 0.25, abs=0.01)
    first = share(on, lambda slot: organs[slot.case] == {1})
    expected = {"none": 2 / 15, "datasets": 1 / 3, "organs": 1 / 2, "both": 1 / 2}[balance]  # 2 of 3 of the small half
    assert first == pytest.approx(expected, abs=0.01)
    second = [slot for slot in on if organs[slot.case] == {2}]
    of_small = {"none": 1 / 13, "datasets": 1 / 4, "organs": 1 / 13, "both": 1 / 2}[balance]
    assert share(second, lambda slot: datasets[slot.case] == "small") == pytest.approx(of_small, abs=0.01)


shapes = st.tuples(*[st.integers(1, 40)] * 3)


@examples(200)
@given(shape=shapes, patch=shapes, seed=st.integers(0, 1000), data=st.data())
def test_patches_lie_in_the_volume_and_hold_the_organ(shape, patch, seed, data):
    voxel = np.array([[data.draw(st.integers(0, size - 1)) for size in shape]])
    for organs in (None, {}, {3: voxel}):
        location = place_patch(np.random.default_rng(seed), shape, patch, organs)
        for corner, size, extent in zip(location.corner, location.size, shape, strict=True):
            assert min(0, extent - size) <= corner <= max(0, extent - size)
    held = (voxel[0] >= location.corner) & (voxel[0] < np.add(location.corner, location.size))
    assert held.all()


def test_the_organ_is_not_always_in_the_centre_but_never_at_the_rim():
    voxel = np.array([[50, 50, 50]])
    rng = np.random.default_rng(0)
    corners = [place_patch(rng, (100, 100, 100), (16, 16, 16), {1: voxel}).corner for _ in range(400)]
    within = 50 - np.array(corners)
    assert within.min() == 4
    assert within.max() == 12


def test_a_tiny_organ_is_seen_as_often_as_a_large_one():
    large = np.argwhere(np.ones((30, 30, 30)))[:, :]
    organs = {1: large, 2: np.array([[25, 25, 25]])}
    rng = np.random.default_rng(0)
    places = [place_patch(rng, (30, 30, 30), (4, 4, 4), organs) for _ in range(600)]
    seen = [all(c <= 25 < c + 4 for c in place.corner) for place in places]
    assert 0.4 < np.mean(seen) < 0.6


def test_places_are_evenly_spread():
    rng = np.random.default_rng(0)
    corners = Counter(place_patch(rng, (7, 4, 4), (4, 4, 4)).corner[0] for _ in range(4000))
    assert set(corners) == {0, 1, 2, 3}
    assert min(corners.values()) > 850
