"""A plan made for one dataset, taken for another: to go on training its network, or for the scans of another site."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medseg.datasets.case import Dataset
from medseg.datasets.sides import side_pairs
from medseg.errors import DataError, listed
from medseg.plan.plan import Plan
from medseg.plan.planning import choose_mirroring, classes_of
from medseg.plan.topology import topology_for


def adopt(plan: Plan, dataset: Dataset, *, swap_sides: bool = False) -> Plan:
    """A plan's grid, normalisation, patch and network with the channels, labels and sides of another dataset.

    Each channel gets the normalisation of its place; where one by each case's own numbers is that of all, there may be
    any number of them.

    Raises:
        DataError: The dataset has another number of channels than the plan.
    """
    channels, normalisation = len(dataset.modalities), plan.normalisation
    if len(set(normalisation)) == 1 and normalisation[0].scheme != "ct":
        normalisation = normalisation[:1] * channels
    if len(normalisation) != channels:
        problem = f"has the channels {listed(dataset.modalities)}, the plan for {plan.name} {listed(plan.modalities)}"
        raise DataError(dataset.name, problem, "Adopt a plan of as many channels, or make a new one")
    labels, painted = classes_of(dataset)
    axes, pairs, why = choose_mirroring(dataset, plan.mirror_axes, swap=swap_sides or bool(plan.swap_labels))
    side = next(axis for axis, code in enumerate(plan.orientation) if code in "LRi")
    if side and side_pairs(tuple(labels)):  # only axis 0 can exchange labels
        axes, pairs = tuple(axis for axis in plan.mirror_axes if axis != side), ()
        why = f"Axis {side} (left-right) is not flipped, because organs are named for their side."
    return replace(
        plan,
        name=dataset.name,
        modalities=dataset.modalities,
        normalisation=normalisation,
        labels=labels,
        ignore=dataset.ignore,
        others=dataset.others,
        paint_order=painted,
        mirror_axes=axes,
        swap_labels=pairs,
        independent=False,
        reasons={key: reason for key, reason in plan.reasons.items() if key != "labels"}
        | {"name": f"Adopted is the plan for {plan.name}: every number below was chosen for it.", "mirror_axes": why},
    )


def differences(plan: Plan, dataset: Dataset) -> tuple[tuple[str, object, object], ...]:
    """What a plan and a dataset must share and do not: its name, the plan's, the dataset's."""
    shared = (
        ("modalities", plan.modalities, dataset.modalities),
        ("labels", plan.labels, dataset.labels),
        ("ignore", plan.ignore, dataset.ignore),
        ("others", plan.others, dataset.others),
    )
    return tuple((what, ours, theirs) for what, ours, theirs in shared if ours != theirs)


def stale(plan: Plan) -> Iterator[str]:
    """What an edit of spacing or patch has left behind, as sentences: numbers that would be others now."""
    fitting = topology_for(plan.patch_size, plan.spacing_mm)
    for what, ours, theirs in (
        ("strides", plan.strides, fitting.strides),
        ("kernels", plan.kernels, fitting.kernels),
    ):
        if ours != theirs:
            wanted = [list(triple) for triple in theirs]
            patch, spacing = (" x ".join(f"{n:g}" for n in edges) for edges in (plan.patch_size, plan.spacing_mm))
            yield f"the plan's {what} are not what a patch of {patch} voxels of {spacing} mm gets, which are {wanted}"
