"""Prepare a dataset: in parallel, resumable after a kill at any moment, doing only what changed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from medseg.datasets.case import Dataset, read_dataset
from medseg.errors import DataError, MachineError, few, listed
from medseg.machine.crew import default_workers, run_tasks
from medseg.machine.files import sweep, write_json
from medseg.plan.adopt import adopt, differences, stale
from medseg.plan.fingerprint import fingerprint
from medseg.plan.plan import Plan, read_plan, write_plan
from medseg.plan.planning import make_plan
from medseg.space.reading import read_header
from medseg.store.one_case import REMEDY, CaseTask, StoredCase, is_case_folder, prepare_case
from medseg.store.store import SCHEMA, CaseInfo, Store, grid_of, read_index, read_info, require_same_grid

_log = logging.getLogger(__name__)


def prepare(
    dataset_root: str | Path,
    out: str | Path,
    plan: Plan | None = None,
    workers: int | None = None,
    *,
    adopting: bool = False,
    swap_sides: bool = False,
    cases: Collection[str] | None = None,
) -> Store:
    """Crop, normalise, resample and store every labelled case of a dataset.

    Each case is keyed by the content of its files and by the part of the plan that decides its voxels; a case that the
    store already holds under its key is not touched. A case appears whole or not at all, the index last.

    Args:
        dataset_root: A folder with a ``dataset.json``, or that file.
        out: The folder of the store; made when missing.
        plan: None takes the plan that the store already has, or makes one from the dataset.
        workers: Processes; None takes a core each, as far as the free memory reaches.
        adopting: Take a plan that was made for another dataset, as `medseg.plan.adopt.adopt` does.
        swap_sides: As in `make_plan`, for a plan that is made here.
        cases: Names of those that the store shall hold, and no others; None means all.

    Returns:
        The finished store.

    Raises:
        DataError: Cases are at fault (all are named, the good ones are finished and kept), the store cannot be written,
            or it was prepared with another plan or from another dataset.
    """
    out = Path(out)
    if (out / "dataset.json").is_file():
        raise DataError(out, "is a dataset, not a place for a store", "Choose another --out")
    if _is_foreign(out):
        raise DataError(out, "holds other files, and is no store", "Choose another --out, such as a new folder in it")
    dataset = read_dataset(Path(dataset_root))
    if cases is not None:
        dataset = replace(dataset, cases=tuple(case for case in dataset.cases if case.id in cases))
    if plan is not None and adopting:
        plan = adopt(plan, dataset, swap_sides=swap_sides)
    measured = plan is None and not (out / "plan.yaml").is_file()
    if measured:
        plan = make_plan(fingerprint(dataset, workers), swap_sides=swap_sides)
    settled = _settle_plan(Path(dataset_root), dataset, out, plan)
    bare = replace(dataset, cases=(), test=())
    grid = grid_of(settled)
    tasks = {case.id: CaseTask(case, bare, settled, grid, out) for case in dataset.cases}
    done = _finished(tasks, out / "cases")
    missing = {name: task for name, task in tasks.items() if name not in done}
    if missing or not _written(out, settled, dataset, done):
        _begin(out, settled)
        count = workers or default_workers(max(map(_peak_bytes, missing.values()), default=0))
        outcome = run_tasks(prepare_case, missing, workers=count, title=f"preparing {dataset.name}")
        prepared = outcome.or_raise(Path(dataset_root))
        _tell_oddities(prepared, settled, measured=measured)
        folders = done | {name: one.folder for name, one in prepared.items()}
        _finish(out, settled, dataset, folders)
    return Store(out)


def _tell_oddities(prepared: Mapping[str, StoredCase], plan: Plan, *, measured: bool) -> None:
    """What was cropped away, what is too small for the plan's voxels, and CTs in another unit than the plan's.

    Where the plan was just ``measured`` on these cases, that has told of the units.
    """
    cropped = [f"{name}: {listed(one.cut_away)}" for name, one in sorted(prepared.items()) if one.cut_away]
    small = [f"{name}: {listed(one.too_small)}" for name, one in sorted(prepared.items()) if one.too_small]
    if cropped:
        _log.warning("labels where every channel is zero were cropped away with it: %s", listed(cropped))
    if small:
        spacing = " x ".join(f"{edge:g}" for edge in plan.spacing_mm)
        problem = (
            "organs have voxels in the label file but none at the plan's %s mm; a finer spacing_mm would keep them: %s"
        )
        _log.warning(problem, spacing, listed(small))
    for line in () if measured else few([f"{name} {one.unit}" for name, one in sorted(prepared.items()) if one.unit]):
        _log.warning("%s", line)


def _is_foreign(out: Path) -> bool:
    """Whether a folder is in use for something else; a run that was killed may have left no more than ``cases``."""
    if not out.is_dir() or (out / "plan.yaml").is_file() or (out / "index.json").is_file():
        return False
    found = [path for path in out.iterdir() if not path.name.startswith(".")]
    return found != [] and (found != [out / "cases"] or any((out / "cases").iterdir()))


def _settle_plan(root: Path, dataset: Dataset, out: Path, plan: Plan | None) -> Plan:
    """The plan given, or the store's own; it must fit the dataset and what the store holds."""
    file, given = out / "plan.yaml", plan is not None
    if plan is None:
        plan = read_plan(file)
    for what, ours, theirs in differences(plan, dataset):
        problem = f"has {what} {_told(theirs)}, the plan for {plan.name} has {_told(ours)}"
        remedy = "Make a new plan and a new store"
        raise DataError(root, problem, f"{remedy}, or take this one all the same with --adopt" if given else remedy)
    for sentence in stale(plan) if given else ():
        _log.warning("%s", sentence)
    if (out / "index.json").is_file():
        index = read_index(out)
        new = [case.id for case in dataset.cases if case.id not in index["cases"]]
        if new and not given:
            _log.warning("the plan was made without %s; prepare into a new folder to have it measure them", listed(new))
        remedy = "Choose another --out, or leave --plan away" if given else "Undo the edit, or choose another --out"
        require_same_grid(out if given else file, plan, index["grid"], remedy)
    return plan


