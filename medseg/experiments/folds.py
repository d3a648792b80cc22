"""Cross-validation: a training per fold, and the held-out cases of all folds pooled into one evaluation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from medseg.checkpoints.run import ENSEMBLE, Run, Scores
from medseg.errors import DataError, UsageError, listed
from medseg.experiments.comparison_page import failures
from medseg.experiments.job import Job
from medseg.experiments.results import Result
from medseg.experiments.sweep import JobEnd
from medseg.machine.files import write_json
from medseg.metrics.measures import DEFAULT_TOLERANCE_MM
from medseg.pictures.markup import Markup, element
from medseg.pictures.page import table
from medseg.report.evaluate import Evaluation, write_evaluation
from medseg.report.html import write_report
from medseg.report.rows import by_case
from medseg.report.run_report import references_of
from medseg.report.scoring import Scoring
from medseg.report.summary import summarise
from medseg.space.reading import case_name, images_in
from medseg.store.store import Store


def fold_jobs(words: Sequence[str], folds: Iterable[int], output: Path) -> tuple[Job, ...]:
    """A job per fold; nothing else differs between them."""
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
            raise UsageError(
                f"case {min(twice)!r} is held out by two folds", "Correct the split file, or choose another --output"
            )
        seen |= set(cases)


def pool_folds(
    results: Sequence[Result], ends: Sequence[JobEnd], store: Store, output: Path, *, command: str
) -> Evaluation:
    """Pool the held-out cases of the folds: ``cases.csv``, ``summary.json``, ``report.html`` and ``predictions/``.

    Raises:
        UsageError: Two folds scored the same case.
        DataError: One scored a case that the store no longer holds.
    """
    plan, scores = store.plan, [result.scores for result in results]
    held_out = [list(by_case(some.rows)) for some in scores]
    require_each_case_once(held_out)
    known = set(store.ids)
    gone = [case for cases in held_out for case in cases if case not in known]
    if gone:
        raise DataError(store.path, f"no longer holds {listed(gone)}, which was tested", "Choose another --output")
    rows = tuple(sorted((row for some in scores for row in some.rows), key=lambda row: row.case))
    references = references_of(store, list(by_case(rows)))
    folder = _gather([Run(result.job.run).test.predictions for result in results], Scores(output).predictions)
    found = {case_name(path): path for path in images_in(folder)}
    evaluation = Evaluation(
        scoring=Scoring(dict(plan.labels), plan.ignore, DEFAULT_TOLERANCE_MM, "voxels", plan.others_value),
        rows=rows,
        summary=summarise(rows),
        failures=tuple(failure for some in scores for failure in some.failures),
        not_predicted=0,
        pairs=tuple(references.pair(case, found.get(case, folder / case)) for case in references.labels),
        images=references.images,
        output=output,
        digests={case: digest for some in scores for case, digest in some.references.items()},
    )
    write_evaluation(evaluation)
    write_report(
        evaluation,
        plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
        config=Run(results[0].job.run).config.read_text(encoding="utf-8") if results else "",
        commands=(command,),
        title=f"{plan.name}, {len(results)} folds pooled",
        first=(("lost", "Folds without a result", _lost(ends)), ("folds", "Folds", _fold_table(results))),
    )
    return evaluation


def _gather(folders: Sequence[Path], target: Path) -> Path:
    """Put the predictions of all folds into one folder, as links where the file system has them."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (path for folder in folders for path in images_in(folder)):
        link = target / path.name
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:
            shutil.copyfile(path, link)
    return target


def _lost(ends: Sequence[JobEnd]) -> Markup:
    lost = failures(ends)
    return element("p", "Their held-out cases are missing from everything below.") + lost if lost else lost


def _fold_table(results: Sequence[Result]) -> Markup:
    organs = list(dict.fromkeys(organ for result in results for organ in result.summary.organs))
    heads = ("fold", "cases", "mean Dice", *organs, "minutes")
    rows = [
        [
            result.job.title,
            str(result.summary.cases),
            "" if result.summary.mean_dice is None else f"{result.summary.mean_dice:.3f}",
            *(_dice(result, organ) for organ in organs),
            "" if result.minutes is None else f"{result.minutes:.1f}",
        ]
        for result in results
    ]
    return table(heads, rows)


def _dice(result: Result, organ: str) -> str:
    found = result.summary.organs.get(organ)
    return "" if found is None else f"{found.measures['dice'].mean:.3f}"


def write_ensemble(results: Sequence[Result], ends: Sequence[JobEnd], output: Path) -> Path:
    """List the checkpoints of finished folds in ``ensemble.json``, relative to it, for `medseg predict --ckpt DIR`."""
    members = [Run(result.job.run).best.relative_to(output).as_posix() for result in results]
    lost = [end.job.title for end in ends if end.failure]
    write_json(output / ENSEMBLE, {"checkpoints": members, "lost": lost})
    return output / ENSEMBLE
