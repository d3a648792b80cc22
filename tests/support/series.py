"""Series of DICOM slices as a scanner writes them, by pydicom."""

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STUDY, FRAME = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


def write_ct(folder, voxels, affine, *, number=4, description="portal venous", leave_out=(), backwards=False, **tags):
    """One file per slice of ``voxels`` (column, row, slice), which lie where ``affine`` (to RAS+ mm) says."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = tags.pop("SeriesInstanceUID", generate_uid(entropy_srcs=[str(folder), str(number)]))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    along = lps[:3, :3] / spacing
    slices = [index for index in range(voxels.shape[2]) if index not in leave_out]
    for place, index in enumerate(reversed(slices) if backwards else slices):
        one = pydicom.Dataset()
        one.SpecificCharacterSet, one.ImageType = "ISO_IR 192", ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[uid, str(index)])
        one.StudyDate = one.SeriesDate = one.AcquisitionDate = one.ContentDate = "20260102"
        one.StudyTime = one.SeriesTime = one.AcquisitionTime = one.ContentTime = "101112"
        one.AccessionNumber, one.Modality, one.Manufacturer, one.ReferringPhysicianName = "7", "CT", "Maker", ""
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Doe^Zoë", "P1", "19700101", "O"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = STUDY, uid, FRAME
        one.StudyID, one.SeriesNumber, one.SeriesDescription, one.AcquisitionNumber = "1", number, description, 1
        one.PositionReferenceIndicator, one.PatientPosition, one.KVP, one.InstanceNumber = "", "HFS", "120", place + 1
        one.ImagePositionPatient = [f"{x:.10g}"[:16] for x in (lps @ [0, 0, index, 1])[:3]]
        one.ImageOrientationPatient = [f"{x:.12f}"[:16] for x in [*along[:, 0], *along[:, 1]]]
        one.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        one.SliceThickness = f"{spacing[2]:.10g}"
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 1
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.RescaleIntercept, one.RescaleSlope, one.RescaleType = "0", "1", "HU"
        plane = np.ascontiguousarray(voxels[:, :, index].T.astype("<i2"))
        one.Rows, one.Columns, one.PixelData = *plane.shape, plane.tobytes()
        one["PixelData"].VR = "OW"
        for key, value in tags.items():
            setattr(one, key, value(index) if callable(value) else value)
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{number:03d}_{place:04d}.dcm", one, enforce_file_format=True)
    return folder
