"""One array per file, chunked and compressed, so that a patch is read without its volume."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError

try:
    import blosc2
except ImportError:  # a platform without it: plain memory-mapped files, larger but as quick to read
    blosc2 = None

ENDINGS = (".b2nd", ".npy")
BLOCK = 32  # voxels along the edge of what is decompressed at once, at most: fits a core's own cache
MANTISSA_BITS = 12  # kept of 23: values exact to one part in 8,000, far below any scanner's noise, at half the size


_LENGTH = slice(11, 15)  # of a frame of blosc2: the bytes of its head, which names what it holds beside numbers
_RECIPES = (b"\xa9LazyArray", b"\xacproxy-source", b"\xa3b2o")


@runtime_checkable
class LazyArray(Protocol):
    """What numpy slicing reads from disk, and nothing more."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""

    def __getitem__(self, index: Any, /) -> Any:
        """Read a part into memory."""


def write_array(folder: Path, name: str, array: NDArray[Any], *, patch: Sequence[int]) -> Path:
    """Write an array into a folder; a chunk is about a patch of the last three axes.

    Args:
        folder: Exists.
        name: Without ending.
        array: Floating point (kept to 12 bits of mantissa) or integers (kept exactly).
        patch: Voxels of the patches it will be read by.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written.
    """
    if blosc2 is None:
        path = folder / f"{name}.npy"
        np.save(path, array)
        return path
    path = folder / f"{name}.b2nd"
    leading = array.shape[:-3]
    chunks = [*leading, *(max(1, min(size, edge)) for size, edge in zip(patch, array.shape[-3:], strict=True))]
    blocks = [*(1 for _ in leading), *(ceil(chunk / ceil(chunk / BLOCK)) for chunk in chunks[-3:])]
    plain, settings = np.ascontiguousarray(array), _cparams(array)
    try:
        blosc2.asarray(plain, urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams=settings)
    except RuntimeError as error:  # its answer to a full disk, without saying so
        full = shutil.disk_usage(folder).free < 1 << 20
        raise OSError(errno.ENOSPC if full else errno.EIO, "the disk is full" if full else str(error)) from None
    return path


def open_array(folder: Path, name: str) -> LazyArray:
    """Open what `write_array` wrote, without reading its voxels.

    Raises:
        DataError: It is missing or damaged.
    """
    path = next((folder / f"{name}{ending}" for ending in ENDINGS if (folder / f"{name}{ending}").is_file()), None)
    if path is None:
        raise DataError(folder, f"holds no {name}", "Run medseg prepare again")
    try:
        if path.suffix == ".npy":
            mapped: LazyArray = np.load(path, mmap_mode="r")
            return mapped
        if blosc2 is None:
            raise DataError(path, "needs the package blosc2, which is not installed", "pip install blosc2")
        _require_numbers(path)
        opened: LazyArray = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        return opened
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        raise DataError(path, f"is damaged ({error})", f"Delete {folder} and run medseg prepare again") from None


def _require_numbers(path: Path) -> None:
    """Refuse a file of blosc2 that says how to compute its numbers, which older versions of it would run."""
    with path.open("rb") as file:
        head = file.read(_LENGTH.stop)
        head += file.read(int.from_bytes(head[_LENGTH], "big"))
    if any(recipe in head for recipe in _RECIPES):
        raise ValueError("it holds a recipe and no numbers")


def _cparams(array: NDArray[Any]) -> dict[str, Any]:
    bits = blosc2.Filter.BITSHUFFLE
    if np.issubdtype(array.dtype, np.floating):
        filters, meta = [blosc2.Filter.TRUNC_PREC, bits], [MANTISSA_BITS, 0]
    else:
        filters, meta = [bits], [0]
    return {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": filters, "filters_meta": meta, "nthreads": 1}
