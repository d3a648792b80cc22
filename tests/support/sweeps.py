"""The jobs of a sweep without processes of their own, each of which would take ten seconds to import everything."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from medseg.cli import main
from medseg.experiments import trial
from support import FULL


class _Here:
    """Stands for `subprocess.Popen`: the command is done by the time it is waited for, its words are in its log."""

    pid = 2**31 - 1  # of no process, so that no signal reaches one

    def __init__(self, command: list[str], *, stdout: BinaryIO, **options: object) -> None:
        said = io.TextIOWrapper(stdout, encoding="utf-8", write_through=True)
        with redirect_stdout(said), redirect_stderr(said):
            self.status = main(command[len(trial.PROGRAM) :])
        said.detach()

    def wait(self) -> int:
        """The exit status."""
        return self.status


@contextmanager
def jobs_in_this_process() -> Iterator[None]:
    """Jobs are run here; where every test runs in full, in processes as a user's are."""
    with pytest.MonkeyPatch.context() as patch:
        if not FULL:
            stands = SimpleNamespace(Popen=_Here, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
            patch.setattr(trial, "subprocess", stands)
        yield
