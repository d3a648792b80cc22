"""Every command costs about the same per case however many there are: counted in calls, so that no clock is needed."""

import cProfile
import json
import math
import pstats
from pathlib import Path

import numpy as np
import pytest
from support.toys import write_nifti

import medseg.checkpoints.checkpoint
import medseg.cli.info
import medseg.report.html  # noqa: F401 - a command imports what it needs, which is not to be counted
from medseg.cli import main

FEW, MANY = 4, 16
GROWTH = MANY * math.log(MANY) / (FEW * math.log(FEW))  # names are sorted
SLACK = 200  # calls that grow with something else: digits, layers of a cache, a table that is filled once


def write_cases(root, count):
    (root / "data").mkdir()
    (root / "data" / "dataset.json").write_text(json.dumps({"modality": ["MR"], "labels": {"block": 1, "knob": 2}}))
    for case in range(count):
        rng = np.random.default_rng(case)
        labels = np.zeros((10, 9, 8), np.uint8)
        labels[2:6, 2:6, 2:6], labels[6:8, 5:8, 3:6] = 1, 2
        image = (labels * 400.0 + rng.normal(0, 50, labels.shape)).astype(np.int16)
        for part, voxels in (("images", image), ("labels", labels)):
            write_nifti(root / "data" / part / f"case_{case:03d}.nii.gz", voxels, np.eye(4))


def commands(root):
    labels = str(root / "data" / "labels")
    return {
        "verify": ["verify", str(root / "data")],
        "plan": ["plan", str(root / "data"), "--out", str(root / "plan.yaml")],
        "prepare": ["prepare", str(root / "data"), "--out", str(root / "store"), "--workers", "1"],
        "prepare, again": ["prepare", str(root / "data"), "--out", str(root / "store"), "--workers", "1"],
        "info": ["info", str(root / "data")],
        "evaluate": [
            "evaluate",
            "--predictions",
            labels,
            "--references",
            str(root / "data"),
            "--output",
            str(root / "scores"),
        ],
        "compare-runs": ["compare-runs", str(root / "scores"), str(root / "scores")],
    }


def counted(words):
    """How often each function was called, by its place."""
    profile = cProfile.Profile()
    status = profile.runcall(main, words)
    assert status == 0, words
    return {place: calls for place, (_, calls, *_) in pstats.Stats(profile).stats.items() if place[0] != "~"}


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    found = {}
    for count in (FEW, MANY):
        root = tmp_path_factory.mktemp("many")
        write_cases(root, count)
        found[count] = {name: counted(words) for name, words in commands(root).items()}
    return found


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("command", commands(Path()))
def test_no_function_is_called_more_than_the_number_of_cases_allows(counts, command):
    few, many = counts[FEW][command], counts[MANY][command]
    allowed = {place: few.get(place, 0) * GROWTH + SLACK for place in many}
    assert not {place: (few.get(place, 0), calls) for place, calls in many.items() if calls > allowed[place]}
