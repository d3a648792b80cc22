"""What a folder of predictions was made of, so that a second call goes on where the first one stopped."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import medseg
from medseg.machine.files import parse_json, read_json, write_json
from medseg.space.reading import parts_of

MANIFEST = "predictions.json"
JOURNAL = ".predictions.jsonl"


class Record:
    """The manifest of an output folder: for every case, what it was made from and with.

    A case is done when its files are there and as large as they were written, its images have the size and time they
    had, and the checkpoints and the options are the same. Every case adds a line to a journal, which the manifest takes
    up at the end, or the next time after a kill: so the ten thousandth case costs what the first did.

    Args:
        folder: The output folder.
        settings: Everything but the images that decides a prediction; any plain data.
        checkpoints: Their paths, for the reader's information.
    """

    def __init__(self, folder: Path, settings: Any, *, checkpoints: Iterable[Path] = ()) -> None:
        self.path, self._journal = folder / MANIFEST, folder / JOURNAL
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.checkpoints = [str(path) for path in checkpoints]
        self.cases: dict[str, Any] = _read(self.path) | _read_journal(self._journal)
        self._lock = threading.Lock()

    def done(self, case: str, sources: Iterable[Path], outputs: Iterable[Path]) -> bool:
        """Whether the case need not be predicted again."""
        known = self.cases.get(case)
        if not isinstance(known, dict) or {**known, "outputs": None} != {**self._entry(sources), "outputs": None}:
            return False
        written = known.get("outputs")
        return isinstance(written, dict) and all(written.get(name) == size for name, size in _sizes(outputs).items())

    def add(self, case: str, sources: Iterable[Path], outputs: Iterable[Path]) -> None:
        """Note that the case is written."""
        with self._lock:
            self.cases[case] = {**self._entry(sources), "outputs": _sizes(outputs)}
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps([case, self.cases[case]]) + "\n")

    def close(self) -> None:
        """Take the journal up into the manifest, if there is anything in it."""
        with self._lock:
            if self._journal.is_file():
                content = {"medseg": medseg.__version__, "checkpoints": self.checkpoints, "cases": self.cases}
                write_json(self.path, content)
                self._journal.unlink()

    def _entry(self, sources: Iterable[Path]) -> dict[str, Any]:
        files = [file for path in sources for file in parts_of(path)]
        states = [(os.path.realpath(file), file.stat()) for file in files if file.is_file()]
        return {
            "settings": self.settings,
            "sources": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
        }


def _sizes(outputs: Iterable[Path]) -> dict[str, int]:
    """Name -> bytes; -1, which no manifest holds, where there is no such file."""
    return {path.name: path.stat().st_size if path.is_file() else -1 for path in outputs}


def _read(path: Path) -> dict[str, Any]:
    """The cases of a manifest; none where it is missing or damaged, for then everything is predicted anew."""
    try:
        cases = read_json(path)["cases"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return cases if isinstance(cases, dict) else {}


def _read_journal(path: Path) -> dict[str, Any]:
    """The cases of a journal as far as it is whole: its last line may have been cut off by a kill."""
    cases = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            case, entry = parse_json(line)
            cases[case] = entry
    except (OSError, ValueError, TypeError):
        pass
    return cases
