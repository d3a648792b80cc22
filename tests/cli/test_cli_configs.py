"""Every YAML of the repository: it fits on one screen, its commands exist, and everything is built from it."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.recipes import HEAD_AND_NECK, NESTED_TUMOUR

from medseg.cli.commands import COMMANDS
from medseg.cli.main import LIGHTNING_COMMANDS, main
from medseg.datasets.msd import TASKS
from medseg.phantom.anatomy import ABDOMEN, PhantomRecipe
from medseg.phantom.phantom import write_phantom
from medseg.phantom.recipes import recipe_for
from medseg.store.prepare import prepare

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


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


def phantom_of(path: Path) -> PhantomRecipe:
    """A small phantom with the modalities, labels, aspect and quirks of the dataset that a config is for."""
    if path.stem == "head_and_neck":
        return replace(HEAD_AND_NECK, size=(40, 40, 32), spacing_mm=(6.4, 6.4, 7.5))
    if path.parent.name == "msd":
        task = TASKS[yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["store"].rpartition("/")[2]]
        return recipe_for(task.name, shrink=max(1.0, max(task.size) / 40))
    return replace(ABDOMEN, size=(32, 32, 20), spacing_mm=(4.0, 4.0, 6.0))


def train_three_steps(path: Path, recipe: PhantomRecipe, folder: Path, *more: str) -> int:
    """Everything is built from a config; only the budget and the width of the network are a test's."""
    prepare(write_phantom(folder / "phantom", 4, recipe=recipe), folder / "store", workers=1)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    small = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    small += ["--trainer.max_steps", "3", "--data.steps_per_epoch", "3", "--data.batch_size", "1"]
    small += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1", "--trainer.precision", "32"]
    small += ["--trainer.num_sanity_val_steps", "0", "--trainer.log_every_n_steps", "1", "--data.folds", "2"]
    if "patch_size" in (given.get("data") or {}):
        small += ["--data.patch_size", "[32, 32, 16]"]
    if (given.get("model") or {}).get("net", "unet") == "unet":
        width = len((given.get("model") or {}).get("net_options", {}).get("features", [0] * 3))
        small += ["--model.net_options", f'{{"features": {[4] * min(3, width)}}}']
    words = ["--config", str(path), "--data.store", str(folder / "store"), "--run", str(folder / "run")]
    return main(["fit", *words, *small, *more])


@pytest.mark.sweep(9)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_is_built_from_a_config_and_three_steps_are_trained_on_its_phantom(path, tmp_path):
    recipe = phantom_of(path)
    assert train_three_steps(path, recipe, tmp_path) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    plan = checkpoint["hyper_parameters"]["plan"]
    assert set(plan["labels"]) == set(recipe.labels)
    assert tuple(plan["modalities"]) == recipe.modalities
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))


def test_the_brain_tumour_trains_as_overlapping_regions(tmp_path):
    path = CONFIGS / "msd" / "task01_brain.yaml"
    recipe = replace(phantom_of(path), regions=NESTED_TUMOUR)
    assert train_three_steps(path, recipe, tmp_path, "--data.organs", "null") == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert list(checkpoint["hyper_parameters"]["plan"]["labels"]) == list(NESTED_TUMOUR)
    shapes = [weight.shape for weight in checkpoint["state_dict"].values() if weight.ndim == 5]
    assert 3 in [shape[0] for shape in shapes]  # a channel per region, none for the background


def test_organs_that_a_case_lacks_are_known_to_the_store(tmp_path):
    recipe = phantom_of(CONFIGS / "head_and_neck.yaml")
    store = prepare(write_phantom(tmp_path / "phantom", 3, recipe=recipe), tmp_path / "store", workers=1)
    lacking = {case: set(recipe.labels) - set(store.info(case).annotated or recipe.labels) for case in store.ids}
    assert lacking == {
        "headandneck_000": set(),
        "headandneck_001": {"Submandibular_L", "Submandibular_R"},
        "headandneck_002": {"Chiasm", "OpticNerve_L", "OpticNerve_R"},
    }


def test_a_dataset_that_does_not_match_the_config_is_refused(tmp_path, capsys):
    path = CONFIGS / "msd" / "task09_spleen.yaml"
    assert train_three_steps(path, phantom_of(CONFIGS / "msd" / "task03_liver.yaml"), tmp_path) == 1
    assert "holds liver, cancer; the config is made for spleen" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_there_is_a_config_for_every_task_of_the_decathlon():
    stores = {
        yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["store"] for path in (CONFIGS / "msd").glob("*.yaml")
    }
    assert stores == {f"data/store/{name}" for name in TASKS}


@pytest.mark.slow
def test_what_a_plan_for_minutes_says_to_type_is_the_config_for_minutes_and_trains(toy_dataset, tmp_path, capsys):
    place = tmp_path / "out"
    assert main(["plan", str(toy_dataset), "--minutes", "0.2", "--out", str(place / "plan.yaml")]) == 0
    said = capsys.readouterr().out.split("medseg fit ")[1].split()
    options = dict(zip(said[::2], said[1::2], strict=True))
    assert options.pop("--trainer.max_time") == "00:00:00:12"
    config = yaml.safe_load((CONFIGS / "minutes.yaml").read_text(encoding="utf-8"))
    for option, value in list(options.items())[2:]:
        room, name = option.removeprefix("--").split(".")
        assert str(config[room][name]) == value
    assert main(["prepare", str(toy_dataset), "--plan", str(place / "plan.yaml"), "--out", str(place / "store")]) == 0
    options |= {"--data.store": str(place / "store"), "--run": str(place / "run"), "--trainer.max_steps": "2"}
    options |= {"--data.folds": "2", "--trainer.enable_progress_bar": "false"}
    assert main(["fit", *(word for pair in options.items() for word in pair)]) == 0
    assert (place / "run" / "checkpoints" / "last.ckpt").is_file()
