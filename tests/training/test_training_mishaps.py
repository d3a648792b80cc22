"""A run on a machine or a config that cannot: full disk, no memory, no GPU, other labels; a sentence, nothing lost."""

import copy
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from support.runs import fit, load, rows

from medseg.checkpoints.origin import commit, differences, flat, origin
from medseg.checkpoints.run import Run
from medseg.cli import main
from medseg.errors import CheckpointError, DataError
from medseg.machine.hardware import memory_bytes
from medseg.plan.plan import Plan, read_plan
from medseg.store.store import Store
from medseg.training import log
from medseg.training.failures import MemoryShortError, explained, require_memory
from medseg.training.keep import CheckpointFiles
from medseg.training.log import RunLog, forget_steps
from medseg.training.task import SegmentationTask

FOUR, EIGHT = ["--trainer.max_steps", "4"], ["--trainer.max_steps", "8"]


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Four steps that nobody may change."""
    folder = tmp_path_factory.mktemp("mishaps") / "run"
    assert fit(store, folder, *FOUR) == 0
    return folder


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

SMALL_DISK = """
import resource, sys, torch
from pathlib import Path
from medseg.training.keep import CheckpointFiles
from medseg.errors import MachineError
path = Path(sys.argv[1]) / "last.ckpt"
CheckpointFiles().save_checkpoint({"medseg": {}, "state_dict": {}, "weights": torch.zeros(3)}, path)
for size in (0, 100, 5_000, 60_000, 390_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        CheckpointFiles().save_checkpoint({"medseg": {}, "state_dict": {}, "weights": torch.zeros(100_000)}, path)
    except MachineError as error:
        print(error)
    assert CheckpointFiles().load_checkpoint(path)["weights"].shape == (3,)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
"""


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_byte_leaves_the_checkpoint_of_before(tmp_path):
    """In a process of its own, whose files the system does not let grow: its answer is that of a full disk."""
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be written (File too large); what it held before is whole") == 5


@pytest.mark.slow
def test_a_training_on_a_full_disk_ends_in_a_sentence_and_goes_on_later(store, run, tmp_path, monkeypatch, capsys):
    mine = shutil.copytree(run, tmp_path / "run")
    step = load(mine / "checkpoints" / "last.ckpt")["global_step"]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", Mock(side_effect=FULL))
        assert fit(store, mine, *EIGHT, "--ckpt_path", "last") == 1
    message = capsys.readouterr().err
    assert "cannot be written (No space left on device); what it held before is whole" in message
    assert "Traceback" not in message
    assert load(mine / "checkpoints" / "last.ckpt")["global_step"] == step
    assert fit(store, mine, *EIGHT, "--ckpt_path", "last") == 0


def test_a_full_disk_leaves_the_log_of_before(tmp_path, monkeypatch):
    def half(self, rows):
        self.writer.writerow(["0.1"])
        raise FULL

    logger = RunLog(Run(tmp_path))
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    before = (tmp_path / "metrics.csv").read_text()
    monkeypatch.setattr(log.csv.DictWriter, "writerows", half)
    for metrics in ({"loss": 2.0}, {"dice": 0.5}):  # appended, and written anew for its column
        logger.log_metrics(metrics, step=1)
        with pytest.raises(DataError, match=r"metrics.csv cannot be written .*what it held before is whole"):
            logger.save()
        assert (tmp_path / "metrics.csv").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_report_on_a_full_disk_leaves_the_one_of_before(store, run, tmp_path, monkeypatch, capsys):
    mine = shutil.copytree(run, tmp_path / "run")
    assert main(["test", "--run", str(mine)]) == 0
    before = {path: path.read_bytes() for path in (mine / "report.html", mine / "test" / "summary.json")}
    monkeypatch.setattr("os.replace", Mock(side_effect=FULL))
    assert main(["test", "--run", str(mine)]) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "Traceback" not in message
    assert {path: path.read_bytes() for path in before} == before


def test_the_log_forgets_the_steps_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("loss,step\n1.0,0\n0.9,1\n0.8,2\n0.")
    forget_steps(path, since=2)
    assert path.read_text().split() == ["loss,step", "1.0,0", "0.9,1"]
    forget_steps(tmp_path / "none.csv", since=2)


def test_last_begins_anew_where_there_is_nothing_and_takes_best_where_that_is_all(store, run, tmp_path, caplog):
    mine = shutil.copytree(run, tmp_path / "run")
    (mine / "checkpoints" / "last.ckpt").unlink()
    assert fit(store, mine, *FOUR, "--ckpt_path", "last") == 0
    assert "goes on after step" in caplog.text
    shutil.rmtree(mine / "checkpoints")
    assert fit(store, mine, *FOUR, "--ckpt_path", "last") == 0
    assert "holds no checkpoint yet: training begins with the first step" in caplog.text
    assert len(rows(mine)) == len(rows(run))


def test_a_resumed_run_says_what_is_not_as_it_was(store, run, tmp_path, capsys):
    mine = shutil.copytree(run, tmp_path / "run")
    words = ["--model.lr", "0.02", "--data.batch_size", "1", "--ckpt_path", "last"]
    with pytest.warns(UserWarning, match=r"under other circumstances.*plan has another batch_size.*model.lr was 0.01"):
        assert fit(store, mine, *EIGHT, *words) == 0
    assert main(["info", str(mine / "checkpoints" / "last.ckpt")]) == 0
    told = capsys.readouterr().out
    assert "4 cases, of which fold 0 was held back from training, fingerprint" in told
    assert f"torch {torch.__version__.split('+')[0]}" in told


def test_the_same_run_goes_on_without_a_word(store, run, tmp_path, recwarn):
    mine = shutil.copytree(run, tmp_path / "run")
    assert fit(store, mine, *EIGHT, "--ckpt_path", "last") == 0
    assert not [warning for warning in recwarn if "circumstances" in str(warning.message)]


def test_differences_name_cases_and_versions():
    ours = origin({"patch_size": [1, 2, 3]}, config={"model": {"lr": 0.1}, "run": "a"}, cases={"a": "x", "b": "y"})
    theirs = origin({"patch_size": [1, 2, 3]}, config={"model": {"lr": 0.1}, "run": "b"}, cases={"a": "x", "c": "z"})
    assert differences(ours, ours, {"a": "x", "b": "y"}) == []
    assert differences(theirs, ours, {"a": "x", "b": "y"}) == [
        "of the data, 1 of 2 cases are new or changed (b) and 1 of before are gone"
    ]
    theirs["packages"] = {**ours["packages"], "torch": "1.0"}
    assert any("torch was 1.0 and is" in told for told in differences(theirs, ours, {"a": "x", "b": "y"}))
    theirs, at = copy.deepcopy(ours), "0123456789ab" + 28 * "c"
    for was, is_now, told in [
        (at, f"{at}-dirty", ["medseg was at commit 0123456789ab and is at 0123456789ab-dirty"]),
        (at, "", ["medseg was at commit 0123456789ab and is at none"]),
        ("", at, []),
        (at, at, []),
    ]:
        theirs["commits"]["medseg"], ours["commits"]["medseg"] = was, is_now
        assert differences(theirs, ours, {"a": "x", "b": "y"}) == told
    del theirs["commits"]["medseg"]
    assert differences(theirs, ours, {"a": "x", "b": "y"}) == []
    assert flat({"a": {"b": {"c": 1}}, "d": []}) == {"a.b.c": 1, "d": []}


def test_a_folder_outside_any_repository_has_no_commit(tmp_path):
    assert commit(tmp_path) == ""


class Exploit:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_checkpoint_does_not_run_when_a_training_goes_on(store, run, tmp_path, capsys):
    mine = shutil.copytree(run, tmp_path / "run")
    path = mine / "checkpoints" / "last.ckpt"
    torch.save({**load(path), "harm": Exploit()}, path)
    assert fit(store, mine, *EIGHT, "--ckpt_path", "last") == 1
    told = capsys.readouterr()
    assert "holds code that could run on loading" in told.err
    assert "must never run" not in told.out
    with pytest.raises(CheckpointError, match="holds code"):
        CheckpointFiles().load_checkpoint(path, weights_only=False)


NETWORK = ["--model.net_options", '{"features": [4, 4]}']


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ([*NETWORK, "--ckpt_path", "last"], 1, "holds another network"),
        (["--data.patch_size", "[15, 16, 8]", "--run", "new"], 2, "patch_size"),
        (["--trainer.accelerator", "gpu", "--run", "new"], 2, "trainer"),
        (["--trainer.accelerator", "cpu", "--trainer.devices", "0", "--run", "new"], 2, "trainer"),
        ([], 2, "already holds a training"),
    ],
    ids=["network", "patch", "gpu", "devices", "again"],
)
def test_what_cannot_be_trained_is_one_sentence(store, run, tmp_path, monkeypatch, capsys, words, status, expected):
    if torch.cuda.is_available() and "gpu" in words:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    mine = shutil.copytree(run, tmp_path / "run")
    assert fit(store, mine, *EIGHT, *words) == status
    message = capsys.readouterr().err
    last = message.strip().splitlines()[-1]
    assert last.startswith("medseg: ")
    assert expected in last
    assert "Traceback" not in message


def test_a_checkpoint_of_other_labels_needs_the_flag(store, run, tmp_path, capsys):
    other = shutil.copytree(store, tmp_path / "store")
    for name in ("plan.yaml", "index.json"):
        path = other / name
        path.write_text(path.read_text().replace("spleen", "pancreas"))
    mine = shutil.copytree(run, tmp_path / "run")
    assert fit(other, mine, *EIGHT, "--ckpt_path", "last") == 1
    assert "--model.init_from" in capsys.readouterr().err
    last = str(mine / "checkpoints" / "last.ckpt")
    assert fit(other, tmp_path / "tuned", *FOUR, "--model.init_from", last) == 0


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("raised", "where"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "GPU"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "machine"),
        (MemoryError(), "machine"),
    ],
)
def test_a_batch_that_does_not_fit_is_answered_with_numbers(store, tmp_path, monkeypatch, capsys, raised, where):
    def step(self, batch, index):
        raise raised

    monkeypatch.setattr(SegmentationTask, "training_step", step)
    assert fit(store, tmp_path, *FOUR) == 1
    message = capsys.readouterr().err
    assert f"do not fit into the memory of the {where}" in message
    assert "--data.batch_size 1 --trainer.accumulate_grad_batches 2 or --data.patch_size" in message
    assert "Traceback" not in message


def test_what_is_proposed_for_less_memory_is_a_legal_plan(store):
    plan = Plan.from_dict(read_plan(store / "plan.yaml").to_dict() | {"batch_size": 1})
    sentence = str(explained(MemoryError(), plan))
    size = [int(number) for number in sentence.split('"[')[1].split("]")[0].split(",")]
    smaller = Plan.from_dict(plan.to_dict() | {"patch_size": size})
    assert 0.3 < torch.tensor(size).prod() / torch.tensor(plan.patch_size).prod() < 0.7
    assert smaller.strides == plan.strides


def test_an_unknown_failure_keeps_its_traceback(store):
    assert explained(RuntimeError("no idea"), Store(store).plan) is None
    assert explained(RuntimeError("Connection closed by peer [127.0.0.1]:1"), Store(store).plan) is not None


def spoilt(part, value):
    def spoil(path):
        torch.save({**load(path), part: value}, path)

    return spoil


def poisoned(path):
    whole = load(path)
    torch.save(
        {**whole, "state_dict": {name: tensor * torch.nan for name, tensor in whole["state_dict"].items()}}, path
    )


def weights_only(path):
    torch.save(load(path)["state_dict"], path)


def of_nnunet(path):
    torch.save({"network_weights": load(path)["state_dict"], "current_epoch": 3, "trainer_name": "nnUNetTrainer"}, path)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("spoil", "expected", "tuned"),
    [
        (cut_short, "is not a readable checkpoint (PytorchStreamReader failed reading zip archive: failed", None),
        (lambda path: path.write_bytes(b""), "is not a readable checkpoint", None),
        (lambda path: path.write_text("hello"), "is no file of torch.save, or not all of one", None),
        (weights_only, "was not written by medseg", None),
        (of_nnunet, "was not written by medseg", "holds none of the networks"),
        (poisoned, "holds weights that are NaN or infinite, such as net.", None),
        (spoilt("medseg", "yes"), "was not written by medseg", None),
        (spoilt("optimizer_states", None), "lacks optimizer_states, which a training needs to go on", 0),
        (spoilt("global_step", None), "lacks global_step", 0),
        (spoilt("loops", {"fit_loop": {"total": {"ready": "x"}}}), "has 'x' for loops.fit_loop.total.ready", 0),
        (spoilt("hyper_parameters", {"plan": {"labels": 3}}), "lacks hyper_parameters.net", 0),
    ],
)
def test_a_checkpoint_that_is_none_or_not_whole_is_a_sentence(store, run, tmp_path, capsys, spoil, expected, tuned):
    """``tuned``: the status of a training that begins with its weights, or the sentence, where that is another."""
    mine = shutil.copytree(run, tmp_path / "run")
    last = mine / "checkpoints" / "last.ckpt"
    spoil(last)
    log = (mine / "metrics.csv").read_bytes()
    for words in (["--ckpt_path", "last"], ["--model.init_from", str(last), "--run", str(tmp_path / "tuned")]):
        status = fit(store, mine, *EIGHT, *words)
        if words[0] == "--model.init_from" and tuned == 0:
            assert status == 0
            continue
        if words[0] == "--model.init_from" and tuned:
            expected = tuned
        message = capsys.readouterr().err
        assert status == 1
        assert "last.ckpt" in message
        assert expected in message
        assert "Traceback" not in message
    assert (mine / "metrics.csv").read_bytes() == log


def test_a_step_that_the_machine_cannot_hold_is_refused_before_it_is_tried(store, tmp_path, capsys):
    """On a CPU the system would kill the process, and nobody would be left to say why."""
    big = ["--data.patch_size", "[1024, 1024, 1024]", "--data.batch_size", "64"]
    assert fit(store, tmp_path, *FOUR, *big) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "64 patches of 1024 x 1024 x 1024 voxels do not fit into the memory of the machine" in last
    assert "--data.patch_size" in last
    plan = Plan.from_dict(read_plan(store / "plan.yaml").to_dict() | {"batch_size": 64, "patch_size": [1024] * 3})
    net = SegmentationTask(plan.to_dict(), net_options={"features": [4, 8]}).net
    with pytest.raises(
        MemoryShortError, match=r"--data.batch_size \d+ --trainer.accumulate_grad_batches \d+ or"
    ) as short:
        require_memory(net, plan, 200 * 10**9)
    batch, times = (int(word) for word in str(short.value).split("Try --data.batch_size ")[1].split()[:3:2])
    assert batch * times >= 64 > batch
    require_memory(net, Plan.from_dict(plan.to_dict() | {"batch_size": batch}), 200 * 10**9)
    require_memory(net, plan, 0)  # nobody knows how much there is


def test_the_memory_of_a_control_group_is_the_limit(tmp_path):
    whole = memory_bytes(tmp_path)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    limit = tmp_path / "sys/fs/cgroup/memory.max"
    limit.write_text("max\n")
    assert memory_bytes(tmp_path) == whole > 10**8
    limit.write_text("100000000\n")
    assert memory_bytes(tmp_path) == 10**8


@pytest.mark.parametrize(
    ("name", "is_folder", "expected"),
    [
        ("run", False, "run cannot be written to (File exists). Choose another folder with --run"),
        ("run/config.yaml", True, "config.yaml cannot be written"),
        ("run/checkpoints", False, "best.ckpt cannot be written"),
        ("run/metrics.csv", True, "metrics.csv cannot be written"),
    ],
)
def test_what_stands_in_the_way_of_a_run_is_named(store, tmp_path, capsys, name, is_folder, expected):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if is_folder else path.touch()
    assert fit(store, tmp_path / "run", *FOUR) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no folder that nobody may write")
def test_a_folder_that_cannot_be_written_is_a_sentence(store, capsys):
    assert fit(store, "/proc/self/run", *FOUR) == 1
    assert "/proc/self/run cannot be written to (No such file or directory)" in capsys.readouterr().err
