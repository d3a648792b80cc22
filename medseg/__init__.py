"""medseg: train, predict and evaluate 3D segmentation networks on NIfTI volumes.

Importing this package is cheap: what it offers is listed in ``__init__.pyi`` and loaded, with torch, when it is first
asked for.

Example:
    >>> import medseg
    >>> "dice" in medseg.list_losses()
    True
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
