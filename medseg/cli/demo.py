"""The whole journey in a few minutes: invent a dataset, prepare, train, predict unseen cases, report."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from medseg.checkpoints.run import Run, Scores
from medseg.cli.training import run_lightning
from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.inference.folder import predict_cases
from medseg.inference.predict import Predictor
from medseg.phantom.phantom import write_phantom
from medseg.report.evaluate import evaluate
from medseg.report.html import write_report
from medseg.report.tables import print_summary
from medseg.store.prepare import prepare

TRAINING_CASES, UNSEEN_CASES = 24, 6
CONFIG = "demo.yaml"


def demo(out: Path, minutes: float | None = None) -> int:
    """Run the journey in the folder ``out``, which may hold an earlier demo but nothing else; give the exit status.

    Args:
        out: Folder for all it makes.
        minutes: Time to train in; None takes what the config says.

    Raises:
        DataError: The folder holds something that is not a demo's.
    """
    _clear(out)
    console = Console()
    logging.getLogger("medseg").setLevel(logging.WARNING)
    dataset, store, run, scores = out / "phantom", out / "store", Run(out / "run"), Scores(out)
    fit = ["fit", "--config", str(demo_config()), "--data.store", str(store), "--run", str(run.path)]
    fit += [] if minutes is None else [f"--trainer.max_time={{seconds: {round(60 * minutes)}}}"]
    with _chapter(console, f"1. Invent {TRAINING_CASES} abdominal CTs to train on and {UNSEEN_CASES} to be judged on"):
        write_phantom(dataset, TRAINING_CASES, test=UNSEEN_CASES)
    with _chapter(console, f"2. medseg prepare {dataset} --out {store}"):
        prepare(dataset, store)
    with _chapter(console, f"3. medseg {shlex.join(fit)}"):
        run_lightning(fit)
    images, predictions = dataset / "imagesTs", scores.predictions
    references, labels = dataset / "labelsTs", dataset / "dataset.json"
    scored = ["--predictions", predictions, "--references", references, "--labels", labels, "--output", out]
    commands = [
        shlex.join(["medseg", *map(str, words)])
        for words in (
            ["predict", "--ckpt", run.best, "--input", images, "--output", predictions],
            ["evaluate", *scored],
        )
    ]
    with _chapter(console, f"4. {commands[0]}"):
        outcome = predict_cases(Predictor.load([run.best]), images, predictions, console=console)
    with _chapter(console, f"5. {commands[1]}"):
        organs = read_dataset(dataset).labels
        pictures = {path.name.removesuffix(".nii.gz"): path for path in sorted(images.glob("*.nii.gz"))}
        result = evaluate(predictions, dataset / "labelsTs", output=out, organs=organs, images=pictures)
        plan = (store / "plan.yaml").read_text(encoding="utf-8")
        write_report(result, run=run, plan=plan, commands=commands, title="The demo's unseen cases")
    print_summary(result)
    console.print(f"Open {scores.report} in a browser.", highlight=False)
    return 1 if outcome.failures else result.exit_status


def demo_config() -> Path:
    """The demo's config: ``configs/demo.yaml`` of a checkout, or the copy that an installed wheel carries."""
    here = Path(__file__)
    checkout = here.parents[2] / "configs" / CONFIG
    return checkout if checkout.is_file() else here.with_name(CONFIG)


def _clear(out: Path) -> None:
    """Remove an earlier demo; refuse a folder of anything else."""
    scores = Scores(out)
    parts = {"phantom", "store", "run"}
    parts |= {path.name for path in (scores.predictions, scores.report, scores.summary, scores.cases)}
    strangers = {path.name for path in out.iterdir()} - parts if out.is_dir() else set()
    if strangers:
        raise DataError(out, f"holds {min(strangers)!r}, which is no part of a demo", "Choose another --out")
    if out.exists():
        shutil.rmtree(out)


@contextmanager
def _chapter(console: Console, title: str) -> Iterator[None]:
    console.rule(f"[bold]{title}", align="left")
    start = time.monotonic()
    yield
    console.print(f"{time.monotonic() - start:.0f} s", style="dim", highlight=False)
