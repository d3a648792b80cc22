"""One training of a sweep and its test: a run folder whose files say how far it has come."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from medseg.checkpoints.run import Run
from medseg.errors import DataError, UsageError
from medseg.experiments.data import JobData
from medseg.machine.files import digest_of, locked, read_json, write_json

RECORD, LOG, LOCK = "job.json", "log.txt", "sweep.lock"


class State(Enum):
    """How far a run folder has come."""

    NEW = "waiting"
    INTERRUPTED = "interrupted"
    TRAINED = "trained"
    DONE = "done"


@dataclass(frozen=True)
class Job:
    """A training and its test.

    Attributes:
        title: What tables and plots call it.
        run: Its folder.
        words: What follows ``medseg fit``, the folder left out.
        facts: What tells it from the others, such as its loss.
        data: What it trains and is tested on; None notes nothing.
    """

    title: str
    run: Path
    words: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    data: JobData | None = None

    @property
    def compared(self) -> str:
        """What it is one training of: its title without the seed."""
        return self.title.removesuffix(seeded("", self.facts.get("seed", "")))

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.run / LOG

    def read_state(self) -> State:
        """How far it has come, read from its folder."""
        if Run(self.run).test.summary.is_file():
            return State.DONE
        if _read(self.run).get("trained"):
            return State.TRAINED
        return State.INTERRUPTED if Run(self.run).last.is_file() else State.NEW

    def claim(self) -> bool:
        """Make the folder this job's, or find that it is.

        Returns:
            Whether it is known what data its training was made of.

        Raises:
            UsageError: It holds a run of other settings.
            DataError: It holds a run on other data, or cannot be written to.
        """
        known = _read(self.run)
        if known and known.get("request") != self._request():
            raise UsageError(
                f"{self.run} holds a run of other settings ({_difference(known['request'], self._request())})",
                "Choose another --output, or remove that folder",
            )
        if not known and self.run.exists() and any(self.run.iterdir()):
            raise UsageError(f"{self.run} holds something that is no part of a sweep", "Choose another --output")
        if self.read_state() is not State.NEW:
            return self._require_same_data(known.get("data"))
        now = None if self.data is None else asdict(self.data)
        if not known:
            self._write(now)
        elif known.get("data") != now:
            with locked(self.run / LOCK):  # whoever works there trains on what is noted
                self._write(now)
        return True

    def _require_same_data(self, noted: Mapping[str, Any] | None) -> bool:
        if noted is None or self.data is None:
            return False
        try:
            change = JobData(**noted).differs(self.data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(self.run / RECORD, f"cannot be read ({error})", "Remove that folder") from None
        if change:
            raise DataError(
                self.run,
                f"was trained on other data: {change} since",
                "Remove that folder to train it again, or choose another --output",
            )
        return True

    def clear(self) -> None:
        """Remove what a training left that did not come as far as a checkpoint.

        Raises:
            DataError: It goes on: the process of a sweep that was killed lives on.
        """
        lock = Run(self.run).lock
        with locked(lock):
            for path in self.run.iterdir():
                if path.name not in (RECORD, LOG, LOCK, lock.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def mark_trained(self) -> None:
        """Note that only the test is left to do."""
        self._write(_read(self.run).get("data"), trained=True)

    def _write(self, data: Mapping[str, Any] | None, *, trained: bool = False) -> None:
        record = {"title": self.title, **self.facts, "request": self._request(), "data": data, "trained": trained}
        write_json(self.run / RECORD, record, remedy="Choose another --output")

    def _request(self) -> list[str]:
        """The words, each config by its content: an edited file is another request.

        Raises:
            DataError: A config cannot be read.
        """
        try:
            return [
                f"config {digest_of(Path(word), 'sha256')[:12]}" if before == "--config" else word
                for before, word in zip(("", *self.words), self.words, strict=False)
            ]
        except OSError as error:
            remedy = "Check the path of the config"
            raise DataError(error.filename, f"cannot be read ({error.strerror})", remedy) from None


def seeded(title: str, seed: str) -> str:
    """The title of the training of one seed.

    Example:
        >>> seeded("dice", "1"), seeded("dice", "")
        ('dice · seed 1', 'dice')
    """
    return f"{title} · seed {seed}" if seed else title


def _read(run: Path) -> dict[str, Any]:
    path = run / RECORD
    try:
        record = read_json(path)
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise DataError(run, "cannot be made: a part of this path is a file", "Choose another --output") from None
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})", "Remove the folder; its training starts again") from None
    if not isinstance(record, dict) or not isinstance(record.get("request"), list):
        raise DataError(path, "was not written by a sweep", "Choose another --output")
    return record


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """The first words that differ, for a sentence."""
    for there, here in zip(theirs, ours, strict=False):
        if there != here:
            return f"{there} there, {here} now"
    longer, whose = (theirs, "there") if len(theirs) > len(ours) else (ours, "now")
    return f"{' '.join(longer[min(len(theirs), len(ours)) :])} only {whose}"
