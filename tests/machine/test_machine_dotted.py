"""What a dotted path names is imported and checked, never called; whose word is enough."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from medseg.errors import CheckpointError, UsageError
from medseg.machine.dotted import Trust, named

FAULTS = {
    "syntax": "def f(:\n",
    "name": "nothing_of_that_name\n",
    "missing": "import no_such_package_at_all\n",
    "division": "1 / 0\n",
    "value": "raise ValueError('not\\nnow')\n",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    return tmp_path


def test_a_file_in_the_working_directory_is_found_after_what_is_installed(place):
    (place / "dotted_beside.py").write_text("class Thing(dict): ...\n")
    (place / "torch.py").write_text("raise SystemExit('shadowed')\n")
    assert issubclass(named("dotted_beside.Thing", dict, option="model.net"), dict)
    assert named("torch.nn.Identity", nn.Module, option="model.net") is nn.Identity
    assert sys.path[-1] == str(place)


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_at_fault_is_one_sentence_with_its_place(place, name):
    (place / f"dotted_{name}.py").write_text(FAULTS[name])
    with pytest.raises(UsageError) as caught:
        named(f"dotted_{name}.Thing", dict, option="model.net")
    sentence = str(caught.value)
    assert sentence.startswith("model.net: ")
    assert "\n" not in sentence
    assert f"dotted_{name}.py, line 1" in sentence or "no_such_package_at_all" in sentence


@pytest.mark.parametrize(
    "path",
    ["", ".", "Plain", ".Plain", "a..b", "a.b.", "os.getcwd()", "os;x.y", "no_such.Thing", "os.none", "a b.c"],
)
def test_no_path_is_a_sentence_too(path):
    with pytest.raises(UsageError, match=r"^model\.net: "):
        named(path, dict, option="model.net")


@pytest.mark.parametrize("path", ["os.system", "torch.hub.load", "builtins.exec", "logging.basicConfig", "os.sep"])
def test_what_is_of_another_kind_is_not_called(path):
    with pytest.raises(UsageError, match=r"is no subclass of torch\.nn"):
        named(path, nn.Module, option="model.net")
    with pytest.raises(UsageError, match="cannot be called"):
        named("os.sep", option="model.loss")


def test_a_spawned_worker_finds_the_file_too(place):
    (place / "dotted_worker.py").write_text("def double(x):\n    return 2 * x\n")
    (place / "main.py").write_text(
        "import multiprocessing, sys\n"
        "from medseg.machine.dotted import named\n"
        "if __name__ == '__main__':\n"
        "    sys.path = [entry for entry in sys.path if entry != sys.argv[1]]\n"
        "    double = named('dotted_worker.double', option='model.loss')\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(double, [21]))\n"
    )
    done = subprocess.run(
        [sys.executable, str(place / "main.py"), str(place)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[42]\n"


def test_only_what_the_user_names_is_trusted():
    trust = Trust.of(["mynet.Plain"])
    trust.require("mynet.Plain", Path("a.ckpt"))
    for path in ("mynet.Other", "mynet", "mynet.Plain.x", "MYNET.PLAIN"):
        with pytest.raises(CheckpointError, match=rf"^a\.ckpt names {path}.*--trust {path}\.$"):
            trust.require(path, Path("a.ckpt"))
    with pytest.raises(CheckpointError):
        Trust.of(None).require("mynet.Plain", Path("a.ckpt"))
