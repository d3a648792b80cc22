"""What a NIfTI header says that medseg does not follow, and that other programs may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from medseg.space.nifti import open_nifti, own_affine
from medseg.space.volume import Affine, distance_in_voxels, orientation_of, shear_degrees, spacing_of

_QUATERNION_VOXELS = 0.25  # near half a turn float32 leaves a quaternion 3e-4 radians, 0.2 of a voxel over 512
_ZOOM = 0.01  # share by which pixdim may differ from the affine's edges
_SHEAR_DEGREES = 0.5


class Remark(NamedTuple):
    """One thing about a header, of a kind, with what to do."""

    kind: str
    problem: str
    remedy: str


def header_remarks(path: Path) -> Iterator[Remark]:
    """What is odd about the header of a readable NIfTI file; training and prediction follow its affine all the same.

    Kinds: ``two-affines`` (qform against sform), ``quaternion`` (a qform that is no rotation), ``pixdim`` (against the
    affine, or zero), ``sheared`` (a gantry tilt).
    """
    image = open_nifti(path)
    header, affine, axes = image.header, own_affine(image), len(image.shape)
    follows = "medseg follows the sform; other programs may not: make them agree"
    told = False
    if header["qform_code"] and header["sform_code"]:
        try:
            qform = header.get_qform()
        except (ValueError, nib.spatialimages.HeaderDataError):
            told = True
            yield Remark("quaternion", "has a qform whose quaternion is longer than 1, which turns nothing", follows)
        else:
            apart = distance_in_voxels(qform, affine, (*header.get_data_shape(), 1, 1, 1)[:3])
            if apart > _QUATERNION_VOXELS:
                told = True
                problem = f"has a qform ({_describe(qform)}) that disagrees with its sform ({_describe(affine)})"
                yield Remark("two-affines", problem, follows)
    zooms, edges = np.abs(header["pixdim"][1:4].astype(float))[:axes], np.array(spacing_of(affine))[:axes]
    if not told and not np.allclose(zooms, edges, rtol=_ZOOM, atol=0):
        problem = f"has a pixdim of {_edges(zooms)}, but voxels of {_edges(edges)} by its affine"
        yield Remark("pixdim", problem, "medseg follows the affine; SPM, FSL and ITK may not: make them agree")
    if (tilt := shear_degrees(affine)) > _SHEAR_DEGREES:
        problem = f"has voxels that are sheared by {tilt:.3g} degrees, as a tilted gantry leaves them"
        yield Remark("sheared", problem, "medseg measures them rightly; ITK refuses such files: resample it for those")


def _describe(affine: Affine) -> str:
    return f"{orientation_of(affine)}, {_edges(spacing_of(affine))} mm"


def _edges(lengths: Any) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)
