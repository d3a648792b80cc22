"""Millimetres and voxels: volumes, files, patches, distances. Knows no dataset and no network."""
