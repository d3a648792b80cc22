"""Many cases at once: images are read ahead, networks work side by side, and what is finished is written meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, MedsegError
from medseg.inference.images import read_case_image, voxel_bytes
from medseg.inference.objects import OBJECT_ENDINGS, write_object
from medseg.inference.predict import Predictor, Prepared
from medseg.inference.resume import Record
from medseg.machine.files import scratch, whole
from medseg.machine.hardware import free_memory
from medseg.plan.grid import GridChange
from medseg.plan.plan import Plan
from medseg.space.writing import label_ending, write_labels_for

AHEAD_BYTES = 2**30
"""Images that are read ahead may take so much memory in any case, and more where more is free."""

AHEAD_SHARE = 0.1
"""Of the free memory; an image becomes up to four times as large while it is brought onto another grid."""

READERS = 3

Results = dict[str, MedsegError | None]


def label_file(folder: Path, case: str, images: tuple[Path, ...], plan: Plan) -> Path:
    """The label file of a case: in the format of its first image where that holds every label."""
    return folder / f"{case}{label_ending(images[0], plan.highest)}"


class Work:
    """What is done with one case: read, segment, write.

    Args:
        predictor: Reads and cleans; cases are segmented by any that is like it.
        output: The folder to write to.
        save_probabilities: Whether to write those too.
        record: The manifest of the folder, where it is to have one.
        form: Of the objects of DICOM that are written in place of label files, if any.
    """

    def __init__(
        self,
        predictor: Predictor,
        output: Path,
        save_probabilities: bool,
        record: Record | None,
        form: str | None = None,
    ) -> None:
        self.predictor = predictor
        self.output = output
        self.save_probabilities = save_probabilities
        self.record = record
        self.form = form

    def label_file(self, case: str, files: tuple[Path, ...]) -> Path:
        """Where the labels of a case go."""
        if self.form:
            return self.output / f"{case}{OBJECT_ENDINGS[self.form]}"
        return label_file(self.output, case, files, self.predictor.plan)

    def _probability_file(self, case: str) -> Path:
        return self.output / f"{case}.npz"

    def _outputs(self, case: str, files: tuple[Path, ...]) -> list[Path]:
        return [self.label_file(case, files), *([self._probability_file(case)] if self.save_probabilities else [])]

    def done(self, case: str, files: tuple[Path, ...]) -> bool:
        """Whether the files that there are need not be written again."""
        known = self.record is not None and bool(self.predictor.digests)
        return known and self.record.done(case, files, self._outputs(case, files))  # type: ignore[union-attr]  # known

    def read(self, files: tuple[Path, ...]) -> Prepared:
        """The image of a case on the plan's grid."""
        with explained(files[0], "could not be read"):
            return self.predictor.prepare(read_case_image(files, self.predictor.plan))

    def segment(
        self, predictor: Predictor, case: str, files: tuple[Path, ...], prepared: Prepared
    ) -> tuple[NDArray[Any], GridChange]:
        """Its labels on the image's grid, not cleaned; probabilities are written at once."""
        with explained(files[0], "could not be segmented"):
            if not self.save_probabilities:
                self._probability_file(case).unlink(missing_ok=True)  # of other checkpoints or options
                return predictor.segment(prepared), prepared.change
            with scratch(self.output) as folder:
                shape = (predictor.plan.num_classes, *prepared.change.source_shape)
                maps = np.lib.format.open_memmap(folder / "maps.npy", mode="w+", dtype=np.float16, shape=shape)
                labels = predictor.segment(prepared, probabilities=maps)
                with whole(self._probability_file(case)) as partial:
                    self._pack(partial, maps, prepared.change)
        return labels, prepared.change

    def write(self, case: str, files: tuple[Path, ...], labels: NDArray[Any], change: GridChange) -> None:
        """Clean the labels and write them on the grid of their image, or as an object that refers to it."""
        target = self.label_file(case, files)
        with explained(target, "could not be written"):
            cleaned = self.predictor.clean(labels, change)
            if self.form:
                told = "+".join(self.predictor.digests) or "untold"
                write_object(self.form, target, cleaned, files[0], self.predictor.plan, told)
            else:
                write_labels_for(files[0], target, cleaned, np.array(change.source_affine))
        if self.record is not None:
            self.record.add(case, files, self._outputs(case, files))

    def _pack(self, path: Path, maps: NDArray[np.float16], change: GridChange) -> None:
        plan = self.predictor.plan
        names = ("background", *plan.organs) if plan.exclusive else plan.organs
        np.savez_compressed(path, probabilities=maps, classes=np.array(names), affine=np.array(change.source_affine))


