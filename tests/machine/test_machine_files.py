"""Files appear whole or not at all; a lock keeps others out and dies with its process."""

import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from medseg.errors import DataError, MachineError
from medseg.machine import files
from medseg.machine.files import digest_of, locked, require_writable, scratch, sweep, whole, write_json, write_text


def write_half_and(path, failure):
    path.write_text("half")
    raise failure


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_folder_appear_when_the_block_ends(tmp_path):
    with whole(tmp_path / "new" / "case.nii.gz") as partial:
        partial.write_bytes(b"voxels")
        assert partial.name.endswith(".nii.gz")
        assert not (tmp_path / "new" / "case.nii.gz").exists()
    with whole(tmp_path / "new" / "case") as partial:
        partial.mkdir()
        (partial / "info").write_text("")
    assert names(tmp_path / "new") == ["case", "case.nii.gz"]


@pytest.mark.parametrize("length", [1, 12, 13, 255])
def test_any_name_that_a_file_may_have_is_written(tmp_path, length):
    for letter in ("a", "ä"):
        name = letter * (length // len(letter.encode())) or "a"
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        (
            OSError(28, "No space left on device"),
            MachineError,
            "x cannot be written (No space left on device); what",
        ),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), MachineError, "could not be written to its end"),
        (RuntimeError("of another kind"), RuntimeError, "of another kind"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, failure, raised, said):
    write_text(tmp_path / "x", "before")
    with pytest.raises(raised, match=re.escape(said)), whole(tmp_path / "x") as partial:
        write_half_and(partial, failure)
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "before"


def test_what_cannot_be_forced_to_the_disk_or_renamed_is_not_there(tmp_path, monkeypatch):
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(MachineError, match=r"\(Input/output error\)\. Move it\."):
                write_json(tmp_path / "x", {}, remedy="Move it")
        assert names(tmp_path) == []
    with pytest.raises(MachineError, match="cannot be written"):
        write_json(tmp_path / "x" / "y" / "z", {}) if not write_text(tmp_path / "x", "") else None
    (tmp_path / "full" / "of").mkdir(parents=True)
    with pytest.raises(MachineError, match="full cannot be written"), whole(tmp_path / "full") as partial:
        partial.mkdir()


def test_files_are_as_open_to_others_as_the_user_wishes(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    here = socket.gethostname()[:40]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [f".partial-{os.getpid()}-7@{here}-a.nii", ".partial-1-2@another-host-b", ".partial-notes", ".x"]
    for name in (*kept, f".partial-{ended.pid}-0@{here}-c", ".partial-1-2@another-host-old"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".partial-1-2@another-host-old", (0, 0))
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_processes_of_other_users_are_alive(monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert files._alive(1)


def test_scratch_is_gone_whatever_happens(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch(tmp_path / "out") as folder:
        write_half_and(folder / "maps", ZeroDivisionError())
    assert names(tmp_path / "out") == []


def test_who_comes_second_waits_or_is_told(tmp_path):
    order = []

    def wait_for_it():
        with locked(tmp_path / "lock", on_wait=lambda: order.append("waits")):
            order.append("has it")

    with locked(tmp_path / "lock"):
        with pytest.raises(DataError, match="is being worked in by another process"), locked(tmp_path / "lock"):
            pass
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("lets go")
    thread.join()
    assert order == ["waits", "lets go", "has it"]


def test_a_system_without_locks_lets_everyone_go_on(tmp_path, monkeypatch):
    for failure in (NotImplementedError, OSError(37, "No locks available")):
        monkeypatch.setattr(files.FileLock, "acquire", lambda *_, failure=failure, **__: (_ for _ in ()).throw(failure))
        with locked(tmp_path / "lock"), locked(tmp_path / "lock"):
            pass
    with pytest.raises(MachineError, match="cannot be written"), locked(tmp_path / "nowhere" / "lock"):
        pass


def test_whether_a_folder_can_be_written_is_found_out_without_making_it(tmp_path):
    require_writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MachineError, match=r"cannot be written to .* Elsewhere"):
            require_writable(place, remedy="Elsewhere")
    assert names(tmp_path) == ["file"]


def test_copies_share_their_digest(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b") != digest_of(tmp_path / "c")
    assert digest_of(tmp_path / "a", "md5") == "c4ca4238a0b923820dcc509a6f75849b"
