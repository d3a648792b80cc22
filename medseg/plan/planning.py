"""From a fingerprint to a plan, by the rules that nnU-Net published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10, prod

import numpy as np

from medseg.datasets.case import Dataset
from medseg.datasets.hounsfield import is_ct
from medseg.datasets.sides import side_pairs
from medseg.errors import DataError
from medseg.plan.budget import SMALLEST_BATCH, Budget, within
from medseg.plan.fingerprint import ORIENTATION, Fingerprint
from medseg.plan.plan import Normalisation, Plan
from medseg.plan.topology import Topology, deep_axes, topology_for
from medseg.space.labels import LabelValue, overlap, paint_order, values_of
from medseg.space.resample import ANISOTROPY, resampled_shape

REFERENCE_MEMORY_GB = 8
LARGEST_SHARE = 0.05  # of all voxels of the dataset that one batch may hold
NONZERO_SHARE = 0.75  # cropping that keeps less makes the mean and std of non-zero voxels the better ones


@dataclass(frozen=True)
class _Reference:
    """What nnU-Net found to train within the reference memory.

    Attributes:
        activations: Of one patch.
        batch: So many of them.
        voxels: Of the first guess of a patch.
    """

    activations: int
    batch: int
    voxels: int

    def budget(self, memory_gb: float) -> float:
        """Activations of one patch in this memory."""
        return self.activations * memory_gb / REFERENCE_MEMORY_GB


VOLUMES = _Reference(activations=560_000_000, batch=2, voxels=256**3)
PICTURES = _Reference(activations=85_000_000, batch=12, voxels=2048**2)


@dataclass(frozen=True)
class _Grid:
    """The grid every case is brought to, and the median case on it."""

    spacing_mm: tuple[float, float, float]
    median_shape: tuple[float, float, float]
    reason: str

    @property
    def deep(self) -> list[int]:
        """The axes along which the median case has more than one voxel; all where there are none."""
        return deep_axes(self.median_shape)

    @property
    def reference(self) -> _Reference:
        """For volumes, or for pictures."""
        return VOLUMES if len(self.deep) == 3 else PICTURES


def make_plan(
    fingerprint: Fingerprint, memory_gb: float = 8.0, *, swap_sides: bool = False, budget: Budget | None = None
) -> Plan:
    """Choose grid, patch, batch, network and normalisation for a dataset, an accelerator's memory and a time.

    Args:
        fingerprint: What the dataset is like.
        memory_gb: Memory that training may take.
        swap_sides: Where organs come in left/right pairs, exchange their labels when flipping left and right, rather
            than never flipping that axis.
        budget: Time that training may take on this machine; as long as it likes where not given.

    Returns:
        A plan whose ``reasons`` say why each number is so.

    Raises:
        ValueError: The memory is not positive.
        DataError: A CT dataset has no foreground to measure.

    Paper: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note 2.
    """
    dataset = fingerprint.dataset
    grid = _choose_grid(fingerprint)
    labels, painted = classes_of(dataset)
    classes = len(labels) + 1
    topology = _choose_topology(grid, classes, memory_gb)
    fits, batch_reason = _choose_batch(topology, grid, classes, memory_gb, len(fingerprint.cases))
    topology, batch, afforded = _afford(budget, topology, fits, grid, classes)
    normalisation, normalisation_reason = _choose_normalisation(fingerprint)
    mirror_axes, pairs, mirror_reason = choose_mirroring(dataset, grid.deep, swap=swap_sides)
    return Plan(
        name=dataset.name,
        modalities=dataset.modalities,
        labels=labels,
        orientation=ORIENTATION,
        spacing_mm=grid.spacing_mm,
        patch_size=topology.patch_size,
        batch_size=batch,
        normalisation=normalisation,
        strides=topology.strides,
        kernels=topology.kernels,
        features=topology.features,
        ignore=dataset.ignore,
        others=dataset.others,
        paint_order=painted,
        mirror_axes=mirror_axes,
        swap_labels=pairs,
        reasons={
            "labels": _labels_reason(fingerprint),
            "orientation": "Every volume is turned to this; axis 0 grows to the patient's right, 1 to the front, 2 up.",
            "spacing_mm": grid.reason,
            "patch_size": _patch_reason(topology, grid, classes, memory_gb),
            "batch_size": batch_reason,
            "normalisation": normalisation_reason,
            "strides": _strides_reason(topology),
            "mirror_axes": mirror_reason,
            **afforded,
        },
    )


def readable(number: float, *, digits: int, of: float | None = None) -> float:
    """Round a number to so many digits of its scale; a scale above 1 counts as 1.

    Args:
        number: What to round.
        digits: How many digits stay.
        of: The scale; the number itself where not given.

    Example:
        >>> readable(2.0223366, digits=6), readable(1.4999999, digits=6), readable(0.00742187, digits=6)
        (2.02234, 1.5, 0.00742187)
        >>> readable(-99.17342, digits=4, of=37.2)
        -99.173
    """
    scale = abs(number) if of is None else of
    decimals = digits - 1 - min(0, floor(log10(scale))) if scale > 0 else digits
    return round(number, decimals)


def _choose_grid(fingerprint: Fingerprint) -> _Grid:
    spacings, shapes = fingerprint.spacings_mm, fingerprint.shapes
    median = np.median(spacings, axis=0)
    target = median.copy()
    size = np.median(shapes, axis=0)
    deep = deep_axes(size.tolist())
    coarsest = max(deep, key=lambda axis: (median[axis], -axis))
    others = [axis for axis in deep if axis != coarsest] or deep
    reason = f"The median of {len(spacings)} cases, which range from {_edges(spacings.min(0))} to "
    reason += f"{_edges(spacings.max(0))} mm."
    if fingerprint.unscaled:
        reason += " Pictures do not say how large a pixel is: 1 mm is assumed, and all lengths are in pixels."
    for axis in range(3):
        if shapes[:, axis].max() == 1 and axis not in deep:
            target[axis] = spacings[:, axis].max()
            reason += f" Axis {axis} has one voxel, of the thickest slice, so that none becomes two."
    coarse = len(deep) == 3 and median[coarsest] > ANISOTROPY * median[others].max()
    if coarse and size[coarsest] * ANISOTROPY < size[others].min():
        tenth = float(np.percentile(spacings[:, coarsest], 10))
        target[coarsest] = max(tenth, float(median[others].max()) + 1e-5)
        reason += (
            f" Axis {coarsest} has thick slices (median {median[coarsest]:g} mm) and few of them: its 10th percentile "
            "is taken, so that thin-slice cases are not thrown away. Slices are never blended with each other."
        )
    i, j, k = (readable(float(edge), digits=6) for edge in target)  # here, so that all that follows agrees with it
    resampled = [
        resampled_shape((int(shape[0]), int(shape[1]), int(shape[2])), spacing.tolist(), (i, j, k))
        for shape, spacing in zip(shapes, spacings, strict=True)
    ]
    median_shape = np.median(resampled, axis=0)
    return _Grid((i, j, k), (float(median_shape[0]), float(median_shape[1]), float(median_shape[2])), reason)


def _choose_topology(grid: _Grid, classes: int, memory_gb: float) -> Topology:
    """The largest patch, shaped like the median case, that trains twice over in the memory."""
    if not memory_gb > 0:
        raise ValueError(f"memory_gb must be positive, got {memory_gb}; 8 is what most published plans assume")
    deep = grid.deep
    finest = 1 / np.array(grid.spacing_mm)
    guess = finest * (grid.reference.voxels / finest[deep].prod()) ** (1 / len(deep))
    wanted = [max(1, min(round(float(edge)), size)) for edge, size in zip(guess, grid.median_shape, strict=True)]
    topology = topology_for([edge if axis in deep else 1 for axis, edge in enumerate(wanted)], grid.spacing_mm)
    coarsest = max(deep, key=lambda axis: (grid.spacing_mm[axis], axis))
    order = sorted(deep, key=lambda axis: (axis == coarsest, axis))  # who gives way first when two are level
    while topology.activations(classes) > grid.reference.budget(memory_gb):
        size = list(topology.patch_size)
        axis = max(order, key=lambda axis: size[axis] / grid.median_shape[axis])
        if size[axis] <= topology.multiple[axis]:
            break  # one voxel in the bottleneck: nothing is left to take away
        trial = size.copy()
        trial[axis] -= topology.multiple[axis]
        size[axis] -= topology_for(trial, grid.spacing_mm).multiple[axis]
        topology = topology_for(size, grid.spacing_mm)
    return topology


def _choose_batch(topology: Topology, grid: _Grid, classes: int, memory_gb: float, cases: int) -> tuple[int, str]:
    reference = grid.reference
    fits = round(reference.budget(memory_gb) / topology.activations(classes) * reference.batch)
    share = round(prod(grid.median_shape) * cases * LARGEST_SHARE / prod(topology.patch_size))
    batch = max(min(fits, share), SMALLEST_BATCH)
    reason = f"{fits} patches fit into {memory_gb:g} GB"
    if batch == fits:
        return batch, reason + "."
    patches = f"{share} patch{'es' * (share > 1)}" if share else "less than a patch"
    limit = f"; a step should see at most {LARGEST_SHARE:.0%} of the dataset's voxels, {patches}"
    return batch, f"{reason}{limit}; never fewer than {SMALLEST_BATCH}."


def _afford(
    budget: Budget | None, topology: Topology, batch: int, grid: _Grid, classes: int
) -> tuple[Topology, int, dict[str, str]]:
    """What of this a budget of time can train, with the reasons of its features and, where it is smaller, its batch."""
    why, told = {}, ""
    if budget is not None:
        affordable = within(budget, topology, batch, grid.spacing_mm, classes)
        if affordable.batch < batch:
            why = {"batch_size": f"{batch} patches would fit into the memory; the time allows fewer, see features."}
        elif affordable.topology != topology:
            why = {"batch_size": "As many as of the largest network that the memory holds; for the time, see features."}
        topology, batch, told = affordable.topology, affordable.batch, f" {affordable.reason}"
    doubled = f"oubled at every stage from {topology.second_features or topology.first_features}"
    begin = "D" if topology.second_features is None else f"{topology.first_features}, then d"
    return topology, batch, {**why, "features": f"{begin}{doubled}, at most {topology.most_features}.{told}"}


def _choose_normalisation(fingerprint: Fingerprint) -> tuple[tuple[Normalisation, ...], str]:
    chosen, reasons = [], []
    for index, modality in enumerate(fingerprint.dataset.modalities):
        how, reason = _normalisation_of(fingerprint, index, modality)
        chosen.append(how)
        reasons.append(f"{modality}: {reason}")
    unique = (
        reasons
        if len(set(chosen)) > 1
        else [f"{', '.join(fingerprint.dataset.modalities)}: {reasons[0].split(': ', 1)[1]}"]
    )
    return tuple(chosen), " ".join(unique)


def _normalisation_of(fingerprint: Fingerprint, index: int, modality: str) -> tuple[Normalisation, str]:
    named = {"nonorm": "none", "rescale_to_0_1": "rescale", "rgb_to_0_1": "rescale"}.get(modality.casefold())
    if named is not None:
        return Normalisation(named), "as the name of the channel asks."
    if is_ct(modality):
        foreground = fingerprint.foreground(index)
        if foreground is None:
            raise DataError(
                fingerprint.dataset.name, "has no labelled voxels to measure Hounsfield units in", "See medseg verify"
            )
        if not foreground.upper > foreground.lower:
            return Normalisation("zscore"), (
                f"all labelled voxels are {foreground.lower:g}, which measures no Hounsfield units; each case's own "
                "mean and std."
            )
        measured = (foreground.lower, foreground.upper, foreground.mean, foreground.std)
        clip = (readable(number, digits=4, of=foreground.std) for number in measured)
        return Normalisation("ct", *clip), (
            "Hounsfield units mean the same in every scanner, so the same numbers serve every case: clipped to the 0.5 "
            f"and 99.5 percentiles of the labelled voxels (which range from {foreground.lowest:g} to "
            f"{foreground.highest:g}), then their mean and std."
        )
    if fingerprint.kept < NONZERO_SHARE:
        return Normalisation("zscore_nonzero"), (
            "intensities have no unit, so each case's own mean and std; over its non-zero voxels, because cropping to "
            f"them keeps only {fingerprint.kept:.0%} of a volume."
        )
    return Normalisation("zscore"), "intensities have no unit, so each case's own mean and std."


def choose_mirroring(
    dataset: Dataset, axes: Sequence[int], *, swap: bool
) -> tuple[tuple[int, ...], tuple[tuple[str, str], ...], str]:
    """Which of these axes training may flip, the organs that a flip of axis 0 exchanges, and why."""
    pairs, flipped = side_pairs(tuple(dataset.labels)), tuple(axes)
    if not pairs or 0 not in axes:
        return flipped, (), "All axes may be flipped: no organ is named for its side."
    named = "; ".join(f"{left} and {right}" for left, right in pairs)
    if swap:
        return flipped, pairs, f"Flipping axis 0 (left-right) exchanges the labels of swap_labels: {named}."
    told = ", ".join(f"[{left}, {right}]" for left, right in pairs)
    reason = (
        f"Axis 0 (left-right) is not flipped, because organs are named for their side: {named}. To flip it and "
        f"exchange their labels instead, write mirror_axes: {list(flipped)} and swap_labels: [{told}]."
    )
    return tuple(axis for axis in flipped if axis != 0), (), reason


def classes_of(dataset: Dataset) -> tuple[dict[str, LabelValue], tuple[int, ...] | None]:
    """The labels in the order of the classes, and what to paint regions with, from the largest to the smallest."""
    if dataset.paint_order is not None or not overlap(dataset.labels.values()):
        return dict(dataset.labels), dataset.paint_order
    labels = dict(sorted(dataset.labels.items(), key=lambda item: -len(values_of(item[1]))))
    return labels, paint_order(labels.values())


def _labels_reason(fingerprint: Fingerprint) -> str:
    told = []
    for name, value in fingerprint.dataset.labels.items():
        values = values_of(value)
        present = [case for case in fingerprint.cases.values() if any(v in case.voxels for v in values)]
        counts = [sum(case.voxels.get(v, 0) for v in values) for case in present]
        voxels_ml = [prod(case.spacing_mm) * case.square / 1000 for case in present]
        sizes = [count * ml for count, ml in zip(counts, voxels_ml, strict=True)]
        median = f", median {np.median(sizes):.3g} ml" if sizes else ""
        told.append(f"{name} in {len(present)} of {len(fingerprint.cases)} cases{median}")
    return "; ".join(told) + "."


def _patch_reason(topology: Topology, grid: _Grid, classes: int, memory_gb: float) -> str:
    share = min(1.0, prod(topology.patch_size) / prod(grid.median_shape))
    used = memory_gb * topology.activations(classes) / grid.reference.budget(memory_gb)
    return (
        f"The median case has {_edges(grid.median_shape)} voxels here; a patch covers {share:.0%} of it, has its "
        f"proportions, and training on {grid.reference.batch} of them takes about {used:.2g} GB of {memory_gb:g}. A "
        f"multiple of {_edges(topology.multiple)}, which the network halves away."
    )


def _strides_reason(topology: Topology) -> str:
    i, j, k = topology.multiple
    return (
        f"An axis is halved while 8 voxels are left and its spacing is within a factor of 2 of the finest: in all by "
        f"{i}, {j} and {k}. Kernels are 1 along an axis that is still too coarse to mix, or has one voxel."
    )


def _edges(numbers: Sequence[float | int] | np.ndarray) -> str:
    return " x ".join(f"{float(number):.3g}" if float(number) < 100 else f"{float(number):.0f}" for number in numbers)