class Belt:
    """Takes cases through reading, segmenting and writing, each stage beside the others.

    Up to `READERS` images are read ahead, as free memory allows; each network has one case in work and one that is
    being written. Networks take the cases in turn, whoever is free.

    Args:
        work: What is done with a case.
        cases: Name -> files, in the order in which they are read.
        advance: Takes the name of each case that is segmented.
    """

    def __init__(self, work: Work, cases: Mapping[str, tuple[Path, ...]], advance: Callable[[str], object]) -> None:
        self.work, self.cases, self.advance = work, cases, advance
        self.results: Results = {}
        self._turn = threading.Lock()
        self._todo = deque((case, voxel_bytes(files)) for case, files in cases.items())
        self._read: deque[tuple[str, int, Future[Prepared]]] = deque()
        self._held = 0  # bytes of images that are read or in work
        self._room = max(AHEAD_BYTES, int((free_memory() or 0) * AHEAD_SHARE)) if AHEAD_BYTES else 0

    def run(self, predictors: Sequence[Predictor]) -> Results:
        """Segment all cases, and say of each why it has no prediction, or None."""
        several = len(predictors)
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(several) as writers:
            if several == 1:
                self._serve(predictors[0], readers, writers)
                return self.results
            with ThreadPoolExecutor(several) as networks:
                serving = [networks.submit(self._serve, each, readers, writers) for each in predictors]
                try:
                    for one in as_completed(serving):
                        one.result()
                except BaseException:
                    with self._turn:  # the others finish what they are at
                        self._todo.clear()
                        self._read.clear()
                    raise
        return self.results

    def _serve(self, predictor: Predictor, readers: Executor, writers: Executor) -> None:
        """Segment case after case with one network."""
        pending: tuple[str, Future[None]] | None = None
        while (turn := self._next(readers)) is not None:
            case, size, read = turn
            files = self.cases[case]
            try:
                labels, change = self.work.segment(predictor, case, files, read.result())
            except MedsegError as failure:
                self.results[case] = failure
            else:
                self._collect(pending)
                pending = case, writers.submit(self.work.write, case, files, labels, change)
                del labels  # the writer's now, which lets go of them when they are written
            del turn, read
            with self._turn:
                self._held -= size
                self.advance(case)
        self._collect(pending)

    def _next(self, readers: Executor) -> tuple[str, int, Future[Prepared]] | None:
        """The next case, and others after it being read unless there is no room."""
        with self._turn:
            while self._todo and (
                not self._read or (len(self._read) <= READERS and self._held + self._todo[0][1] <= self._room)
            ):
                case, size = self._todo.popleft()
                self._held += size
                self._read.append((case, size, readers.submit(self.work.read, self.cases[case])))
            return self._read.popleft() if self._read else None

    def _collect(self, pending: tuple[str, Future[None]] | None) -> None:
        """Wait for a write, so that no more than one of each network is under way."""
        if pending is None:
            return
        case, future = pending
        try:
            future.result()
            self.results[case] = None
        except MedsegError as failure:
            self.results[case] = failure


@contextmanager
def explained(path: Path, problem: str) -> Iterator[None]:
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
