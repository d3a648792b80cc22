"""What a phantom is made of: ellipsoids of tissue with names, sizes and intensities, and recipes built from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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


_COLUMN = 6.0  # far beyond the field of view

TORSO = (
    Structure((0, 0, 0), (0.86, 0.68, _COLUMN), (-100,), wander=0.02),  # skin and subcutaneous fat
    Structure((0, 0, 0), (0.78, 0.60, _COLUMN), (55,), wander=0.01),  # abdominal wall
    Structure((0, 0.02, 0), (0.71, 0.53, _COLUMN), (-90,), wander=0.01, spread=10),  # visceral fat
    Structure((0, -0.42, 0), (0.16, 0.14, _COLUMN), (280,), wander=0.01, spread=40),  # spine
    Structure((0.23, -0.40, -0.5), (0.10, 0.10, 0.9), (55,), wander=0.01),  # psoas, right
    Structure((-0.23, -0.40, -0.5), (0.10, 0.10, 0.9), (55,), wander=0.01),  # psoas, left
    Structure((-0.07, -0.21, 0), (0.06, 0.06, _COLUMN), (140,), wander=0.02, spread=15),  # aorta
    Structure((0.09, -0.20, 0), (0.07, 0.06, _COLUMN), (95,), wander=0.02, spread=15),  # vena cava
    Structure((0, 0.2, -0.55), (0.16, 0.13, 0.14), (35,), wander=0.2, spread=10, count=(3, 5)),  # bowel
    Structure((-0.28, 0.20, 0.32), (0.24, 0.20, 0.25), (38,), wander=0.04, spread=8),  # stomach
    Structure((-0.26, 0.30, 0.34), (0.10, 0.06, 0.12), (-850,), wander=0.04),  # its air
)
"""A trunk without the organs that are to be found: skin, fat, muscle, bone, vessels and gut."""

ABDOMEN = PhantomRecipe(
    name="Phantom",
    modalities=("CT",),
    labels={"liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "gallbladder": 5},
    structures=(
        *TORSO,
        Structure((0.34, 0.06, 0.25), (0.35, 0.38, 0.46), (62,), "liver", spread=7),
        Structure((-0.46, -0.14, 0.34), (0.16, 0.22, 0.27), (50,), "spleen", spread=7),
        Structure((0.37, -0.26, -0.32), (0.14, 0.13, 0.26), (130,), "kidney_right", spread=12),
        Structure((-0.37, -0.26, -0.27), (0.14, 0.13, 0.26), (130,), "kidney_left", spread=12),
        Structure((0.24, 0.30, -0.06), (0.09, 0.09, 0.105), (6,), "gallbladder", spread=4),
    ),
    without={3: "kidney_left"},
)
"""The embedded dataset: five organs between 3 % and 0.04 % of the voxels, low contrast, a left/right pair."""
