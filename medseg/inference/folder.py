"""A folder of images to a folder of label files: reading, computing and writing at once, going on where it stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from medseg.datasets.case import read_dataset
from medseg.errors import DataError, MedsegError, UsageError
from medseg.inference.belt import Belt, Work, explained, label_file
from medseg.inference.images import find_cases
from medseg.inference.objects import require_series
from medseg.inference.predict import Predictor
from medseg.inference.resume import Record
from medseg.machine.files import require_writable
from medseg.machine.progress import Advance, progress
from medseg.plan.plan import Plan
from medseg.space.reading import ENDINGS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderOutcome:
    """What a prediction over a folder came to.

    Attributes:
        written: Label files written by this call.
        failures: Why each other case has none.
        kept: Label files of an earlier call that are still what this one would write.
    """

    written: tuple[Path, ...]
    failures: tuple[MedsegError, ...]
    kept: tuple[Path, ...] = ()


def predict_cases(
    predictor: Predictor | Sequence[Predictor],
    source: Path,
    output: Path,
    *,
    save_probabilities: bool = False,
    training_too: bool = False,
    overwrite: bool = False,
    form: str | None = None,
    console: Console | None = None,
) -> FolderOutcome:
    """Segment an image or a folder of images, each written on its grid, in its format if that holds labels.

    While networks work, the next images are read and finished ones are cleaned and written, see
    `medseg.inference.belt.Belt`. A case that fails is reported and the others go on; a file appears whole or not at
    all. A prediction that is there already, made from the same files by the same checkpoints and options as
    ``predictions.json`` of the folder tells, is kept.

    Args:
        predictor: What to segment with; several, alike but for their devices, share the cases.
        source: A dataset, an image file, or a folder of images; a case with several modalities is one 4D file, or a
            file per modality ending in ``_0000``, ``_0001`` and so on, or in the modality's name. See
            `medseg.inference.images`.
        output: Folder to write to.
        save_probabilities: Also write ``CASE.npz`` with ``probabilities`` ``(c, i, j, k)`` in float16 on the image's
            grid, ``classes`` (their names) and ``affine``; NIfTI has no float16.
        training_too: Of a dataset, predict its training cases, too.
        overwrite: Predict every case anew.
        form: Write objects of DICOM in place of label files, see `medseg.inference.objects`.
        console: Where to show how far it is, with a line per case; None shows nothing.

    Raises:
        DataError: The source is missing or holds no image, or nothing can be written to the output.
        UsageError: A prediction would overwrite its image, or be taken for one the next time.
    """
    predictors = [predictor] if isinstance(predictor, Predictor) else list(predictor)
    cases, left_out = find_cases(source, predictors[0].plan, training_too=training_too)
    _require_apart(source, cases, output, predictors[0].plan)
    if form:
        require_series(cases, form)
    require_writable(output)
    record = Record(output, predictors[0].settings)
    work = Work(predictors[0], output, save_probabilities, record, form)
    todo = cases if overwrite else {case: files for case, files in cases.items() if not work.done(case, files)}
    try:
        with _shown(len(todo), console) as advance:
            results = Belt(work, todo, advance).run(predictors)
    finally:
        record.close()
    return FolderOutcome(
        tuple(work.label_file(case, files) for case, files in todo.items() if results[case] is None),
        (*left_out, *(problem for case in todo if (problem := results[case]) is not None)),
        tuple(work.label_file(case, files) for case, files in cases.items() if case not in todo),
    )


def predict_files(
    predictors: Sequence[Predictor],
    cases: Mapping[str, tuple[Path, ...]],
    output: Path,
    *,
    console: Console | None = None,
) -> tuple[MedsegError, ...]:
    """Segment the images of some cases and write their label files, in place of older ones, without a manifest.

    Args:
        predictors: As of `predict_cases`.
        cases: Name -> a file per modality, or one with all of them.
        output: Folder to write to; a case that fails leaves no file there.
        console: As of `predict_cases`.

    Returns:
        Why some cases have no prediction.
    """
    work = Work(predictors[0], output, save_probabilities=False, record=None)
    failures: list[MedsegError] = []
    todo = dict(cases)
    for case, files in cases.items():
        target = work.label_file(case, files)
        try:
            with explained(target, "could not be replaced"):
                target.unlink(missing_ok=True)
        except MedsegError as failure:
            failures.append(failure)
            del todo[case]
    with _shown(len(todo), console) as advance:
        results = Belt(work, todo, advance).run(predictors)
    return (*failures, *(problem for case in todo if (problem := results[case]) is not None))


def _shown(cases: int, console: Console | None) -> AbstractContextManager[Advance]:
    return progress("predicting", cases, console) if console else nullcontext(log.debug)


def _require_apart(source: Path, cases: Mapping[str, tuple[Path, ...]], output: Path, plan: Plan) -> None:
    if output.name.endswith(ENDINGS) and not output.is_dir():
        raise UsageError(f"{output} is called as a file, and a folder of label files is written", "Name the folder")
    for case, files in cases.items():
        label = label_file(output, case, files, plan)
        target = os.path.realpath(label)  # unlike Path.resolve content with a link to itself
        if any(target == os.path.realpath(path) for path in files):
            raise UsageError(f"the prediction of {files[0]} would overwrite it", "Choose another --output")
    folders = {source, *(path.parent for files in cases.values() for path in files)} if not source.is_file() else ()
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise UsageError(f"the predictions would lie among the images of {source}", "Choose another --output")
    _require_no_references(output)


def _require_no_references(output: Path) -> None:
    """Refuse a folder in which the dataset around it keeps its labels: their names are those of the predictions."""
    for root in output.resolve().parents[:2]:
        if (root / "dataset.json").is_file():
            with suppress(DataError):  # one that cannot be read says nothing of its labels
                labels = {case.label.parent for case in read_dataset(root).cases if case.label is not None}
                if os.path.realpath(output) in map(os.path.realpath, labels):
                    problem = f"{output} holds the labels of the dataset {root}, which predictions would overwrite"
                    raise UsageError(problem, "Choose another --output")
