"""What data a store holds, as a few letters a case: two stores of the same data agree, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set

from medseg.store.store import CaseInfo, Store

_LETTERS = 12  # 48 bits: two of a million cases collide once in 300 such datasets


def identity(store: Store) -> dict[str, str]:
    """Case -> letters that change with its name, its files' content, what their labels cover and how it was prepared.

    Raises:
        DataError: A case is damaged.
    """
    return {case: _letters(store.info(case)) for case in store.ids}


def traces(info: CaseInfo) -> set[str]:
    """Letters per file of a case, which a checkpoint keeps of what it was trained on, however it was prepared."""
    return {trace(info.id, source.digest) for source in info.sources}


def among(known: Set[str], store: Store, cases: Iterable[str]) -> list[str]:
    """Those of some cases of a store of which a file is among the traces that a checkpoint keeps."""
    return [case for case in cases if known & traces(store.info(case))]


def trace(case: str, digest: str) -> str:
    """Letters of a file's content under the name of its case, which they do not tell."""
    return hashlib.sha256(f"{case} {digest}".encode()).hexdigest()[:_LETTERS]


def _letters(info: CaseInfo) -> str:
    said = (info.id, info.patient, info.annotated, info.settings, [source.digest for source in info.sources])
    return hashlib.sha256(repr(said).encode()).hexdigest()[:_LETTERS]
