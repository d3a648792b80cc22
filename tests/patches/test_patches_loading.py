"""How a process reads: workers, memory and shared memory, as its machine and its neighbours allow."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.patches import loading
from medseg.patches.loader import RankShare
from medseg.patches.loading import AHEAD, Sizes, decide
from medseg.patches.shared import CAN_SHARE, SharedVolumes

MIB = 2**20
BATCH = Sizes(decoded=49 * 2**30, batch=81 * MIB, volume=500 * MIB)


@pytest.fixture
def machine(monkeypatch):
    """A machine with so much memory, shared memory and cores."""

    def have(*, free=500 * 2**30, shared=None, cores=64, gpu=False):
        monkeypatch.setattr(loading, "free_memory", lambda: free)
        monkeypatch.setattr(loading, "shared_memory_bytes", lambda: shared)
        monkeypatch.setattr(loading, "usable_cores", lambda: cores)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    return have


@pytest.mark.parametrize(
    ("workers", "cache", "free", "expected"),
    [
        (None, "auto", 500, (0, True)),
        (None, "auto", 1, (4, False)),
        (None, "disk", 500, (4, False)),
        (None, "memory", 1, (0, True)),
        (2, "auto", 500, (2, True)),
        (0, "disk", 500, (0, False)),
    ],
)
def test_volumes_stay_in_memory_when_they_fit(machine, workers, cache, free, expected):
    machine(free=free * 2**30)
    found = decide(workers, cache, BATCH)
    assert (found.workers, found.in_memory) == expected


@pytest.mark.parametrize("share", [True, False])
def test_eight_processes_of_a_machine_plan_for_one_machine(machine, monkeypatch, share):
    monkeypatch.setattr(loading, "CAN_SHARE", share)
    machine(gpu=True, cores=64)
    alone, shared = decide(None, "auto", BATCH), decide(None, "auto", BATCH, neighbours=8)
    assert (alone.workers, shared.workers) == (8, 7)
    assert shared.in_memory == share  # 49 GiB once, or 8 x 7 times, of 500


@pytest.mark.skipif(not CAN_SHARE, reason="needs memfd_create")
def test_a_case_is_decoded_once_for_all_processes_of_a_machine(tmp_path):
    """A process of its own finds what this one has decoded, and this one what that one has."""
    made = SharedVolumes.make({"a": (3, 4, 5), "b": (2, 2, 2)}, channels=2)
    image, labels = (
        np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32),
        np.arange(60).reshape(3, 4, 5),
    )
    made.arrays("a", lambda: (image, labels))
    asked = (
        "import pickle, sys, numpy as np; v = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "image, labels = v.arrays('a', None); print(image.sum(), labels.sum()); "
        "v.arrays('b', lambda: (np.full((2, 2, 2, 2), 7.0), np.ones((2, 2, 2))))"
    )
    words = [sys.executable, "-c", asked, pickle.dumps(made).hex()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert [float(word) for word in done.stdout.split()] == pytest.approx([float(image.sum()), 1770], rel=1e-4)
    found = made.arrays("b", lambda: pytest.fail("decoded twice"))
    assert (found[0] == 7).all()
    assert (found[1] == 1).all()


@pytest.mark.parametrize("shared", [64 * MIB, 300 * MIB, 2**30, 4 * 2**30, 2**34])
@pytest.mark.parametrize("neighbours", [1, 4])
def test_what_workers_have_ready_fits_into_shared_memory(machine, monkeypatch, shared, neighbours):
    said = []
    monkeypatch.setattr(loading, "rank_zero_info", said.append)
    machine(shared=shared, gpu=True, free=0)
    found = decide(4, "disk", BATCH, neighbours=neighbours)
    ready = BATCH.batch * (found.workers * found.ahead + 1) if found.workers else 0
    volumes = BATCH.volume * (found.volume_workers + 1) if found.volume_workers else 0
    assert neighbours * (ready + volumes) <= shared
    assert 1 <= found.ahead <= AHEAD
    told = (found.workers, found.ahead) != (4, AHEAD)
    assert [told] * told == ["--shm-size 16g" in sentence for sentence in said]


SMALL = """
import sys
from pathlib import Path
from medseg.patches.datamodule import VolumesDataModule
if __name__ == "__main__":
    sizes = {"batch_size": 24, "patch_size": (96, 96, 64)}
    data = VolumesDataModule(Path(sys.argv[1]), folds=2, workers=2, cache="disk", **sizes)
    loader = data.train_dataloader()
    print(len(next(iter(loader)).id), loader.num_workers)
"""


@pytest.mark.slow  # of imports; what is decided is tried above
def test_a_container_with_64_mib_of_shared_memory_trains(toy_dataset, tmp_path):
    from medseg.store.prepare import prepare

    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to mount a file system in a namespace of its own")
    prepare(toy_dataset, tmp_path / "store", workers=1)
    (tmp_path / "small.py").write_text(SMALL)
    mount = "mount -t tmpfs -o size=64m none /dev/shm && exec "
    words = f"{mount}{sys.executable} {tmp_path / 'small.py'} {tmp_path / 'store'}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["24", "0"]
    assert "has room for 64 MiB" in done.stderr


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 8))
def test_cases_are_dealt_by_size_and_each_once(sizes, ranks):
    shares = [list(RankShare(sizes, rank=rank, ranks=ranks)) for rank in range(ranks)]
    dealt = [case for case in itertools.chain(*shares) if case >= 0]
    assert sorted(dealt) == list(range(len(sizes)))
    loads = [sum(sizes[case] for case in share if case >= 0) for share in shares]
    assert max(loads) <= sum(sizes) / ranks + max(sizes, default=0)  # Graham's bound
