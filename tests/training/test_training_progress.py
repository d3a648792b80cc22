"""What a user sees while a network trains."""

import io

import pytest
from rich.console import Console
from support.runs import WORDS

from medseg.cli import main
from medseg.training import callbacks
from medseg.training.progress import FitProgress, dice

SHOWN = [word for word in WORDS if word not in ("--trainer.enable_progress_bar", "false")]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "budget",
    # An hour is never what ends it: how many validations fit into a few seconds depends on the machine.
    [["--trainer.max_steps", "6"], ["--trainer.max_time", "00:01:00:00", "--trainer.max_epochs", "2"]],
    ids="st",
)
@pytest.mark.parametrize("terminal", [True, False])
def test_every_validation_leaves_one_line_and_a_terminal_one_that_moves(store, tmp_path, monkeypatch, budget, terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    monkeypatch.setattr(callbacks, "FitProgress", lambda: FitProgress(console))
    assert main(["fit", "--data.store", str(store), "--run", str(tmp_path / "run"), *SHOWN, *budget]) == 0
    told = text.getvalue()
    lines = [line for line in told.splitlines() if "Dice" in line and "liver" in line and "spleen" in line]
    assert len(lines) >= 2
    assert "dice " in lines[0]
    assert "cross_entropy " in lines[0]
    assert " left" in lines[0]
    assert "for data" in lines[1]
    # The screen is drawn a few times a second: which of the two cases it catches depends on the machine.
    assert ("validation, case " in told) is terminal
    assert "/-" not in told, "a budget that is not there is not shown"


def test_a_narrow_line_names_the_worst_organ_of_many():
    scores = {f"val/dice/organ_{index}": 0.5 + index / 100 for index in range(15)}
    assert dice({"val/dice": 0.57, **scores}, most=1) == "Dice 0.570 (lowest of 15: organ_0 0.500)"
    assert len(dice({"val/dice": 0.57, **{f"val/dice/organ_{index}": 0.5 for index in range(60)}})) < 120
    assert dice({}) == ""
