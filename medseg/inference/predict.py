"""Images in, label files out: everything needed is in the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.datasets.case import read_image
from medseg.datasets.layout import images_by_name
from medseg.errors import CheckpointError, DataError, MedsegError, UsageError
from medseg.hardware import best_precision
from medseg.inference.restore import label_values
from medseg.patches.stitch import Predict, mirrored, sliding_window
from medseg.plan.plan import Plan
from medseg.space.nifti import case_name, write_channels, write_labels
from medseg.space.volume import Volume
from medseg.store.grid import GridChange, probabilities_from_plan_grid, to_plan_grid
from medseg.task import SegmentationTask, load_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a prediction over a folder came to."""

    written: tuple[Path, ...]
    failures: tuple[MedsegError, ...]


class Predictor:
    """One trained task, or several averaged in probabilities.

    Args:
        tasks: Trained on one plan.
        mirror: Average over every combination of flips that the plan allows (test-time augmentation).
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        UsageError: The device is not there.
    """

    def __init__(self, tasks: Sequence[SegmentationTask], *, mirror: bool = False, device: str = "auto") -> None:
        self.device = _device(device)
        self.tasks = [task.to(self.device).eval() for task in tasks]
        self.mirror = mirror
        self.half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(best_precision(self.device.type))

    @classmethod
    def load(cls, checkpoints: Sequence[Path], *, mirror: bool = False, device: str = "auto") -> Predictor:
        """Load checkpoints; those of an ensemble must share their plan.

        Raises:
            CheckpointError: One is missing, not ours, or of another plan than the first.
        """
        tasks = [load_task(path) for path in checkpoints]
        for path, task in zip(checkpoints[1:], tasks[1:], strict=True):
            if task.plan != tasks[0].plan:
                raise CheckpointError(
                    path, f"was trained on another plan than {checkpoints[0]}", "Average only folds of one plan"
                )
        return cls(tasks, mirror=mirror, device=device)

    @property
    def plan(self) -> Plan:
        """What the networks were trained on."""
        return self.tasks[0].plan

    @torch.inference_mode()
    def scores(self, prepared: Float[np.ndarray, "m i j k"]) -> Float[Tensor, "1 c i j k"]:
        """Logits of a single network, or the mean probabilities of several; on the plan's grid."""
        image = torch.from_numpy(prepared)[None].to(self.device)
        total: Tensor | None = None
        for task in self.tasks:
            with self._autocast():
                one = sliding_window(image, self.plan.patch_size, self._network(task), overlap=task.hparams["overlap"])
            total = one if total is None else total.add_(one)
        if total is None:
            raise ValueError("expected at least one trained task, got none")
        return total.div_(len(self.tasks))

    def predict(self, image: Volume) -> Integer[np.ndarray, "i j k"]:
        """Segment one image; label values as in the dataset's files, on the image's own grid."""
        prepared, change = to_plan_grid(image, self.plan)
        return label_values(self.scores(prepared)[0].cpu().numpy(), change, self.plan, averaged=self.averages)

    def probabilities(
        self, scores: Float[np.ndarray, "c i j k"], change: GridChange
    ) -> Float[np.ndarray, "c i2 j2 k2"]:
        """Probability of every class, float16, on the image's own grid."""
        values = torch.from_numpy(scores)
        if not self.averages:
            values = values.softmax(dim=0) if self.plan.exclusive else values.sigmoid()
        return probabilities_from_plan_grid(values.numpy(), change, dtype=np.float16)

    @property
    def averages(self) -> bool:
        """Whether scores are probabilities: logits of different networks or flips have no common scale."""
        return self.mirror or len(self.tasks) > 1

    def _network(self, task: SegmentationTask) -> Predict:
        if not self.averages:
            return task
        exclusive = self.plan.exclusive

        def activated(patches: Tensor) -> Tensor:
            logits: Tensor = task(patches).float()
            return logits.softmax(dim=1) if exclusive else logits.sigmoid()

        return mirrored(activated, self.plan.mirror_axes) if self.mirror else activated

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)


def predict_cases(predictor: Predictor, source: Path, output: Path, *, save_probabilities: bool = False) -> Outcome:
    """Segment an image or a folder of images, each written as ``CASE.nii.gz`` on the grid of its image.

    The next image is read while the network works. A case that fails is reported and the others go on; a file appears
    whole or not at all.

    Args:
        predictor: What to segment with.
        source: An image file, or a folder; a case with several modalities is one 4D file, or a file per modality
            ending in ``_0000``, ``_0001`` and so on, or in the modality's name.
        output: Folder to write to.
        save_probabilities: Also write ``CASE_probabilities.nii.gz``, a channel per class.

    Raises:
        DataError: The source is missing or holds no image.
    """
    cases = list_cases(source, predictor.plan)
    written: list[Path] = []
    failures: list[MedsegError] = []
    for (case, files), image in zip(cases.items(), _read_ahead(list(cases.values()), predictor.plan), strict=True):
        try:
            written.append(_predict_case(predictor, image.result(), files[0], output / case, save_probabilities))
        except MedsegError as failure:
            failures.append(failure)
        log.info("%d of %d: %s", len(written) + len(failures), len(cases), case)
    return Outcome(tuple(written), tuple(failures))


def list_cases(source: Path, plan: Plan) -> dict[str, tuple[Path, ...]]:
    """Case name -> its image files, for a folder or for the case that one file belongs to.

    Raises:
        DataError: The source is missing or holds no NIfTI file.
    """
    if source.is_file():
        beside = images_by_name(source.parent, plan.modalities)
        return {case: files for case, files in beside.items() if source in files} or {case_name(source): (source,)}
    if not source.is_dir():
        raise DataError(source, "does not exist", "Give an image file or a folder of images as --input")
    cases = images_by_name(source, plan.modalities)
    if not cases:
        raise DataError(source, "holds no .nii or .nii.gz file", "Give an image file or a folder of images as --input")
    return cases


def _read_ahead(cases: Sequence[tuple[Path, ...]], plan: Plan) -> Iterator[Future[Volume]]:
    """Futures of the images in order, one of them being read beside the one in use."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead: Future[Volume] | None = None
        for files in cases:
            current, ahead = ahead, reader.submit(read_image, files, plan.modalities)
            if current is not None:
                yield current
        if ahead is not None:
            yield ahead


def _predict_case(predictor: Predictor, image: Volume, like: Path, target: Path, save_probabilities: bool) -> Path:
    prepared, change = to_plan_grid(image, predictor.plan)
    scores = predictor.scores(prepared)[0].cpu().numpy()
    path = target.with_name(f"{target.name}.nii.gz")
    write_labels(path, label_values(scores, change, predictor.plan, averaged=predictor.averages), like=like)
    if save_probabilities:
        channels = predictor.probabilities(scores, change)
        write_channels(target.with_name(f"{target.name}_probabilities.nii.gz"), channels, like=like)
    return path


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"there is no device {name!r} here ({reason})", "Use --device auto or cpu") from None
    return device
