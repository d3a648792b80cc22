"""The script that completes: what a person who presses the tabulator is offered, by bash itself."""

import shutil
import subprocess

import pytest

from medseg.cli import main

ASKS = """
try() {
  COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _shtab_medseg 2>/dev/null; echo "$* -> ${COMPREPLY[@]}"
}
"""
OFFERED = {
    "medseg cross-v": "cross-validate",
    "medseg fit --config my": "my_config.yaml my_store",
    "medseg predict --ckpt my_c": "my_config.yaml",
    "medseg info my_s": "my_store",
    "medseg fit --model.net vn": "vnet",
    "medseg fit --model.loss foc": "focal focal_tversky",
    "medseg fit --model.schedule co": "constant cosine",
    "medseg fit --model.compile t": "true",
    "medseg fit --data.augmentation mo": "moderate",
    "medseg compare --nets unet vn": "vnet",
    "medseg cross-validate --data.sto": "--data.store",
    "medseg nets vn": "vnet",
    "medseg predict --ov": "--overlap --overwrite",
}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_offers_commands_options_words_and_files(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "my_store").mkdir()
    (tmp_path / "my_config.yaml").touch()
    script = "\n".join([capsys.readouterr().out, ASKS, *(f"try {words}" for words in OFFERED)])
    said = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    offered = dict(line.split(" -> ") for line in said.splitlines())
    assert {words: " ".join(sorted(offers.split())) for words, offers in offered.items()} == OFFERED


def test_zsh_gets_words_and_files_too(capsys):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert '"--model.net[model.net]:model.net:(anatomynet ' in script
    assert '"--data.store[data.store]:data.store:_files"' in script
