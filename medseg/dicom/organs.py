"""What DICOM asks of an organ beside its name: codes of SNOMED CT where it has them, and a colour."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

_SAME = {"tumor": "neoplasm", "tumour": "neoplasm", "cancer": "neoplasm", "l": "left", "r": "right"}
_SIDES = ("left", "right")


@dataclass(frozen=True)
class Organ:
    """An organ as an object in DICOM describes it.

    Attributes:
        name: As the dataset calls it.
        rgb: Its colour, 0 to 255.
    """

    name: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Codes:
    """Codes of pydicom for one organ.

    Attributes:
        category: Anatomical structure, or morphologically abnormal structure.
        kind: What it is.
        side: Left or right, where `kind` does not say so itself.
        region: Where a lesion lies.
    """

    category: Any
    kind: Any
    side: Any = None
    region: Any = None


def codes_of(name: str) -> Codes:
    """Look an organ up by the words of its name in the standard's lists of segmented properties (CID 7151, 7159).

    ``left_kidney`` and ``Kidney (left)`` are the kidney of the left side, ``liver tumour`` a neoplasm of the liver. A
    name that the lists lack gets a code of the scheme ``99MEDSEG``; the standard reserves such for private use.
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    words = [_SAME.get(word, word) for word in _words(name)]
    bare = [word for word in words if word not in _SIDES]
    sides = [getattr(codes.SCT, word.capitalize()) for word in words if word in _SIDES]
    side = sides[0] if len(sides) == 1 else None
    for lesion in bare:
        if kind := _listed(codes.cid7159, [lesion]):
            region = _listed(codes.cid7151, [word for word in bare if word != lesion])
            return Codes(codes.SCT.MorphologicallyAbnormalStructure, kind, side, region)
    if whole := _listed(codes.cid7151, words):
        return Codes(codes.SCT.AnatomicalStructure, whole)
    if kind := _listed(codes.cid7151, bare):
        return Codes(codes.SCT.AnatomicalStructure, kind, side)
    plain = "-".join(_words(name)).encode("ascii", "ignore").decode().strip("-")
    value = plain if 0 < len(plain) <= 16 else f"organ-{zlib.crc32(name.encode()):08x}"
    return Codes(codes.SCT.AnatomicalStructure, Code(value, "99MEDSEG", name[:64]))


def _listed(context: Any, words: list[str]) -> Any:
    """The code of a context group whose keyword these words make, or None."""
    keyword = "".join(word.capitalize() for word in words)
    return getattr(context, keyword) if keyword in context.dir() else None


def _words(name: str) -> list[str]:
    """The words of a name in small letters.

    Example:
        >>> _words("kidneyLeft_2 (cyst)")
        ['kidney', 'left', '2', 'cyst']
    """
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+", name)]
