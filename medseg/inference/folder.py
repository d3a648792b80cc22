"""A folder of images to a folder of label files: reading, computing and writing at once, going on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from medseg.errors import DataError, MedsegError, UsageError
from medseg.inference.images import find_cases, read_case_image, voxel_bytes
from medseg.inference.objects import OBJECT_ENDINGS, require_series, write_object
from medseg.inference.predict import Predictor, Prepared
from medseg.inference.resume import Record
from medseg.machine.files import require_writable, scratch, whole
from medseg.machine.progress import progress
from medseg.plan.grid import GridChange
from medseg.plan.plan import Plan
from medseg.space.writing import label_ending, write_labels_for

AHEAD_BYTES = 2**30
"""The next image is read beside the one in work while both together are smaller than this in memory."""


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
    predictor: Predictor,
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

    While the network works on one image, the next is read and the last is cleaned and written, one of each. A case that
    fails is reported and the others go on; a file appears whole or not at all. A prediction that is there already, made
    from the same files by the same checkpoints and options as ``predictions.json`` of the folder tells, is kept.

    Args:
        predictor: What to segment with.
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
    cases, left_out = find_cases(source, predictor.plan, training_too=training_too)
    _require_apart(source, cases, output, predictor.plan)
    if form:
        require_series(cases, form)
    require_writable(output)
    work = _Work(predictor, output, save_probabilities, form)
    todo = cases if overwrite else {case: files for case, files in cases.items() if not work.done(case, files)}
    results: dict[str, MedsegError | None] = {}
    shown = progress("predicting", len(todo), console) if console else nullcontext(lambda case: None)
    with shown as advance, ThreadPoolExecutor(1) as writer:
        pending: tuple[str, Future[None]] | None = None
        for case, read in _read_ahead(work, todo):
            try:
                labels, change = work.segment(case, todo[case], read)
            except MedsegError as failure:
                results[case] = failure
            else:
                _collect(results, pending)
                pending = (case, writer.submit(work.write, case, todo[case], labels, change))
                del labels  # the writer's now, which lets go of them when they are written
            del read
            advance(case)
        _collect(results, pending)
    work.record.close()
    return FolderOutcome(
        tuple(work.label_file(case, files) for case, files in todo.items() if results[case] is None),
        (*left_out, *(problem for case in todo if (problem := results[case]) is not None)),
        tuple(work.label_file(case, files) for case, files in cases.items() if case not in todo),
    )


def label_file(folder: Path, case: str, images: tuple[Path, ...], plan: Plan) -> Path:
    """The label file of a case: in the format of its first image where that holds every label."""
    return folder / f"{case}{label_ending(images[0], plan.highest)}"


def predict_case(predictor: Predictor, images: tuple[Path, ...], target: Path) -> None:
    """Segment the images of one case and write its label file, in place of an older one.

    Args:
        predictor: What to segment with.
        images: A file per modality, or one with all of them.
        target: The label file, see `label_file`.

    Raises:
        DataError: An image is unreadable or holds NaN, memory ran out, or the target cannot be written; there is no
            target then.
    """
    with _explained(target, "could not be replaced"):
        target.unlink(missing_ok=True)
    prepared = _prepared(predictor, images)
    with _explained(images[0], "could not be segmented"):
        labels = predictor.segment(prepared)
    _write(predictor, labels, prepared.change, images=images, target=target)


class _Work:
    """What is done with one case: read, segment, write."""

    def __init__(self, predictor: Predictor, output: Path, save_probabilities: bool, form: str | None) -> None:
        self.predictor, self.form = predictor, form
        self.output = output
        self.save_probabilities = save_probabilities
        self.record = Record(output, predictor.settings)

    def label_file(self, case: str, files: tuple[Path, ...]) -> Path:
        if self.form:
            return self.output / f"{case}{OBJECT_ENDINGS[self.form]}"
        return label_file(self.output, case, files, self.predictor.plan)

    def probability_file(self, case: str) -> Path:
        return self.output / f"{case}.npz"

    def outputs(self, case: str, files: tuple[Path, ...]) -> list[Path]:
        return [self.label_file(case, files), *([self.probability_file(case)] if self.save_probabilities else [])]

    def done(self, case: str, files: tuple[Path, ...]) -> bool:
        return bool(self.predictor.digests) and self.record.done(case, files, self.outputs(case, files))

    def read(self, files: tuple[Path, ...]) -> Prepared:
        return _prepared(self.predictor, files)

    def segment(self, case: str, files: tuple[Path, ...], read: Future[Prepared]) -> tuple[NDArray[Any], GridChange]:
        prepared = read.result()
        with _explained(files[0], "could not be segmented"):
            if not self.save_probabilities:
                self.probability_file(case).unlink(missing_ok=True)  # of other checkpoints or options
                return self.predictor.segment(prepared), prepared.change
            with scratch(self.output) as folder:
                shape = (self.predictor.plan.num_classes, *prepared.change.source_shape)
                maps = np.lib.format.open_memmap(folder / "maps.npy", mode="w+", dtype=np.float16, shape=shape)
                labels = self.predictor.segment(prepared, probabilities=maps)
                with whole(self.probability_file(case)) as partial:
                    self._pack(partial, maps, prepared.change)
        return labels, prepared.change

    def write(self, case: str, files: tuple[Path, ...], labels: NDArray[Any], change: GridChange) -> None:
        _write(self.predictor, labels, change, images=files, target=self.label_file(case, files), form=self.form)
        self.record.add(case, files, self.outputs(case, files))

    def _pack(self, path: Path, maps: NDArray[np.float16], change: GridChange) -> None:
        plan = self.predictor.plan
        names = ("background", *plan.organs) if plan.exclusive else plan.organs
        np.savez_compressed(path, probabilities=maps, classes=np.array(names), affine=np.array(change.source_affine))


def _prepared(predictor: Predictor, images: tuple[Path, ...]) -> Prepared:
    with _explained(images[0], "could not be read"):
        return predictor.prepare(read_case_image(images, predictor.plan))


def _write(
    predictor: Predictor,
    labels: NDArray[Any],
    change: GridChange,
    *,
    images: tuple[Path, ...],
    target: Path,
    form: str | None = None,
) -> None:
    """Clean the labels and write them on the grid of their image, or as an object that refers to it."""
    with _explained(target, "could not be written"):
        cleaned = predictor.clean(labels, change)
        if form:
            write_object(form, target, cleaned, images[0], predictor.plan, "+".join(predictor.digests) or "untold")
        else:
            write_labels_for(images[0], target, cleaned, np.array(change.source_affine))


def _read_ahead(work: _Work, cases: Mapping[str, tuple[Path, ...]]) -> Iterator[tuple[str, Future[Prepared]]]:
    """Futures of the images in order, the next being read beside the one in use unless the two are too large."""
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Prepared] | None = None
        names = list(cases)
        sizes = [voxel_bytes(files) for files in cases.values()]
        for index, case in enumerate(names):
            current = ahead or reader.submit(work.read, cases[case])
            ahead = None
            if index + 1 < len(names) and sizes[index] + sizes[index + 1] <= AHEAD_BYTES:
                ahead = reader.submit(work.read, cases[names[index + 1]])
            yield case, current
            del current


def _collect(results: dict[str, MedsegError | None], pending: tuple[str, Future[None]] | None) -> None:
    """Wait for a write, so that no more than one is under way."""
    if pending is None:
        return
    case, future = pending
    try:
        future.result()
        results[case] = None
    except MedsegError as failure:
        results[case] = failure


@contextmanager
def _explained(path: Path, problem: str) -> Iterator[None]:
    """Turn what the machine lacks into a failure of this case."""
    lack = DataError(path, f"{problem}: memory ran out", "Crop it, or use --device cpu")
    try:
        yield
    except MemoryError:
        raise lack from None
    except FloatingPointError as error:
        raise DataError(path, f"{problem}: {error}", "Look at its intensities, or use another checkpoint") from None
    except OSError as error:
        raise DataError(path, f"{problem} ({error.strerror or error})", "Free space or choose another folder") from None
    except RuntimeError as error:  # of which torch's own lack of memory is one, on the CPU without a type of its own
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        raise lack from None


def _require_apart(source: Path, cases: Mapping[str, tuple[Path, ...]], output: Path, plan: Plan) -> None:
    for case, files in cases.items():
        label = label_file(output, case, files, plan)
        target = os.path.realpath(label)  # unlike Path.resolve content with a link to itself
        if any(target == os.path.realpath(path) for path in files):
            raise UsageError(f"the prediction of {files[0]} would overwrite it", "Choose another --output")
    folders = {source, *(path.parent for files in cases.values() for path in files)} if not source.is_file() else ()
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise UsageError(f"the predictions would lie among the images of {source}", "Choose another --output")
