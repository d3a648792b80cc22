"""A whole copy of a dataset that refers to itself: links are followed, paths that led elsewhere are rewritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.datasets.case import read_listing
from medseg.machine.documents import read_document
from medseg.machine.files import write_json

OUTSIDE = "outside"
"""Folder of a copy for the files that the description finds outside of the dataset."""

_PATHS = (
    *("image", "label", "weight", "test_image"),
    *("image_folder", "label_folder", "weight_folder", "test_folder", "images"),
)
_LISTS = ("training", "test", "dataset")


@dataclass(frozen=True)
class Moves:
    """Where the files of a dataset went.

    Attributes:
        root: The folder of the dataset.
        shared: The folder that all files outside of it have in common; None where there are none.
        skipped: What could not be copied, with the reason.
        places: File in the copy -> original.
    """

    root: Path
    shared: Path | None = None
    skipped: tuple[str, ...] = ()
    places: dict[Path, Path] = field(default_factory=dict)

    def of(self, file: Path | None) -> Path | None:
        """Where a file is in the copy, relative to it; None for none."""
        return None if file is None else _within(self.root, file) or self._outside(file)

    def _outside(self, file: Path) -> Path:
        apart = _within(self.shared, file) if self.shared else None
        return Path(OUTSIDE) / (apart or file.name)

    def restore(self, file: Path, copy: Path) -> None:
        """Copy a file once more, as it was."""
        shutil.copyfile(self.places[file], copy / file)


def copy_dataset(root: Path, description: Path, copy: Path) -> Moves:
    """Copy a dataset's folder, and to `OUTSIDE` what its description names beyond it; the paths are rewritten.

    Hidden companions (``._*``), links that lead nowhere or back, and what is no file are left out; rights of the
    originals are not inherited.

    Args:
        root: The folder.
        description: Its ``dataset.json``.
        copy: A folder that does not exist yet.
    """
    skipped: list[str] = []
    places: dict[Path, Path] = {}
    for source in _files_of(root, (os.path.realpath(root),), root, skipped):
        places[source.relative_to(root)] = source
    foreign = [file for file in _listed_files(description) if _within(root, file) is None]
    shared = Path(os.path.commonpath([file.parent for file in foreign])) if foreign else None
    moves = Moves(root, shared, tuple(skipped), places)
    places |= {moves._outside(file): file for file in foreign if file.is_file()}
    copy.mkdir()
    for target, source in places.items():
        (copy / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy / target)
    _rewrite(copy / description.name, moves)
    return moves


def _files_of(folder: Path, above: tuple[str, ...], root: Path, skipped: list[str]) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(root)
        real = os.path.realpath(entry)
        if entry.name.startswith("._"):
            continue
        if not os.path.exists(entry):
            skipped.append(f"{name} (a link that leads nowhere)")
        elif real in above:
            skipped.append(f"{name} (a link to a folder around it)")
        elif not os.access(entry, os.R_OK | os.X_OK if entry.is_dir() else os.R_OK):
            skipped.append(f"{name} (no right to read it)")
        elif entry.is_dir():
            yield from _files_of(entry, (*above, real), root, skipped)
        elif entry.is_file():
            yield entry
        else:
            skipped.append(f"{name} (neither a file nor a folder)")


def _listed_files(description: Path) -> Iterator[Path]:
    listing = read_listing(description)
    for files in (*listing.training, *listing.test):
        for path in files.every:
            yield Path(os.path.abspath(path))


def _within(folder: Path, file: Path) -> Path | None:
    """A file's path relative to a folder that holds it, by name or in truth; None if none does."""
    for base, path in (
        (os.path.abspath(folder), os.path.abspath(file)),
        (os.path.realpath(folder), _real_parent(file)),
    ):
        if Path(path).is_relative_to(base):
            return Path(path).relative_to(base)
    return None


def _real_parent(file: Path) -> str:
    """A path without links but for the last part, which is the name that the copy has."""
    return os.path.join(os.path.realpath(file.parent), file.name)


def _rewrite(description: Path, moves: Moves) -> None:
    content = read_document(description)
    changed = _rewritten(content, moves)
    if changed != content:
        write_json(description, changed)


def _rewritten(content: dict[str, Any], moves: Moves) -> dict[str, Any]:
    """A description whose paths all lead into the copy."""
    out: dict[str, Any] = {}
    for key, value in content.items():
        if key in _LISTS and isinstance(value, dict):
            out[key] = {name: _entry(entry, moves) for name, entry in value.items()}
        elif key in _LISTS and isinstance(value, list):
            out[key] = [_entry(entry, moves) for entry in value]
        elif key == "sources":  # a copy is its own: what the originals say later is nothing to it
            gone = ("description", "digest")
            out[key] = {name: {k: v for k, v in one.items() if k not in gone} for name, one in value.items()}
        else:
            out[key] = _path(value, moves) if key in _PATHS else value
    return out


def _entry(entry: Any, moves: Moves) -> Any:
    if isinstance(entry, dict):
        return {key: _path(value, moves) if key in _PATHS else value for key, value in entry.items()}
    return _path(entry, moves)


def _path(value: Any, moves: Moves) -> Any:
    """A path, a list of them or a pattern, relative to the copy; one that is inside already stays as it is written."""
    if isinstance(value, list):
        return [_path(one, moves) for one in value]
    if not isinstance(value, str) or not value:
        return value
    fixed = value.replace("\\", "/").split("{")[0]
    folder = fixed if fixed == value else fixed[: fixed.rfind("/") + 1]
    place = moves.root / folder
    if not Path(folder).is_absolute() and Path(os.path.abspath(place)).is_relative_to(os.path.abspath(moves.root)):
        return value
    moved = _within(moves.root, place) or Path(OUTSIDE) / (_within(moves.shared or place, place) or "")
    return f"{moved.as_posix()}/{value[len(folder) :]}" if value[len(folder) :] else moved.as_posix()
