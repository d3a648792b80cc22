"""Phantoms with the geometry, modalities and labels of the ten Decathlon tasks, to try plans and configs on."""

from __future__ import annotations

from medseg.datasets.msd import find_task
from medseg.phantom.anatomy import PhantomRecipe, Real, structures

_SCENES = {
    "Task01_BrainTumour": ("brain",),
    "Task02_Heart": ("chest", "heart"),
    "Task03_Liver": ("torso", "liver and cancer"),
    "Task04_Hippocampus": ("temporal lobe", "hippocampus"),
    "Task05_Prostate": ("pelvis", "prostate"),
    "Task06_Lung": ("torso", "lungs", "lung cancer"),
    "Task07_Pancreas": ("torso", "liver", "pancreas"),
    "Task08_HepaticVessel": ("torso", "liver", "hepatic vessels"),
    "Task09_Spleen": ("torso", "liver", "spleen"),
    "Task10_Colon": ("torso", "colon"),
}
"""Task -> what is painted, in order."""


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
        structures=structures(*_SCENES[known.name]),
        spacing_mm=(x, y, z),
        size=(i, j, k),
        outside=(-1000.0,) if is_ct else (0.0,) * len(known.modalities),
        noise=12.0 if is_ct else 25.0,
        zero_outside=known.name == "Task01_BrainTumour",
        spacing_variation=0.1,
    )
