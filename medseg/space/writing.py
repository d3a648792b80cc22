"""Label maps out, in the format of the image that they belong to where it can hold them, else as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
from numpy.typing import NDArray

from medseg.machine.files import whole
from medseg.space.flat import write_flat
from medseg.space.formats import write_itk
from medseg.space.labels import integer_type
from medseg.space.nifti import write_labels
from medseg.space.reading import is_nifti
from medseg.space.volume import Affine

_ENDING_FOR = {
    **dict.fromkeys((".nrrd", ".nhdr"), ".nrrd"),
    **dict.fromkeys((".mha", ".mhd"), ".mha"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), ".png"),
    **dict.fromkeys((".tif", ".tiff"), ".tif"),
}
_LARGEST_GREY = 65_535  # of a picture of 16 bits


def label_ending(image: Path, highest: int) -> str:
    """The ending of the label map of an image: its own format, unless that packs with a loss or is too small.

    Args:
        image: Its file, or the folder of its DICOM series.
        highest: The largest label value.

    Example:
        >>> label_ending(Path("a.nrrd"), 3), label_ending(Path("a.jpg"), 3), label_ending(Path("a.png"), 100_000)
        ('.nrrd', '.png', '.nii.gz')
    """
    ending = _ENDING_FOR.get(image.suffix, ".nii.gz")
    return ".nii.gz" if ending in (".png", ".tif") and highest > _LARGEST_GREY else ending


def write_labels_for(image: Path, target: Path, labels: NDArray[Any], affine: Affine) -> None:
    """Write integer labels voxel by voxel on the grid of an image; whole or not at all.

    Args:
        image: What was segmented.
        target: Ends in what `label_ending` says.
        labels: ``(i, j, k)``, as `medseg.space.reading.read_volume` orders the axes.
        affine: Of the image, voxel indices to RAS+ mm.
    """
    small = labels.astype(integer_type(labels))
    if not target.name.endswith(".nii.gz"):
        write_flat(target, small) if target.suffix in (".png", ".tif") else write_itk(target, small, affine)
    elif is_nifti(image):
        write_labels(target, labels, like=image)
    else:
        _write_nifti(target, small, affine)


def _write_nifti(path: Path, labels: NDArray[Any], affine: Affine) -> None:
    """On a grid that no NIfTI file gives."""
    image = nib.Nifti1Image(labels, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with whole(path) as partial:
        nib.save(image, partial)
