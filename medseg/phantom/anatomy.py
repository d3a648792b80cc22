"""What a phantom is made of: ellipsoids of tissue with names, sizes and intensities, and recipes built from them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Real = float | int
Triple = tuple[Real, Real, Real]


@dataclass(frozen=True)
class Structure:
    """An ellipsoid of tissue, varied and deformed from case to case.

    Positions and radii are fractions of half the nominal field of view; x grows to the patient's right, y to the front,
    z to the head. A radius above 2 makes a column that leaves the field of view.

    Attributes:
        centre: Mean position; for a structure inside another one, an offset from that one's centre.
        radii: Mean half axes.
        intensity: Mean value in each modality; Hounsfield units for CT.
        label: Name of the label it is painted with, or None for unlabelled tissue.
        wander: Standard deviation of the position from case to case.
        spread: Standard deviation of the intensity from case to case.
        within: Paint only where this label is; the position is drawn at random inside it.
        count: Fewest and most copies in a case.
    """

    centre: Triple
    radii: Triple
    intensity: tuple[Real, ...]
    label: str | None = None
    wander: Real = 0.03
    spread: Real = 5.0
    within: str | None = None
    count: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class PhantomRecipe:
    """A dataset to be invented: its geometry, its modalities and its anatomy.

    Attributes:
        name: Name of the dataset; cases are called ``<name>_000`` in lower case.
        modalities: ``"CT"`` makes Hounsfield units, anything else the arbitrary units of magnetic resonance.
        labels: Organ name to the value in the files.
        structures: Painted in order, later ones over earlier ones.
        spacing_mm: Mean spacing along x, y and z.
        size: Mean voxels along x, y and z.
        spacing_variation: Largest relative deviation of a case's spacing.
        outside: Value around the body, in each modality.
        noise: Standard deviation of the white noise; spatially correlated noise is added at two thirds of it.
        zero_outside: Keep the surroundings exactly zero, as skull-stripped images are.
        without: Index of a case to the label it lacks.
        unannotated: Index of a case to the organs that its labels leave out although they are there, which
            ``dataset.json`` tells by listing the others under ``annotated``.
        regions: Overlapping regions, name to values, outer ones first; declared in place of ``labels`` when not empty.
    """

    name: str
    modalities: tuple[str, ...]
    labels: Mapping[str, int]
    structures: tuple[Structure, ...]
    spacing_mm: Triple = (2.0, 2.0, 3.0)
    size: tuple[int, int, int] = (64, 64, 40)
    spacing_variation: Real = 0.15
    outside: tuple[Real, ...] = (-1000.0,)
    noise: Real = 12.0
    zero_outside: bool = False
    without: Mapping[int, str] = field(default_factory=dict)
    unannotated: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def structures(*scenes: str) -> tuple[Structure, ...]:
    """What lies in some scenes of ``structures.csv``, scene by scene, in the order of its lines."""
    with Path(__file__).with_name("structures.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return tuple(_structure(line) for scene in scenes for line in lines if line["scene"] == scene)


def _structure(line: Mapping[str, str]) -> Structure:
    x, y, z = _numbers(line["centre"])
    a, b, c = _numbers(line["radii"])
    fewest, most = _numbers(line["count"])
    return Structure(
        (x, y, z),
        (a, b, c),
        _numbers(line["intensities"]),
        line["tissue"] if line["labelled"] else None,
        wander=float(line["wander"]),
        spread=float(line["spread"]),
        within=line["within"] or None,
        count=(int(fewest), int(most)),
    )


def _numbers(cell: str) -> tuple[float, ...]:
    return tuple(map(float, cell.split()))


ABDOMEN = PhantomRecipe(
    name="Phantom",
    modalities=("CT",),
    labels={"liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "gallbladder": 5},
    structures=structures("torso", "abdominal organs"),
    without={3: "kidney_left"},
)
"""The embedded dataset: five organs between 3 % and 0.04 % of the voxels, low contrast, a left/right pair."""
