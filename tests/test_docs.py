"""Every command and block of code in the documentation runs on small data, or is at least parsed to its end."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from support.floors import FLOORS
from support.nnunet import PLAN, exported
from support.sweeps import jobs_in_this_process
from support.toys import toy_case, write_nifti, write_toy_dataset

from medseg.cli import main
from medseg.cli.main import LIGHTNING_COMMANDS, build_parser
from medseg.losses import build_loss, catalogue
from medseg.nets import catalogue as nets_catalogue
from medseg.patches.datamodule import VolumesDataModule
from medseg.phantom.phantom import write_phantom
from medseg.phantom.recipes import recipe_for
from medseg.plan.plan import Normalisation
from medseg.training.task import SegmentationTask

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted(DOCS.rglob("*.md"))]
SHELL = {"", "sh", "bash", "console"}
FENCE = re.compile(
    r"^(?:<!-- only parsed: (?P<why>.+?) -->\n)?(?P<tick>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=tick)$", re.M | re.S
)
SMALL = [
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.precision", "32"),
    *("--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0", "--trainer.devices", "1"),
    *("--trainer.limit_val_batches", "1"),
    *("--data.steps_per_epoch", "2", "--data.batch_size", "2", "--data.patch_size", "[16,16,16]", "--data.folds", "2"),
    *("--data.organs", "null"),  # every store here is a hippocampus
]
"""What makes a training of a page a matter of seconds."""

SWEEPS = ("compare", "cross-validate")
"""Commands that start trainings and hand them their other options."""

STANDS_FOR = {
    "NEW_IMAGES": "data/raw/Task04_Hippocampus/imagesTs",
    "MODEL_FOLDER": "nnunet/model",
    "IMAGES": "data/raw/Task04_Hippocampus/imagesTs",
    "LABELS": "data/raw/Task04_Hippocampus/labelsTs",
    "CKPT": "run/checkpoints/best.ckpt",
    "RUN": "run",
    "CONFIG": "run/config.yaml",
    "STORE": "data/store/Task04_Hippocampus",
    "DATASET": "data/raw/Task04_Hippocampus",
}
"""Paths in the place of words that stand for one."""

NEEDS = {
    "losses.md": "logits, labels = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))",
}
"""What the blocks of a page take for granted."""


RUNS = {"export.md": "data/runs/hippocampus"}
"""Where a page expects the run that an earlier page made."""


WANTS = {"export.md": "onnxruntime"}
"""What a page cannot be run without."""


LONG = (
    *("extending.md", "own-data.md", "pictures.md", "coming-from-nnunet.md", "choosing-a-loss.md", "fine-tuning.md"),
    *("many-datasets.md", "export.md"),
)
"""Pages with many trainings, which ``make test`` parses to the end of each command and ``make test-all`` runs."""


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    body: str
    only_parsed: bool


def blocks(page):
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = found["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        yield Block(language, title.group(1) if title else "", found["body"], found["why"] is not None)


def commands(body):
    """The commands of a block, one per line, continued lines joined, comments gone."""
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def is_shell(block):
    known = {"medseg", "make", "pip", "python", "git"}
    return block.language in SHELL - {""} or (block.language == "" and block.body.split(maxsplit=1)[0] in known)


def test_pages_made_from_tables_are_up_to_date():
    for name, page in runpy.run_path(str(DOCS / "tables.py"))["PAGES"].items():
        assert (DOCS / name).read_text(encoding="utf-8") == page(), "run: python docs/tables.py"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Data, a store and a run, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("docs")
    raw = write_phantom(folder / "data/raw/Task04_Hippocampus", 4, test=1, recipe=recipe_for("hippocampus", shrink=1.5))
    toy = write_toy_dataset(folder)
    mine = folder / "data/raw/Mine"
    for name, (image, label) in zip(("anna", "bert", "cleo", "dora"), map(toy_case, (0, 1, 2, 3)), strict=True):
        affine = [[1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]
        write_nifti(mine / "scans" / f"{name}.nii.gz", image, torch.tensor(affine).double().numpy())
        write_nifti(mine / "masks" / f"{name}.nii.gz", label, torch.tensor(affine).double().numpy())
    shutil.copytree(raw, folder / "data/raw/Dataset004_Hippocampus")
    exported(folder / "nnunet", replace(PLAN, modalities=("MRI",), normalisation=(Normalisation(),)))
    shutil.rmtree(toy)
    assert main(["prepare", str(raw), "--out", str(folder / "data/store/Task04_Hippocampus"), "--workers", "1"]) == 0
    shutil.copytree(folder / "data/store/Task04_Hippocampus", folder / "data/store/Task09_Spleen")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start = ["fit", "--data.store", "data/store/Task04_Hippocampus", "--run", "run", *SMALL]
        assert main([*start, "--model.net_options", "{features: [4, 8, 8]}"]) == 0
        assert main(["test", "--run", "run", "--trainer.enable_progress_bar", "false"]) == 0
    return folder


def parse(words):
    """Parse a command of ours to its end without doing anything."""
    if words[0] in LIGHTNING_COMMANDS:
        if words[0] != "fit" and "--run" in words:  # nobody has made the one that is meant
            words = [*words, "--run", STANDS_FOR["RUN"]]
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert stop.value.code == 0, words
    elif words[0] in SWEEPS:  # what they do not know themselves is for fit
        known, others = build_parser().parse_known_args(words)
        parse(["fit", *(word for config in known.config for word in ("--config", config)), *others])
    else:
        build_parser().parse_args(words)


def shortened(words):
    if words[0] not in ("fit", *SWEEPS):
        return [*words, "--trainer.enable_progress_bar", "false"] if words[0] in LIGHTNING_COMMANDS else words
    if {"--model.net", "--nets"} & set(words):  # not every network takes these channels, or patches that small
        return [*words, *SMALL, "--data.patch_size", "[32,32,32]"]
    flat = ["--data.patch_size", "[16,16,1]"] if "configs/pictures.yaml" in words else []
    return [*words, *SMALL, "--model.net_options", "{features: [4, 8, 8]}", *flat]


def run_ours(words, *, only_parsed):
    optional = re.compile(r"\[[A-Z]+|\.\.\.\]?|\[--\w+|[A-Z]+\]")  # as in CKPT [CKPT ...] [--json FILE]
    words = [STANDS_FOR.get(word, word) for word in words if not optional.fullmatch(word)]
    if only_parsed or "--print_config" in words or words[0] == "download":  # no network here
        parse([word for word in words if word != "--print_config"])
    else:
        with jobs_in_this_process():
            status = main(shortened(words))
        assert status == 0, f"medseg {shlex.join(words)} ended with {status}"


def check_command(words, *, only_parsed):
    program, *rest = words
    if program == "medseg":
        run_ours(rest, only_parsed=only_parsed)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(rest) <= set(targets), rest
    elif program == "pip":
        check_extras(" ".join(rest))
    elif program == "python" and not only_parsed:
        done = subprocess.run([sys.executable, "-c", SCRIPT, *rest], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    elif only_parsed and "medseg" in rest:  # started by torchrun or srun
        parse(rest[rest.index("medseg") + 1 :])
    else:
        assert only_parsed, f"nobody runs {words}: mark the block with <!-- only parsed: why -->"


SCRIPT = f"""
import runpy, sys
sys.path.insert(0, ".")
import medseg.cli
real = medseg.cli.main
medseg.cli.main = lambda words: real([*words, *{SMALL!r}, "--model.net_options", "{{features: [4, 8, 8]}}"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check_extras(line):
    extras = {extra for group in re.findall(r"\[([\w,-]+)\]", line) for extra in group.split(",")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib came with Python 3.11
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert extras <= set(re.findall(r"^(\w+) = \[", section, re.M)), line


def check_data(block):
    """YAML and JSON must be readable; one with a title is the file that later commands name."""
    content = yaml.safe_load(block.body)  # JSON is YAML
    assert isinstance(content, dict)
    model, data = content.get("model") or {}, content.get("data") or {}
    assert model.keys() <= inspect.signature(SegmentationTask).parameters.keys()
    assert data.keys() <= inspect.signature(VolumesDataModule).parameters.keys()
    nets = {row["name"]: row["knobs"] for row in nets_catalogue.rows()}
    if model.get("net", "unet") in nets or "." not in model["net"]:
        assert model.get("net_options", {}).keys() <= nets[model.get("net", "unet")].keys()
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.body, encoding="utf-8")


def check_python(block, names, *, only_parsed):
    """A titled block is a file, which commands or later blocks run; another is typed where the page is read."""
    if block.title:
        Path(block.title).write_text(block.body, encoding="utf-8")
    if block.title or only_parsed:
        compile(block.body, block.title or "the page", "exec")
        return
    sys.path.insert(0, str(Path.cwd()))  # as for whoever starts python there; no help to the commands
    try:
        exec(compile(block.body, "the page", "exec"), names)
    finally:
        sys.path.remove(str(Path.cwd()))


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.name in LONG else page for page in PAGES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_everything_on_the_page_runs(page, workplace, tmp_path, monkeypatch):
    read_to_the_end(page, workplace, tmp_path, monkeypatch, only_parsed=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_block_is_open_or_shut_by_two_ticks(page):
    assert not re.search(r"^``(?!`)\w*$", page.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", LONG)
def test_everything_on_a_long_page_is_parsed(name, workplace, tmp_path, monkeypatch):
    read_to_the_end(DOCS / name, workplace, tmp_path, monkeypatch, only_parsed=True)


def read_to_the_end(page, workplace, tmp_path, monkeypatch, *, only_parsed):
    place = shutil.copytree(workplace, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {"torch": torch}
    exec(NEEDS.get(page.name, ""), names)
    if page.name in WANTS:
        pytest.importorskip(WANTS[page.name])
    if page.name in RUNS:
        shutil.copytree("run", RUNS[page.name])
    before = set(sys.modules)
    for block in blocks(page):
        if block.language == "python":
            check_python(block, names, only_parsed=only_parsed)
        elif block.language in ("yaml", "json"):
            check_data(block)
        elif is_shell(block):
            assert subprocess.run(["bash", "-n"], input=block.body, text=True, check=False).returncode == 0, block.body
            for words in commands(block.body):
                check_command(words, only_parsed=only_parsed or block.only_parsed)
        else:
            assert block.language in ("", "text"), f"what is {block.language}?"
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", None) and str(place) in str(sys.modules[module].__file__):
            del sys.modules[module]


@pytest.mark.slow
def test_extending_works_from_the_console_script_as_a_stranger_types_it(workplace, tmp_path):
    """In a folder that is not the repository, loader workers included, and what the page only parses too."""
    place = shutil.copytree(workplace, tmp_path / "place", symlinks=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    medseg, used = Path(sys.executable).with_name("medseg"), set()
    for block in blocks(DOCS / "extending.md"):
        if block.title:
            (place / block.title).write_text(block.body, encoding="utf-8")
        for words in commands(block.body) if is_shell(block) else ():
            if words[0] != "medseg":
                continue
            words = shortened([STANDS_FOR.get(word, word) for word in words[1:]])
            words += ["--data.workers", "1"] if words[0] == "fit" else []
            done = subprocess.run(
                [medseg, *words], cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            used.add(words[0])
    assert used == {"fit", "test", "predict", "compare", "compare-runs", "cross-validate", "export"}


def test_an_unknown_program_and_a_misspelt_option_are_found():
    with pytest.raises(AssertionError, match="nobody runs"):
        check_command(["rm", "-r", "x"], only_parsed=False)
    with pytest.raises(SystemExit):
        check_command(["medseg", "predict", "--ckpt", "A", "--inptu", "B", "--output", "C"], only_parsed=True)
    with pytest.raises(AssertionError):
        check_command(["pip", "install", ".[nonsense]"], only_parsed=False)


def test_every_page_is_reachable():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    results = {page for page in pages if page.startswith("results/")}  # docs/results.py adds these by itself
    assert {page for page in pages - results if page not in navigation} == set()


def test_all_that_the_package_offers_is_in_the_reference():
    offered = re.findall(r"import (\w+) as \w+", (ROOT / "medseg" / "__init__.pyi").read_text(encoding="utf-8"))
    told = [
        line.rpartition(".")[2]
        for line in re.findall(r"^::: (.+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    ]
    assert sorted(told) == sorted(offered)


@pytest.mark.parametrize("page", ["README.md", "pyproject.toml", "CHANGELOG.md"])
def test_as_many_losses_are_promised_as_there_are(page):
    told = re.search(r"(\d+)\s+(?:published )?losses", (ROOT / page).read_text(encoding="utf-8"))
    assert told is not None
    assert int(told[1]) == len(catalogue.rows())


def test_every_loss_that_is_recommended_can_be_built():
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|[^|]+\|$", (DOCS / "choosing-a-loss.md").read_text(encoding="utf-8"), re.M)
    expressions = [expression for row in rows for expression in re.findall(r"`([^`]+)`", row)]
    assert len(expressions) > 8
    for expression in expressions:
        if expression not in ("annotated", "dataset.json"):
            build_loss(expression)


@pytest.mark.parametrize("page", [DOCS / "design.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_the_drawn_floors_are_those_of_the_house(page):
    drawing = re.search(r"```(?:text)?\n(\d+ .*?)```", page.read_text(encoding="utf-8"), re.S)
    drawn = {}
    for line in drawing.group(1).splitlines():
        level, *rooms = line.split()
        drawn |= {room: int(level) for room in rooms} if level.isdigit() else dict.fromkeys([level, *rooms], -1)
    assert drawn == {room: floor for room, floor in FLOORS.items() if room != "__main__"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="pip install 'medseg[docs]'")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "first-ten-minutes/" in home
    assert "fonts.googleapis.com" not in home
