"""NRRD, MetaImage and DICOM, written by SimpleITK."""

import locale

import numpy as np

try:
    import SimpleITK as sitk  # noqa: N813
except ImportError:  # the tests that write with it are skipped
    sitk = None


def itk_image(voxels, affine):
    """The image that has the voxel (i, j, k) at the RAS point affine · (i, j, k, 1)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    to_lps = np.diag([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    return image


def write_series(folder, voxels, affine, *, series="1.2.3", leave_out=()):
    folder.mkdir(parents=True, exist_ok=True)
    encoding = locale.setlocale(locale.LC_CTYPE)
    image = itk_image(voxels.astype(np.int16), affine)
    d = image.GetDirection()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in set(range(image.GetSize()[2])) - set(leave_out):
        part = image[:, :, index]
        tags = {
            "0008|0060": "CT",
            "0020|000e": series,
            "0008|0018": f"{series}.{index + 1}",
            "0020|0037": "\\".join(f"{d[n]:.12f}" for n in (0, 3, 6, 1, 4, 7)),
            "0020|0032": "\\".join(f"{x:.9f}" for x in image.TransformIndexToPhysicalPoint((0, 0, index))),
            "0020|0013": str(index),
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03d}{series}.dcm"))
        writer.Execute(part)
    locale.setlocale(locale.LC_CTYPE, encoding)  # GDCM leaves the tests that follow in ASCII
    return folder


def two_series(folder):
    write_series(folder / "a", np.zeros((4, 4, 4)), np.eye(4))
    write_series(folder / "a", np.zeros((4, 4, 4)), np.eye(4), series="1.2.9")
