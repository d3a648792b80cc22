"""The report of a run: its test scored against the source files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from medseg.checkpoints.run import Run
from medseg.report.evaluate import Evaluation, evaluate
from medseg.report.html import write_report
from medseg.report.matching import references_of
from medseg.report.tables import print_summary
from medseg.store.store import Store


def report_test(
    run: Run, store: Store, cases: Sequence[str], *, note: str = "", console: Console | None = None
) -> Evaluation:
    """Score the predictions of `medseg test` against the source files, print the table, write report and note."""
    references, name = references_of(store, cases), store.plan.name
    evaluation = evaluate(run.test.predictions, references, output=run.test.path, cases=cases, console=console)
    write_report(
        evaluation,
        run.report,
        run=run,
        plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
        commands=(f"medseg fit --config {run.config} --run {run.path}", f"medseg test --run {run.path}"),
        title=f"{name}: {note}" if note else name,
    )
    print_summary(evaluation)
    return evaluation
