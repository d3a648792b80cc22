"""NRRD and MetaImage files whose voxels are stored anew, while every line of the header that is not about that stays.

SimpleITK would write headers anew: it turns the space of a NRRD to LPS, spoils its measurement frame, drops its units
and the remarks of a MetaImage (tried with 2.5). See teem.sourceforge.net/nrrd/format.html; itk.org/Wiki/MetaIO.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.machine.files import whole

IN_ONE_FILE = (".nrrd", ".mha")
"""Endings of the files that can be rewritten: those of header and voxels in one."""

_META_TYPES = {
    **{"int8": "MET_CHAR", "uint8": "MET_UCHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT", "int32": "MET_INT"},
    **{"uint32": "MET_UINT", "int64": "MET_LONG_LONG", "uint64": "MET_ULONG_LONG"},
}
_PACKED: dict[str, Callable[[bytes], bytes]] = {
    **{"raw": bytes, "gzip": gzip.compress, "gz": gzip.compress, "false": bytes, "true": zlib.compress}
}


def with_integers(path: Path, labels: NDArray[Any]) -> None:
    """Store the labels of a file anew.

    Args:
        path: A NRRD or MetaImage file with one channel.
        labels: ``(i, j, k)``, of the type to store them in.

    Raises:
        DataError: Its voxels are in another file, or packed in another way than raw or with deflate.
    """
    nrrd = path.suffix == ".nrrd"
    end = rb"\r?\n\r?\n" if nrrd else rb"\nElementDataFile\s*=\s*LOCAL\r?\n"
    parts = re.split(f"({end.decode()})".encode(), path.read_bytes(), maxsplit=1)
    header = parts[0].decode("latin-1")
    packing = _field(header, "encoding" if nrrd else "CompressedData").casefold() or "false"
    if len(parts) != 3 or packing not in _PACKED or _field(header, "data ?file") or _field(header, "(line|byte) skip"):
        raise DataError(path, "does not hold its voxels raw or packed by deflate", "Export it as .nii.gz")
    voxels = _PACKED[packing](labels.astype(labels.dtype.newbyteorder("<")).tobytes(order="F"))
    new = {"type": labels.dtype.name, "endian": "little"}
    if not nrrd:
        little = dict.fromkeys(("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), "False")
        new = {"ElementType": _META_TYPES[labels.dtype.name], "CompressedDataSize": str(len(voxels)), **little}
    with whole(path) as partial:
        partial.write_bytes(_replaced(header, new).encode("latin-1") + parts[1] + voxels)


def _field(header: str, name: str) -> str:
    found = re.search(rf"^{name}\s*[:=](?!=)[ \t]*(.*?)\r?$", header, re.MULTILINE | re.IGNORECASE)
    return found[found.lastindex or 0].strip() if found else ""


def _replaced(header: str, fields: Mapping[str, str]) -> str:
    for name, value in fields.items():
        header = re.sub(rf"^({name}\s*[:=](?!=)[ \t]*).*?(\r?)$", rf"\g<1>{value}\2", header, flags=re.M | re.I)
    return header
