"""Phantoms with the geometry, modalities and labels of the ten Decathlon tasks, to try plans and configs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medseg.datasets.msd import find_task
from medseg.phantom.anatomy import TORSO, PhantomRecipe, Real, Structure

_LIVER = Structure((0.34, 0.06, 0.25), (0.35, 0.38, 0.46), (105,), spread=8)

_BRAIN = (
    Structure((0, 0, 0), (0.62, 0.78, 0.72), (620, 480, 500, 560), wander=0.02, spread=20),  # cortex
    Structure((0, 0, 0), (0.52, 0.66, 0.60), (520, 600, 610, 430), wander=0.02, spread=20),  # white matter
    Structure((0.09, 0, 0.08), (0.06, 0.26, 0.14), (180, 220, 230, 950), wander=0.01),  # ventricle, right
    Structure((-0.09, 0, 0.08), (0.06, 0.26, 0.14), (180, 220, 230, 950), wander=0.01),  # ventricle, left
    Structure((0.15, 0.1, 0.1), (0.26, 0.28, 0.24), (950, 450, 470, 880), "edema", wander=0.12, spread=30),
    Structure((0, 0, 0), (0.16, 0.17, 0.15), (800, 500, 980, 700), "enhancing tumour", within="edema", wander=0.02),
    Structure(
        (0, 0, 0),
        (0.09, 0.10, 0.09),
        (550, 330, 380, 780),
        "non-enhancing tumor",
        within="enhancing tumour",
        wander=0.02,
    ),
)

_CHEST = (
    Structure((0, 0, 0), (0.86, 0.66, 6.0), (500,), wander=0.02, spread=20),
    Structure((0.42, 0, 0.1), (0.30, 0.42, 0.9), (60,), wander=0.02),  # lung, right
    Structure((-0.42, 0, 0.1), (0.30, 0.42, 0.9), (60,), wander=0.02),  # lung, left
)

_TEMPORAL_LOBE = (
    Structure((0, 0, 0), (3.0, 3.0, 3.0), (420,), wander=0.05, spread=20),
    Structure((0.5, 0.2, 0.5), (0.5, 0.9, 0.5), (620,), wander=0.1, spread=30),  # white matter
    Structure((-0.6, -0.2, 0.4), (0.3, 0.5, 0.3), (150,), wander=0.1),  # fluid
)

_PELVIS = (
    Structure((0, 0, 0), (0.92, 0.80, 6.0), (350, 500), wander=0.02, spread=20),
    Structure((0, 0.35, 0.5), (0.30, 0.22, 0.5), (900, 1300), wander=0.04, spread=30),  # bladder
    Structure((0, -0.42, 0), (0.14, 0.13, 3.0), (200, 300), wander=0.03),  # rectum
)

_LUNGS = (
    Structure((0.38, 0.02, 0), (0.28, 0.42, 1.2), (-850,), wander=0.02, spread=15),
    Structure((-0.38, 0.02, 0), (0.28, 0.42, 1.2), (-850,), wander=0.02, spread=15),
)

_ANATOMY: Mapping[str, tuple[Structure, ...]] = {
    "Task01_BrainTumour": _BRAIN,
    "Task02_Heart": (
        *_CHEST,
        Structure((-0.05, 0, 0), (0.26, 0.30, 0.45), (640,), wander=0.03, spread=20),  # the rest of the heart
        Structure((0.0, -0.14, 0.1), (0.13, 0.11, 0.20), (900,), "left atrium", spread=30),
    ),
    "Task03_Liver": (
        *TORSO,
        replace(_LIVER, label="liver"),
        Structure((0, 0, 0), (0.08, 0.08, 0.08), (60,), "cancer", within="liver", wander=0.12, count=(1, 4)),
    ),
    "Task04_Hippocampus": (
        *_TEMPORAL_LOBE,
        Structure((0, 0.25, 0), (0.30, 0.30, 0.25), (500,), "Anterior", wander=0.05, spread=15),
        Structure((0, -0.25, 0), (0.22, 0.36, 0.20), (500,), "Posterior", wander=0.05, spread=15),
    ),
    "Task05_Prostate": (
        *_PELVIS,
        Structure((0, -0.08, -0.1), (0.20, 0.19, 0.45), (780, 1100), "PZ", spread=30),
        Structure((0, 0.05, 0.05), (0.14, 0.12, 0.35), (480, 800), "TZ", within="PZ", wander=0.02, spread=30),
    ),
    "Task06_Lung": (
        *TORSO,
        *_LUNGS,
        Structure((0.38, 0.05, 0.1), (0.05, 0.05, 0.05), (40,), "cancer", wander=0.1, spread=10),
    ),
    "Task07_Pancreas": (
        *TORSO,
        _LIVER,
        Structure((-0.08, 0.02, 0.05), (0.26, 0.08, 0.10), (85,), "pancreas", spread=8),
        Structure((0.05, 0, 0), (0.07, 0.06, 0.07), (50,), "cancer", within="pancreas", wander=0.04),
    ),
    "Task08_HepaticVessel": (
        *TORSO,
        _LIVER,
        Structure((0.34, 0.06, 0.25), (0.02, 0.25, 0.03), (165,), "Vessel", wander=0.06, spread=10, count=(3, 5)),
        Structure((0.34, 0.06, 0.25), (0.08, 0.08, 0.08), (65,), "Tumour", wander=0.1, count=(1, 2)),
    ),
    "Task09_Spleen": (
        *TORSO,
        _LIVER,
        Structure((-0.46, -0.14, 0.34), (0.16, 0.22, 0.27), (110,), "spleen", spread=8),
    ),
    "Task10_Colon": (
        *TORSO,
        Structure((-0.35, 0.05, -0.35), (0.14, 0.14, 0.35), (20,), wander=0.04, spread=10),  # descending colon
        Structure((-0.35, 0.05, -0.35), (0.06, 0.07, 0.09), (75,), "colon cancer primaries", wander=0.05, spread=8),
    ),
}


def recipe_for(task: str, *, shrink: Real = 1) -> PhantomRecipe:
    """A phantom with the modalities, labels, spacing and size of one of the Decathlon's tasks.

    Args:
        task: Name, number or organ, as `medseg.datasets.msd.find_task` takes it.
        shrink: Divide the number of voxels along each axis by this and stretch the voxels accordingly; the field of
            view stays as it is. Thin axes keep at least 12 voxels.

    Returns:
        A recipe for `medseg.phantom.phantom.write_phantom`.

    Raises:
        UsageError: There is no such task.

    Example:
        >>> recipe_for("Prostate").modalities, recipe_for("Spleen", shrink=4).size
        (('T2', 'ADC'), (128, 128, 22))
    """
    known = find_task(task)
    i, j, k = (max(min(12, n), round(n / shrink)) for n in known.size)
    x, y, z = (s * n / m for s, n, m in zip(known.spacing_mm, known.size, (i, j, k), strict=True))
    is_ct = known.modalities == ("CT",)
    return PhantomRecipe(
        name=known.name,
        modalities=known.modalities,
        labels=known.labels,
        structures=_ANATOMY[known.name],
        spacing_mm=(x, y, z),
        size=(i, j, k),
        outside=(-1000.0,) if is_ct else (0.0,) * len(known.modalities),
        noise=12.0 if is_ct else 25.0,
        zero_outside=known.name == "Task01_BrainTumour",
        spacing_variation=0.1,
    )
