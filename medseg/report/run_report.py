"""The report of a run: its test scored against the source files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from medseg.checkpoints.run import Run
from medseg.plan.plan import Plan
from medseg.report.evaluate import Evaluation, evaluate
from medseg.report.html import write_report
from medseg.report.matching import References
from medseg.report.tables import print_summary
from medseg.store.store import Store


def report_test(
    run: Run, store: Store, cases: Sequence[str], plan: Plan, *, note: str = "", console: Console | None = None
) -> Evaluation:
    """Score the predictions of `medseg test` against the source files, print the table, write the report.

    Args:
        run: Whose test.
        store: Knows where each reference is.
        cases: Those that were predicted.
        plan: Names the organs.
        note: What a reader of the scores must know, for the title.
        console: Where to show how far it is; None shows nothing.
    """
    infos = {case: store.info(case) for case in cases}
    evaluation = evaluate(
        run.test.predictions,
        References(
            labels={case: Path(str(info.label)) for case, info in infos.items()},
            images={case: Path(info.images[0]) for case, info in infos.items()},
            organs=plan.labels,
            ignore=plan.ignore,
            all_expected=True,
            annotated={case: info.annotated for case, info in infos.items() if info.annotated is not None},
        ),
        output=run.test.path,
        cases=cases,
        console=console,
    )
    write_report(
        evaluation,
        run.report,
        run=run,
        plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
        commands=(f"medseg fit --config {run.config} --run {run.path}", f"medseg test --run {run.path}"),
        title=f"{plan.name}: {note}" if note else plan.name,
    )
    print_summary(evaluation)
    return evaluation
