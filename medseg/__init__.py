"""medseg: train, predict and evaluate 3D segmentation networks on NIfTI volumes.

Importing this package is cheap: torch, monai and lightning are loaded by the rooms that need them.
"""

__version__ = "0.1.0"
