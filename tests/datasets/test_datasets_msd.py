"""The ten tasks, and fetching them: resumed, checked, unpacked without trust, from a server of our own."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from monai.apps import DecathlonDataset

from medseg.datasets import download as download_module
from medseg.datasets.case import read_dataset
from medseg.datasets.download import download
from medseg.datasets.msd import MIRROR, TASKS, MsdTask, find_task
from medseg.errors import DataError, UsageError


def test_the_table_names_the_archives_that_monai_publishes():
    assert {task.name: task.md5 for task in TASKS.values()} == DecathlonDataset.md5
    assert {task.name: f"{MIRROR}/{task.archive}" for task in TASKS.values()} == DecathlonDataset.resource


def test_the_table_agrees_with_a_dataset_that_was_downloaded():
    folder = Path(__file__).parents[2] / "../shared/data/Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip("the Hippocampus task is not beside the checkout")
    dataset = read_dataset(folder)
    assert TASKS["Task04_Hippocampus"].labels == dataset.labels
    assert TASKS["Task04_Hippocampus"].modalities == dataset.modalities


@pytest.mark.parametrize("name", ["Task01_BrainTumour", "task01_braintumour", "BrainTumour", "1", "01"])
def test_a_task_has_several_spellings(name):
    assert find_task(name).name == "Task01_BrainTumour"


def test_a_misspelt_task_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'Task09_Spleen'"):
        find_task("Task09_Spleeen")
    with pytest.raises(UsageError, match="Choose from Task01_BrainTumour"):
        find_task("???")


class Server(ThreadingHTTPServer):
    """Serves one file and misbehaves on demand."""

    content = b""
    cut_after: list[int]  # how much each of the next replies delivers before the connection closes
    stalls = False  # the connection stays open when the reply was cut
    status: list[int]  # what the next replies answer instead of the file
    ignores_ranges = False
    ranges: list[str]
    replying: threading.Event
    may_reply: threading.Event  # the reply waits for it after its head


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range", "")
        server.ranges.append(wanted)
        if server.status:
            self.send_error(server.status.pop(0))
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and not server.ignores_ranges else 0
        if start and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        server.replying.set()
        server.may_reply.wait(60)
        cut = bool(server.cut_after)
        self.wfile.write(body[: server.cut_after.pop(0)] if cut else body)
        if cut and server.stalls:
            self.wfile.flush()
            time.sleep(2)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    http = Server(("127.0.0.1", 0), Handler)
    http.cut_after, http.status, http.ranges = [], [], []
    http.replying, http.may_reply = threading.Event(), threading.Event()
    http.may_reply.set()
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def archive_of(folder: Path, name: str, *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, arcname=name)
        ghost = tarfile.TarInfo(f"{name}/imagesTr/._toy_0.nii.gz")
        tar.addfile(ghost)
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def toy_task(server: Server, content: bytes) -> MsdTask:
    server.content = content
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return MsdTask("Task99_Toy", digest, ("CT",), {"liver": 1, "spleen": 5}, 4, (1.5, 1.5, 4.0), (24, 20, 12))


def fetch(task: MsdTask, root: Path, server: Server, **options) -> Path:
    options = {"attempts": 2, "pause_s": 0.01} | options
    return download(task, root, mirror=f"http://127.0.0.1:{server.server_port}", **options)


def test_an_archive_becomes_a_dataset(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    folder = fetch(task, tmp_path / "raw", server)
    assert folder == tmp_path / "raw/Task99_Toy"
    assert read_dataset(folder).labels == task.labels
    assert [path.name for path in (tmp_path / "raw").glob("[!.]*")] == ["Task99_Toy"]
    assert not list(folder.rglob("._*"))
    assert fetch(task, tmp_path / "raw", server) == folder
    assert len(server.ranges) == 1


def test_a_broken_connection_is_continued(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.cut_after = [10_000, 5_000]
    fetch(task, tmp_path, server)
    assert server.ranges == ["", "bytes=10000-", "bytes=15000-"]


def test_a_connection_that_stalls_loses_nothing(server, toy_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.datasets.download._TIMEOUT_S", 0.3)
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.cut_after, server.stalls = [10_000], True
    fetch(task, tmp_path, server)
    assert server.ranges == ["", "bytes=10000-"]


def test_what_was_fetched_survives_a_server_that_is_gone(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.cut_after = [10_000, 0, 0]
    with pytest.raises(DataError, match=r"10,000 bytes are kept in .*continues there"):
        fetch(task, tmp_path, server)
    fetch(task, tmp_path, server)
    assert server.ranges[-1] == "bytes=10000-"


@pytest.mark.parametrize("extra", [b"", b"more than there should be"])
def test_a_part_that_is_complete_or_too_long(server, toy_dataset, tmp_path, extra):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    (tmp_path / "Task99_Toy.tar.part").write_bytes(server.content + extra)
    assert (fetch(task, tmp_path, server) / "dataset.json").is_file()


def test_a_server_that_cannot_continue_starts_over(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.ignores_ranges = True
    (tmp_path / "Task99_Toy.tar.part").write_bytes(b"rubbish")
    assert (fetch(task, tmp_path, server) / "dataset.json").is_file()


def test_a_server_that_is_busy_is_asked_again(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.status = [503]
    assert (fetch(task, tmp_path, server) / "dataset.json").is_file()


def test_a_server_that_refuses_is_not(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.status = [404]
    with pytest.raises(DataError, match=r"refused \(404"):
        fetch(task, tmp_path, server)
    assert len(server.ranges) == 1


def test_nobody_there(tmp_path):
    with pytest.raises(DataError, match="cannot be fetched"):
        download("Spleen", tmp_path, mirror="http://127.0.0.1:9", attempts=1, pause_s=0.0)


def test_a_wrong_checksum_is_not_unpacked(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.content = server.content[:-1] + b"!"
    with pytest.raises(DataError, match="MD5 sum"):
        fetch(task, tmp_path, server)
    assert not (tmp_path / "Task99_Toy").exists()
    assert not (tmp_path / "Task99_Toy.tar.part").exists()


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"Task99_Toy/{name}")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (tarfile.TarInfo("../evil.txt"), "outside the destination"),
        (tarfile.TarInfo("Task99_Toy/../../evil.txt"), "outside the destination"),
        (link("door"), "is a special file"),
    ],
)
def test_an_archive_is_not_trusted(server, toy_dataset, tmp_path, member, words):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy", member))
    with pytest.raises(DataError, match=words):
        fetch(task, tmp_path / "raw", server)
    assert [path.name for path in (tmp_path / "raw").glob("[!.]*")] == ["Task99_Toy.tar.part"]
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"not a tar", r"is not a readable archive \([^:]+\)"), (b"\0" * 10240, "holds no Task99_Toy/dataset")],
)
def test_an_archive_of_something_else(server, tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        fetch(toy_task(server, content), tmp_path, server)


def test_a_folder_that_is_in_the_way(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    (tmp_path / "raw/Task99_Toy").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no dataset\.json"):
        fetch(task, tmp_path / "raw", server)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot take"):
        fetch(task, tmp_path / "file/raw", server)


def test_a_disk_that_is_too_small(server, toy_dataset, tmp_path, monkeypatch):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"0\.0 GB free"):
        fetch(task, tmp_path, server)


def test_two_that_want_the_same_fetch_it_once(server, toy_dataset, tmp_path, monkeypatch, capsys):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    server.may_reply.clear()
    found, say, told = [], download_module._say_waiting, threading.Event()
    monkeypatch.setattr(download_module, "_say_waiting", lambda target: (say(target), told.set()))

    def fetch_it():
        found.append(fetch(task, tmp_path / "raw", server))

    first, second = threading.Thread(target=fetch_it), threading.Thread(target=fetch_it)
    first.start()
    assert server.replying.wait(60)
    second.start()
    assert told.wait(60)
    server.may_reply.set()
    first.join()
    second.join()
    assert found == [tmp_path / "raw" / "Task99_Toy"] * 2
    assert server.ranges == [""]
    assert [path.name for path in (tmp_path / "raw").glob("[!.]*")] == ["Task99_Toy"]
    assert "Task99_Toy is being downloaded by another process; waiting for it" in capsys.readouterr().err


def test_a_killed_process_holds_nobody_up(server, toy_dataset, tmp_path):
    task = toy_task(server, archive_of(toy_dataset, "Task99_Toy"))
    lock = tmp_path / f".{task.archive}.lock"
    hold = f"""
import time
from pathlib import Path
from medseg.machine.files import locked
with locked(Path({str(lock)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert lock.exists()
    assert (fetch(task, tmp_path, server) / "dataset.json").is_file()
    assert [path.name for path in tmp_path.glob("Task*")] == ["Task99_Toy"]
