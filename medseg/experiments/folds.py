"""Cross-validation: a training per fold, and the held-out cases of all folds pooled into one evaluation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from medseg.checkpoints.facts import read_facts
from medseg.checkpoints.run import Run, Scores
from medseg.errors import CheckpointError, UsageError
from medseg.experiments.comparison_page import failures
from medseg.experiments.job import Job
from medseg.experiments.results import Result
from medseg.experiments.sweep import Outcome
from medseg.metrics.cases import DEFAULT_TOLERANCE_MM
from medseg.pictures.page import table
from medseg.plan.plan import Plan
from medseg.report.evaluate import Evaluation, write_evaluation
from medseg.report.html import write_report
from medseg.report.matching import Pair
from medseg.report.scoring import Scoring
from medseg.report.summary import summarise
from medseg.store.store import Store


def fold_jobs(words: Sequence[str], folds: Iterable[int], output: Path) -> tuple[Job, ...]:
    """A job per fold; nothing else differs between them.

    Args:
        words: What follows ``medseg fit`` in all of them.
        folds: Their numbers.
        output: Folder of the run folders.
    """
    return tuple(
        Job(f"fold {fold}", output / f"fold{fold}", (*words, "--data.fold", str(fold)), {"fold": str(fold)})
        for fold in folds
    )


def require_each_case_once(held_out: Sequence[Sequence[str]]) -> None:
    """Refuse folds that hold a case out twice, which would count twice in the pool.

    Raises:
        UsageError: A case is in two folds.
    """
    seen: set[str] = set()
    for cases in held_out:
        twice = seen & set(cases)
        if twice:
            raise UsageError(f"case {min(twice)!r} is held out by two folds", "Correct the split file")
        seen |= set(cases)


def require_same_task(jobs: Sequence[Job], plan: Plan) -> None:
    """Refuse folds that an earlier sweep trained on other labels, other channels or another plan.

    Raises:
        CheckpointError: A fold was.
    """
    for job in jobs:
        path = Run(job.run).best
        if not path.is_file():
            continue
        theirs = read_facts(path).plan
        if theirs == plan:
            continue
        what = "another plan of the same organs"
        if (theirs.labels, theirs.modalities) != (plan.labels, plan.modalities):
            what = f"{', '.join(theirs.organs)} of {', '.join(theirs.modalities)}"
        raise CheckpointError(
            path,
            f"was trained on {what}, the store holds {', '.join(plan.organs)} of {', '.join(plan.modalities)}",
            "Choose another --output, or remove that fold's folder",
        )


def pool_folds(
    results: Sequence[Result], outcomes: Sequence[Outcome], store: Store, output: Path, *, command: str
) -> Evaluation:
    """Pool the held-out cases of the folds: ``cases.csv``, ``summary.json``, ``report.html`` and ``predictions/``.

    Args:
        results: The finished folds.
        outcomes: Of all folds; those that failed are named in the report, their cases are not in the pool.
        store: Knows where references and images are.
        output: Folder to write to.
        command: What to type to have this again.
    """
    plan = store.plan
    rows = tuple(sorted((row for result in results for row in result.rows), key=lambda row: row.case))
    infos = {row.case: store.info(row.case) for row in rows}
    predictions = _gather([Run(result.job.run).test.predictions for result in results], Scores(output).predictions)
    evaluation = Evaluation(
        scoring=Scoring(dict(plan.labels), plan.ignore, DEFAULT_TOLERANCE_MM, "voxels"),
        rows=rows,
        summary=summarise(rows),
        failures=tuple(failure for result in results for failure in result.not_scored),
        not_predicted=0,
        pairs=tuple(Pair(case, predictions / f"{case}.nii.gz", Path(str(i.label))) for case, i in infos.items()),
        images={case: Path(info.images[0]) for case, info in infos.items()},
        output=output,
    )
    write_evaluation(evaluation)
    write_report(
        evaluation,
        plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
        config=Run(results[0].job.run).config.read_text(encoding="utf-8") if results else "",
        commands=(command,),
        title=f"{plan.name}, {len(results)} folds pooled",
        first=(("lost", "Folds without a result", _lost(outcomes)), ("folds", "Folds", _fold_table(results))),
    )
    return evaluation


def _gather(folders: Sequence[Path], target: Path) -> Path:
    """Put the predictions of all folds into one folder, as links where the file system has them."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (path for folder in folders for path in sorted(folder.glob("*.nii.gz"))):
        link = target / path.name
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:
            shutil.copyfile(path, link)
    return target


def _lost(outcomes: Sequence[Outcome]) -> str:
    listed = failures(outcomes)
    return f"<p>Their held-out cases are missing from everything below.</p>{listed}" if listed else ""


def _fold_table(results: Sequence[Result]) -> str:
    organs = list(dict.fromkeys(organ for result in results for organ in result.summary.organs))
    heads = ("fold", "cases", "mean Dice", *map(escape, organs), "minutes")
    rows = [
        [
            escape(result.job.title),
            str(result.summary.cases),
            f"{result.mean_dice:.3f}",
            *(_dice(result, organ) for organ in organs),
            "" if result.minutes is None else f"{result.minutes:.1f}",
        ]
        for result in results
    ]
    return table(heads, rows)


def _dice(result: Result, organ: str) -> str:
    found = result.summary.organs.get(organ)
    return "" if found is None else f"{found.measures['dice'].mean:.3f}"
