"""The report of a run: its test scored against the source files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medseg.checkpoints.run import Run
from medseg.datasets.matching import References
from medseg.report.evaluate import Evaluation, evaluate
from medseg.report.html import write_report
from medseg.report.tables import print_summary
from medseg.store.store import Store


def references_of(store: Store, cases: Sequence[str]) -> References:
    """The labels that cases of a store were prepared from, each of which must be predicted."""
    infos = {case: store.info(case) for case in cases}
    return References(
        {case: Path(str(info.label)) for case, info in infos.items()},
        {case: Path(info.images[0]) for case, info in infos.items()},
        store.plan.labels,
        store.plan.ignore,
        all_expected=True,
        annotated={case: info.annotated for case, info in infos.items() if info.annotated is not None},
        others=store.plan.others_value,
        raters={case: tuple(map(Path, info.drawn[1:])) for case, info in infos.items() if info.drawn[1:]},
        meanings={case: info.meaning for case, info in infos.items() if info.meaning is not None},
        datasets={case: info.dataset for case, info in infos.items() if info.dataset},
    )


def report_test(
    run: Run, store: Store, cases: Sequence[str], about: Mapping[str, Any] = MappingProxyType({}), **scoring: Any
) -> Evaluation:
    """Score the predictions of `medseg test` against the source files, print the table, write the report.

    The ``note`` in ``about``, which is as `medseg.report.evaluate.evaluate` takes it, is part of the report's title.
    How it is scored and shown is as `medseg.report.evaluate.evaluate` takes it.
    """
    references, name, note = references_of(store, cases), store.plan.name, about.get("note")
    evaluation = evaluate(run.test.predictions, references, output=run.test.path, cases=cases, about=about, **scoring)
    write_report(
        evaluation,
        run.report,
        run=run,
        plan=(store.path / "plan.yaml").read_text(encoding="utf-8"),
        commands=tuple(
            shlex.join(["medseg", *map(str, words)])
            for words in (("fit", "--config", run.config, "--run", run.path), ("test", "--run", run.path))
        ),
        title=f"{name}: {note}" if note else name,
    )
    print_summary(evaluation)
    return evaluation
