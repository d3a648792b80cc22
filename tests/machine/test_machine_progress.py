"""A bar where somebody watches, plain lines where a file does."""

import io

from rich.console import Console

from medseg.machine.progress import progress


def shown(**options):
    console = Console(file=io.StringIO(), width=80, **options)
    with progress("predicting", 2, console) as advance:
        advance("[a]")
        advance("")
    return console.file.getvalue()


def test_a_file_gets_a_line_per_named_case_and_no_bar():
    assert shown() == "predicting 1 of 2: [a]\n"


def test_a_terminal_gets_both():
    said = shown(force_terminal=True)
    assert "predicting 1 of 2: [a]" in said
    assert said.count("predicting") > 1
    assert "2/2" in said
