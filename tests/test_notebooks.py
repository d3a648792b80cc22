"""The notebooks run from end to end on the CPU, with smaller numbers than their own, and are kept without output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install 'medseg[notebooks]'")
pytest.importorskip("nbclient", reason="pip install 'medseg[notebooks]'")
pytest.importorskip("matplotlib", reason="pip install 'medseg[notebooks]'")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "01_case_and_plan": "CASES = 5",
    "02_losses": "STEPS, EVERY, SHARES, CONDITIONS = 24, 12, SHARES[::2], CONDITIONS[-1:]",
    "03_demo_and_report": "CASES, UNSEEN, BUDGET = 6, 2, '--trainer.max_steps 80 --trainer.max_time null'",
    "04_own_dataset": "CASES, STEPS = 6, 150",
    "05_one_loss_in_your_loop": "STEPS = 100",
}
"""What replaces the values of the cell with the tag ``parameters``."""

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
"""


def read(path):
    return nbformat.read(path, as_version=4)


def test_every_notebook_is_here_and_none_is_forgotten():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "clear the outputs before saving"
        assert cell.get("execution_count") is None
        assert not cell.get("attachments")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_narrative_that_asserts_something(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert sum(cell.cell_type == "markdown" for cell in cells) >= len(cells) / 3
    assert any("assert " in cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = read(path)
    (at,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(SMALL[path.stem]))
    nbformat.write(notebook, tmp_path / path.name)
    places = {"IPYTHONDIR": str(tmp_path / "ipython"), "TMPDIR": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, path.name], cwd=tmp_path, env={**os.environ, **places},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