def _told(declared: object) -> object:
    """Names in their order, and values with them, as dataset.json has them."""
    return ", ".join(declared) if isinstance(declared, tuple) else declared


def _finished(tasks: Mapping[str, CaseTask], cases: Path) -> dict[str, str]:
    """Cases that the store holds, prepared with these settings from files unchanged since; case to folder."""
    found: dict[str, str] = {}
    for folder in sorted(cases.iterdir()) if cases.is_dir() else []:
        task = tasks.get(folder.name.rsplit(".", 1)[0])
        if task is not None and not folder.name.startswith(".") and _holds(folder, task):
            found[task.case.id] = folder.name
    return found


def _holds(folder: Path, task: CaseTask) -> bool:
    try:
        info: CaseInfo = read_info(folder)
    except DataError:
        return False
    same_files = [source.path for source in info.sources] == [str(path.resolve()) for path in task.files]
    return same_files and info.settings == task.settings and all(source.unchanged() for source in info.sources)


def _written(out: Path, plan: Plan, dataset: Dataset, folders: Mapping[str, str]) -> bool:
    """Whether the store already says exactly this."""
    try:
        return read_index(out) == _index(plan, dataset, folders) and read_plan(out / "plan.yaml") == plan
    except DataError:
        return False


def _index(plan: Plan, dataset: Dataset, folders: Mapping[str, str]) -> dict[str, object]:
    return {"schema": SCHEMA, "dataset": dataset.name, "grid": grid_of(plan), "cases": dict(sorted(folders.items()))}


def _begin(out: Path, plan: Plan) -> None:
    """Write the plan and make the folder, so that a later run goes on with the same one."""
    write_plan(out / "plan.yaml", plan)
    (out / "cases").mkdir(exist_ok=True)
    sweep(out / "cases")


def _finish(out: Path, plan: Plan, dataset: Dataset, folders: Mapping[str, str]) -> None:
    """Write the index, then remove what it no longer names."""
    gone = [name for name, folder in folders.items() if not (out / "cases" / folder).is_dir()]
    if gone:
        raise MachineError(out, f"lost {', '.join(gone)}: another process works on it", "Run again when it has ended")
    write_json(out / "index.json", _index(plan, dataset, folders), remedy=REMEDY)
    named = set(folders.values())
    for folder in (out / "cases").iterdir():
        if is_case_folder(folder.name) and folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)


def _peak_bytes(task: CaseTask) -> int:
    """Memory that preparing one case takes at most, from its headers; unreadable files are told by the worker."""
    try:
        header = read_header(task.case.images[0])
    except DataError:
        return 0
    before = prod(header.shape)
    after = int(before * prod(header.spacing_mm) / prod(task.plan.spacing_mm))
    return len(task.plan.modalities) * (16 * before + 8 * after) + 12 * (before + after) * max(1, len(task.case.drawn))
