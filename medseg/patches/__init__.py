"""Volumes cut into patches for training, and patches stitched back into volumes."""
