"""Every YAML of the repository: it fits on one screen, its commands exist, and everything is built from it."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import write_toy_dataset

from medseg.cli.commands import COMMANDS
from medseg.cli.main import LIGHTNING_COMMANDS, main
from medseg.datasets.msd import TASKS
from medseg.store.prepare import prepare

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    return folder / "store"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_short_plain_and_says_its_commands(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert "class_path" not in text
    assert "num_classes" not in text
    commands = re.findall(r"medseg (\w+)", text)
    assert commands
    assert set(commands) <= {*COMMANDS, *LIGHTNING_COMMANDS}
    for named in re.findall(r"configs/[\w/]+\.yaml", text):
        assert (CONFIGS.parent / named).is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_is_built_from_a_config_and_two_steps_are_trained(path, store, tmp_path):
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    small = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    small += ["--trainer.max_steps", "2", "--data.steps_per_epoch", "2", "--data.batch_size", "2"]
    small += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1", "--trainer.precision", "32"]
    small += ["--trainer.num_sanity_val_steps", "0", "--trainer.log_every_n_steps", "1", "--data.folds", "2"]
    width = len((given.get("model") or {}).get("net_options", {}).get("features", [0] * 3))
    options = ["--model.net_options", f'{{"features": {[4] * min(3, width)}}}']
    assert (
        main(["fit", "--config", str(path), "--data.store", str(store), "--run", str(tmp_path), *small, *options]) == 0
    )
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_there_is_a_config_for_every_task_of_the_decathlon():
    stores = {
        yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["store"] for path in (CONFIGS / "msd").glob("*.yaml")
    }
    assert stores == {f"data/store/{name}" for name in TASKS}
