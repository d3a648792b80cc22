"""Write PNG pictures with nothing but zlib, so that a report needs no plotting library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from medseg.machine.files import whole


def png_bytes(rgb: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encode an RGB picture as PNG.

    Args:
        rgb: ``(height, width, 3)``, 0 is black.

    Returns:
        The file's content.

    Raises:
        ValueError: If the array is not a non-empty RGB picture of bytes.

    Example:
        >>> png_bytes(np.zeros((2, 3, 3), dtype=np.uint8))[1:4]
        b'PNG'
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise ValueError(f"expected a picture (height, width, 3) of uint8, got {rgb.shape} of {rgb.dtype}")
    height, width, _ = rgb.shape
    unfiltered = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # every line starts with its filter, 0 is none
    unfiltered[:, 1:] = rgb.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress(unfiltered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", lines) + _chunk(b"IEND", b"")


def write_png(path: Path, rgb: UInt8[np.ndarray, "height width 3"]) -> None:
    """Write an RGB picture; it appears whole or not at all.

    Args:
        path: Target; its folder is made if need be.
        rgb: ``(height, width, 3)``, 0 is black.

    Raises:
        ValueError: As `png_bytes`.
        MachineError: It cannot be written.
    """
    content = png_bytes(rgb)
    with whole(path) as partial:
        partial.write_bytes(content)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
