"""The prepared dataset as a folder: a plan, an index, and a folder per case, read by patch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from medseg.datasets.drawn import Meaning
from medseg.errors import DataError, listed
from medseg.machine.files import read_json
from medseg.plan.grid import GridChange
from medseg.plan.plan import Plan, read_plan
from medseg.store.arrays import LazyArray, open_array

SCHEMA = 1
GRID_FIELDS = (
    *("modalities", "labels", "ignore", "others", "independent"),
    *("orientation", "spacing_mm", "own_spacing", "normalisation"),
)
"""The fields of a plan that decide what is in the store; the others (patch, network) may be edited afterwards."""


@dataclass(frozen=True)
class Source:
    """A file that a case was prepared from, and what it was then."""

    path: str
    size: int
    mtime_ns: int
    digest: str

    def unchanged(self) -> bool:
        """Whether the file still has the size and the time it had."""
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns)

    def edited(self) -> bool:
        """Whether the file is there and no longer has that size and time; a store may travel without its sources."""
        return os.path.exists(self.path) and not self.unchanged()


@dataclass(frozen=True)
class CaseInfo:
    """What is known of a prepared case beside its voxels.

    Attributes:
        id: Name of the case.
        patient: Who was scanned.
        annotated: Organs that its label covers; None means all.
        images: The image files.
        label: The label file, or None.
        sources: Those files as they were.
        settings: Digest of everything but the files that decided the result.
        change: How its grid became the plan's.
        voxels: Voxels per atom index on the plan's grid, background and ignored ones too.
        drawn: The label files of all raters, `label` first.
        soft: Whether the mean of what they drew is the target.
        weighted: Whether voxels count differently.
        dataset: Of a merged dataset, the one that the case comes from; empty elsewhere.
        meaning: Of a merged dataset, what its label file says.
    """

    id: str
    patient: str
    annotated: tuple[str, ...] | None
    images: tuple[str, ...]
    label: str | None
    sources: tuple[Source, ...]
    settings: str
    change: GridChange
    voxels: dict[int, int]
    drawn: tuple[str, ...] = ()
    soft: bool = False
    weighted: bool = False
    dataset: str = ""
    meaning: Meaning | None = None

    @property
    def dataset_folder(self) -> Path | None:
        """The folder with the ``dataset.json`` that it was prepared from, None where that is gone or elsewhere."""
        above = (parent for image in self.images for parent in Path(image).parents)
        return next((parent for parent in above if (parent / "dataset.json").is_file()), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        meaning = None if self.meaning is None else self.meaning.to_dict()
        return asdict(self) | {"change": self.change.to_dict(), "meaning": meaning}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CaseInfo:
        """Rebuild from plain data."""
        return cls(
            id=data["id"],
            patient=data["patient"],
            annotated=None if data["annotated"] is None else tuple(data["annotated"]),
            images=tuple(data["images"]),
            label=data["label"],
            sources=tuple(Source(**source) for source in data["sources"]),
            settings=data["settings"],
            change=GridChange.from_dict(data["change"]),
            voxels={int(index): int(count) for index, count in data["voxels"].items()},
            drawn=tuple(data.get("drawn", ())),
            soft=bool(data.get("soft", False)),
            weighted=bool(data.get("weighted", False)),
            dataset=data.get("dataset", ""),
            meaning=Meaning.from_dict(data["meaning"]) if data.get("meaning") else None,
        )


class Store:
    """A finished store, read by patch; holds no file open, so it may be sent to any process.

    Args:
        path: The folder that ``medseg prepare`` wrote.

    Raises:
        DataError: It is no store, not finished, or its ``plan.yaml`` no longer is what its cases were prepared with.

    Example:
        ``Store(Path("data/store/Task09_Spleen")).image("spleen_2")[:, 10:74, 10:74, 10:74]`` reads that patch only.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        self.plan: Plan = plan_of(self.path)
        require_same_grid(self.path / "plan.yaml", self.plan, index["grid"], "Undo the edit, or prepare a new store")
        self.dataset: str = index["dataset"]
        self._folders: dict[str, str] = index["cases"]

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the cases, sorted."""
        return tuple(sorted(self._folders))

    def image(self, case: str) -> LazyArray:
        """Normalised intensities ``(m, i, j, k)``, float32; slicing reads only what it needs."""
        return open_array(self.folder(case), "image")

    def labels(self, case: str) -> LazyArray:
        """Atom indices ``(i, j, k)``, int16: 0 background, k the k-th of ``plan.atoms``, −1 ignored.

        Raises:
            DataError: The case has no reference segmentation.
        """
        try:
            return open_array(self.folder(case), "labels")
        except DataError:
            info = self.info(case)
            if info.label is not None:
                raise
            raise DataError(info.images[0], "has no reference segmentation", "Use it for prediction only") from None

    def raters(self, case: str) -> LazyArray:
        """What each rater drew, as `labels` ``(r, i, j, k)``, where the mean of it is the target."""
        return open_array(self.folder(case), "raters")

    def weight(self, case: str) -> LazyArray:
        """How many voxels each voxel counts as ``(1, i, j, k)``, float32, where voxels count differently."""
        return open_array(self.folder(case), "weight")

    def foreground(self, case: str) -> dict[int, Integer[np.ndarray, "n 3"]]:
        """Voxels of each class that is present, at most 10,000 each, drawn evenly with a fixed seed.

        The keys are rows of ``plan.membership``: from 1 on for exclusive labels (0 is background), from 0 on for
        overlapping regions. A case without a reference segmentation has none.

        Raises:
            DataError: The file is missing or damaged.
        """
        path = self.folder(case) / "foreground.npy"
        if not path.is_file() and self.info(case).label is None:
            return {}
        try:
            table = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            remedy = f"Delete {path.parent} and run medseg prepare again"
            raise DataError(path, f"is damaged ({error})", remedy) from None
        starts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
        return {int(part[0, 0]): part[:, 1:] for part in np.split(table, starts[1:])} if len(table) else {}

    def info(self, case: str) -> CaseInfo:
        """Files, patient, annotated organs, grid change and voxel counts."""
        return read_info(self.folder(case))

    def folder(self, case: str) -> Path:
        """Where a case lies.

        Raises:
            ValueError: There is no such case.
        """
        if case not in self._folders:
            raise ValueError(f"{self.path} holds no case {case!r}; it holds {len(self._folders)}, see medseg info")
        return self.path / "cases" / self._folders[case]

    def edited(self) -> tuple[str, ...]:
        """Cases whose source files are there, but have another size or date than when they were prepared."""
        return tuple(case for case in self.ids if any(source.edited() for source in self.info(case).sources))


def plan_of(path: Path) -> Plan:
    """Read the plan of a store.

    Raises:
        DataError: There is no store, or its plan cannot be used.
    """
    if not (path / "plan.yaml").is_file():
        read_index(path)  # says what is missing if this is no store at all
    return read_plan(path / "plan.yaml")


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of a store.

    Raises:
        DataError: There is none, or it is not ours.
    """
    try:
        index = read_json(path / "index.json")
    except FileNotFoundError:
        problem, remedy = _no_store(path)
        raise DataError(path, problem, remedy) from None
    except (OSError, ValueError) as error:
        raise DataError(path / "index.json", f"cannot be read ({error})", "Run medseg prepare again") from None
    if not isinstance(index, dict) or index.get("schema") != SCHEMA:
        raise DataError(path / "index.json", f"is not of schema {SCHEMA}", "Prepare a new store with this medseg")
    kinds = {"cases": dict, "grid": dict, "dataset": str}
    lacking = [name for name, kind in kinds.items() if not isinstance(index.get(name), kind)]
    if lacking:
        raise DataError(path / "index.json", f"lacks its {listed(lacking)}", "Run medseg prepare again")
    for name in (name for pair in index["cases"].items() for name in pair):
        if (
            not isinstance(name, str) or name in ("", "..") or Path(name).name != name
        ):  # or files would be written there
            raise DataError(path / "index.json", f"calls a case {name!r}, which is no name", "Run medseg prepare again")
    return index


