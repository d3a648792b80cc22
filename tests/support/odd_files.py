"""NIfTI files whose header and numbers are stored in ways that are legal, odd or broken."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def odd_nifti(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray,
    *,
    version: int = 1,
    big_endian: bool = False,
    slope: float = 1.0,
    inter: float = 0.0,
    forms: tuple[int, int] = (1, 1),
    **fields: Any,
) -> Path:
    """Write the numbers as they are, under a header that says what is asked of it.

    Args:
        path: Ends in ``.nii`` or ``.nii.gz``.
        stored: The numbers in the file, before they are scaled.
        affine: Of sform and qform.
        version: Of NIfTI, 1 or 2.
        big_endian: Byte order of header and numbers.
        slope: Scale of the numbers.
        inter: What is added to them.
        forms: Code of the qform and of the sform.
        fields: Further fields of the header, set last.
    """
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=">" if big_endian else "<")
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = len(header.binaryblock) + 4
    header["magic"] = b"n+1" if version == 1 else b"n+2\0\r\n\032\n"
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["qform_code"], header["sform_code"] = forms
    for name, value in fields.items():
        header[name] = value
    order = stored.dtype.newbyteorder(">" if big_endian else "<")
    content = header.binaryblock + bytes(4) + stored.astype(order).tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path
