"""A look at a dataset: pictures of a few cases, and of the patches that training would cut from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medseg.datasets.case import Case, Dataset, read_dataset
from medseg.machine.files import scratch, write_json
from medseg.patches.datamodule import VolumesDataModule
from medseg.patches.patch_pictures import write_patch_figures
from medseg.plan.fingerprint import fingerprint
from medseg.plan.plan import Plan
from medseg.plan.planning import make_plan
from medseg.store.prepare import prepare
from medseg.verify.case_pictures import spread_out, write_figures

CASES, PATCHES = 4, 6


def write_pictures(root: Path, out: Path, plan: Plan | None = None, *, workers: int | None = None) -> str:
    """Draw a few cases with their labels, and augmented patches of them, as `medseg fit` would cut them by default.

    The cases are prepared into a store that is thrown away afterwards.

    Returns:
        A sentence about what was written.

    Raises:
        DataError: None of the few cases can be read, or they cannot be prepared.
    """
    drawn = write_figures(root, out, cases=CASES)
    told = f"{len(drawn)} picture{'s' * (len(drawn) != 1)} of cases"
    dataset = read_dataset(root)
    train, held_back = _parted(dataset)
    if not train:
        return f"{told} are in {out}; patches need labelled cases of two patients"
    few = (*train, *held_back)
    if plan is None:
        plan = make_plan(fingerprint(replace(dataset, cases=few), workers))
    with scratch(out) as folder:
        store = folder / "store"
        prepare(root, store, plan, workers, cases=[case.id for case in few])
        split = folder / "split.json"
        write_json(split, [{"train": [case.id for case in train], "val": [held_back[0].id]}])
        data = VolumesDataModule(store, split=split, workers=0, cache="disk")
        patches = write_patch_figures(data, out, PATCHES)
    return f"{told} and {len(patches)} of augmented patches are in {out}"


def _parted(dataset: Dataset) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """The cases that were drawn, to cut patches from, and one of another patient, since none trains on all of them."""
    drawn = spread_out(dataset.cases, CASES)
    patients = {case.patient for case in drawn}
    others = [case for case in dataset.cases if case.patient not in patients] or [*drawn[-1:]]
    return tuple(case for case in drawn if case.patient != others[0].patient), tuple(others[:1])