def _no_store(path: Path) -> tuple[str, str]:
    """What a folder without an index is, and what to do."""
    if (path / "plan.yaml").is_file():
        remedy = f"Run medseg prepare DATASET --out {path}; finished cases are kept"
        return "is a store whose preparation has not finished", remedy
    if (path / "dataset.json").is_file():
        return "is not a store but a dataset", f"Run medseg prepare {path} --out STORE, and give --data.store STORE"
    problem = "is not a store: it has no index.json" if path.exists() else "is not a store: it does not exist"
    return problem, "Give with --data.store the folder that medseg prepare wrote"


def read_info(folder: Path) -> CaseInfo:
    """Read what is known of one prepared case.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = folder / "info.json"
    try:
        return CaseInfo.from_dict(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(path, f"cannot be read ({error})", f"Delete {folder} and run medseg prepare again") from None


def grid_of(plan: Plan) -> dict[str, Any]:
    """The part of a plan that decides what is in the store, as plain data."""
    told = plan.to_dict()
    return {name: told[name] for name in GRID_FIELDS if name in told}


def require_same_grid(path: Path, plan: Plan, grid: Mapping[str, Any], remedy: str) -> None:
    """Refuse a plan under which the cases of a store would look different.

    Raises:
        DataError: Naming the first field that differs and both values.
    """
    ours = grid_of(plan)
    for name in GRID_FIELDS:
        value = ours.get(name)
        if json.dumps(value) != json.dumps(grid.get(name)):  # the order of the labels counts too
            raise DataError(
                path, f"says {name} {value}, but the store was prepared with another plan: {grid.get(name)}", remedy
            )
