"""A trained model as nnU-Net leaves it: a folder, or the zip of its export, with plans, dataset and a file per fold."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medseg.checkpoints.facts import explained
from medseg.checkpoints.numbers import numpy_numbers
from medseg.checkpoints.reading import read_plain, require_numbers
from medseg.errors import CheckpointError, DataError, listed
from medseg.machine.files import read_json

KINDS = ("final", "best", "latest")
"""Which of a fold's checkpoints: after the last epoch, of the best validation, or what a training that goes on left."""

_PLANS = "plans.json"
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zlib.error, zipfile.BadZipFile)
Place = Path | zipfile.Path


@dataclass(frozen=True, eq=False)
class TrainedFold:
    """What one training of nnU-Net left.

    Attributes:
        path: Its file; within a zip, as if that were a folder.
        fold: Its number, or ``"all"``.
        weights: By nnU-Net's names.
        trainer: Name of the class that trained it.
        configuration: Such as ``"3d_fullres"``.
        mirror_axes: Along which nnU-Net flips at prediction.
        epochs: How many it trained.
        plans: What it was trained by; empty where it does not say.
        dataset: Content of its ``dataset.json``; empty as before.
    """

    path: Path
    fold: str
    weights: Mapping[str, Any]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    epochs: int
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """The folder of one trained configuration.

    Attributes:
        path: It, or the zip that holds it.
        place: Where its files are read.
        plans: The content of ``plans.json``.
        dataset: The content of ``dataset.json``.
        turned: Whether its images were turned to RAS before nnU-Net read them, as TotalSegmentator does.
    """

    path: Path
    place: Place
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    turned: bool = False

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that are there: their numbers, or ``all`` where one training saw every case."""
        named = [one.name.removeprefix("fold_") for one in self.place.iterdir() if one.name.startswith("fold_")]
        return tuple(sorted(name for name in named if name.isdecimal())) or tuple(named)

    def read_fold(self, fold: str, kind: str = "final") -> TrainedFold:
        """One fold's checkpoint.

        Args:
            fold: Its number, or ``"all"``.
            kind: One of `KINDS`.

        Raises:
            CheckpointError: It is not there, cannot be read, holds code, or is none of nnU-Net's.
        """
        place = self.place / f"fold_{fold}" / f"checkpoint_{kind}.pth"
        path = Path(str(place))
        if not place.is_file():
            others = [one for one in KINDS if (self.place / f"fold_{fold}" / f"checkpoint_{one}.pth").is_file()]
            if others:
                problem = f"does not exist, only {listed(others)}"
                remedy = f"Take --checkpoint {others[0]}, or other --folds"
            else:
                problem = f"does not exist; the folds that are there are {listed(self.folds) or 'none'}"
                remedy = "Train that fold, or name others with --folds"
            raise CheckpointError(path, problem, remedy)
        return trained_fold(path, fold, read_pickle(path, place))


def open_model(path: Path, *, turned: bool = False) -> ModelFolder:
    """Find the model in a folder or a zip.

    Args:
        path: The folder ``TRAINER__PLANS__CONFIGURATION``, one above it in which no other lies, or a zip of either.
        turned: See `ModelFolder`.

    Raises:
        DataError: It is missing, holds no model or several, or is of version 1; plans or dataset cannot be read.
    """
    if not path.exists():
        raise DataError(path, "does not exist", "Give a folder of nnUNet_results, or the zip of nnU-Net's export")
    try:
        root: Place = path if path.is_dir() else zipfile.Path(path)
        found = list(_models(root))
    except _UNREADABLE as error:
        problem = f"is neither a folder nor a whole zip ({str(error).rstrip('.')})"
        raise DataError(path, problem, "Copy it again, or give the folder") from None
    if len(found) > 1:
        names = listed(sorted(str(one).removeprefix(str(root)).strip("/") for one in found))
        remedy = "Give the folder of one of them" if path.is_dir() else "Unpack it and give the folder of one of them"
        raise DataError(path, f"holds several models: {names}", remedy)
    if not found:
        raise _no_model(path, root)
    place = found[0]
    plans, dataset = (_read_json(path, place / name) for name in (_PLANS, "dataset.json"))
    if not isinstance(plans.get("configurations"), dict):
        raise DataError(path, "has plans of version 1 of nnU-Net, or none at all", "Train it again with version 2")
    return ModelFolder(path, place, plans, dataset, turned)


def read_pickle(path: Path, place: Place | None = None) -> Any:
    """What nnU-Net or nnssl saved, so that no code in it runs: plain data, tensors, single numbers of NumPy's.

    Args:
        path: The file, as it is called in a sentence.
        place: Where it is read, if not there.

    Raises:
        CheckpointError: It cannot be read, or holds anything else.
    """

    def read() -> Any:
        with numpy_numbers():
            if isinstance(place, zipfile.Path):
                return read_plain(_in_memory(place))
            return read_plain(path)

    return explained(path, read)


def trained_fold(path: Path, fold: str, content: Any) -> TrainedFold:
    """The training that a checkpoint of nnU-Net's holds.

    Raises:
        CheckpointError: It is none.
    """
    known = content if isinstance(content, dict) else {}
    arguments, axes = known.get("init_args"), known.get("inference_allowed_mirroring_axes") or ()
    weights = known.get("network_weights")
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not isinstance(arguments, dict) or not isinstance(weights, dict) or not named or not _axes(axes):
        raise CheckpointError(path, "is no checkpoint of nnU-Net v2's trainer", "Give the folder that it wrote")
    require_numbers(path, weights)
    trainer, configuration = str(known.get("trainer_name")), str(arguments.get("configuration"))
    epochs = known.get("current_epoch")
    epochs = epochs if isinstance(epochs, int) else 0
    plans, dataset = (table(arguments.get(key)) for key in ("plans", "dataset_json"))
    return TrainedFold(path, fold, weights, trainer, configuration, tuple(axes), epochs, plans, dataset)


def table(found: Any) -> dict[str, Any]:
    """What should be a dictionary; an empty one where it is something else."""
    return found if isinstance(found, dict) else {}


def _axes(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(type(axis) is int and 0 <= axis <= 2 for axis in found)


def _models(root: Place, floors: int = 4) -> Sequence[Place]:
    """Where plans lie: here, or some floors below, as in ``backup/nnUNet_results/DATASET/MODEL``."""
    if (root / _PLANS).is_file():
        return [root]
    below = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith((".", "fold_", "__MACOSX"))]
    return [found for one in below for found in _models(one, floors - 1)] if floors else []


def _no_model(path: Path, root: Place) -> DataError:
    if any(one.name == "plans.pkl" for one in root.iterdir()):
        return DataError(path, "is a model of version 1 of nnU-Net", "Train it again with version 2")
    remedy = "Give the folder TRAINER__PLANS__CONFIGURATION that nnUNetv2_train wrote"
    return DataError(path, f"holds no {_PLANS}, so it is no model of nnU-Net", remedy)


def _read_json(path: Path, place: Place) -> dict[str, Any]:
    try:
        found = read_json(place)
    except _UNREADABLE as error:
        raise DataError(path, f"has no readable {place.name} ({error})", "Copy the model again") from None
    if not isinstance(found, dict):
        raise DataError(path, f"has a {place.name} that is no table", "Copy the model again")
    return found


def _in_memory(place: zipfile.Path) -> IO[bytes]:
    with place.open("rb") as file:
        return io.BytesIO(file.read())
