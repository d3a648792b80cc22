"""The clinic's formats: series of slices, and segmentations as DICOM SEG and RTSTRUCT objects, in and out."""
