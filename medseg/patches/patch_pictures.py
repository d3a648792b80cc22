"""Pictures of training patches, for a look at what the network sees."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Integer, UInt8

from medseg.patches.datamodule import VolumesDataModule
from medseg.pictures.panels import picture
from medseg.pictures.slices import SOFT_TISSUE_HU, write_png
from medseg.plan.plan import Normalisation, Plan
from medseg.space.labels import IGNORED
from medseg.space.volume import Volume
from medseg.verify.case_pictures import names_of_values


def write_patch_figures(data: VolumesDataModule, out: Path, n: int) -> tuple[Path, ...]:
    """Write the first patches of training, augmented: three views of each, without and with labels.

    Labels have the colours that `medseg.verify.case_pictures` gives them; ignored voxels are darker.

    Args:
        data: Where the patches come from.
        out: Folder for ``patch_00_CASE.png`` and so on; made if need be.
        n: How many patches.

    Returns:
        The files.

    Raises:
        MachineError: A picture cannot be written.
    """
    files = []
    for number, (case, image, labels) in enumerate(islice(_patches(data), n)):
        files.append(out / f"patch_{number:02d}_{case}.png")
        write_png(files[-1], draw_patch(image, labels, data.plan, title=f"patch of {case}"))
    return tuple(files)


def draw_patch(
    image: Float[np.ndarray, "m i j k"], labels: Integer[np.ndarray, "i j k"], plan: Plan, *, title: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one patch.

    Args:
        image: Normalised intensities on the plan's grid.
        labels: The store's indices.
        plan: Says how the axes lie, how large a voxel is, and what the labels are called.
        title: Written above.
    """
    values = np.array([0, *plan.atoms, -1])[labels]  # as in the files, so that colours agree; the last is -1's
    return picture(
        Volume(image, _affine(plan)),
        values,
        windows=[_window(how) for how in plan.normalisation],
        title=title,
        names=names_of_values(plan.labels) | {IGNORED: "ignored or outside"},
        rows=plan.modalities,
    )


def _window(how: Normalisation) -> tuple[float, float] | None:
    """The window of soft tissue in normalised numbers: a fixed one, so that a changed brightness shows."""
    if how.scheme != "ct":
        return None
    low, high = ((edge - how.mean) / how.std for edge in SOFT_TISSUE_HU)
    return low, high


_AS_IF = str.maketrans("ijk", "RAS")


def _affine(plan: Plan) -> np.ndarray:
    """An affine with the plan's spacing whose axes point where the plan says; those of a file as if it were RAS."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    directions = nib.orientations.axcodes2ornt(tuple(plan.orientation.translate(_AS_IF)))
    for axis, ((world, sign), edge) in enumerate(zip(directions, plan.spacing_mm, strict=True)):
        affine[int(world), axis] = sign * edge
    return affine


def _patches(data: VolumesDataModule) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for crops in data.train_dataloader():
        batch = data.on_after_batch_transfer(crops, 0)
        yield from zip(batch.id, batch.image.cpu().numpy(), batch.labels.cpu().numpy(), strict=True)
