"""The house keeps its floors: who may import whom, how long a file may be, what must be documented."""

import ast
import functools
import re
from pathlib import Path

import pytest
from support.floors import FLOORS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "medseg"
FILES = sorted(PACKAGE.rglob("*.py"))
REFUSED = {"utils", "helpers", "common", "base", "core", "misc", "engine"}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    """Rooms of medseg that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("medseg.")}
    return {name for name in rooms if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_a_file_imports_only_from_floors_below_its_own():
    climbs = {}
    for path, tree in TREES.items():
        own = room(path)  # the front door imports nothing: importing medseg must stay cheap
        floor = FLOORS.get(own, min(FLOORS.values()))
        climbs[relative(path)] = [name for name in imported_rooms(tree) if name != own and FLOORS[name] >= floor]
    assert {path: names for path, names in climbs.items() if names} == {}


def test_every_room_has_a_floor_and_no_refused_name():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms == set(FLOORS)
    assert not {part.removesuffix(".py") for path in FILES for part in path.parts} & REFUSED


def test_the_floor_check_can_fail():
    tree = ast.parse("def f():\n    from medseg.cli.main import main\n")
    assert imported_rooms(tree) == {"cli"}


def test_a_file_holds_one_idea():
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: number for path, number in lines.items() if number > 400} == {}


def test_a_function_fits_on_a_screen():
    functions = [
        (relative(path), node.name, node.end_lineno - node.lineno + 1)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert [function for function in functions if function[-1] > 60] == []


def test_every_public_name_is_documented():
    bare = [relative(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    bare += [
        f"{relative(path)}: {node.name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(tree: ast.Module, modules: set[str]) -> set[str]:
    """Files of medseg that a file imports when it is loaded; ``from room import file`` names the file."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                deep = f"{node.module}.{alias.name}"
                found.add(deep if deep in modules else node.module)
    return found & modules


def test_no_cycles_between_files():
    modules = {module_of(path) for path in FILES}
    graph = {module_of(path): imported_modules(tree, modules) for path, tree in TREES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:medseg|configs|tests|docs|benchmarks|data|notebooks)/[\w./-]+)`", text))
    made_by_commands = re.compile(r"data/(raw|store|runs)")
    missing = [path for path in paths if not (ROOT / path).exists() and not made_by_commands.match(path)]
    assert not missing
    from medseg.cli.commands import COMMANDS
    from medseg.cli.main import LIGHTNING_COMMANDS

    commands = set(re.findall(r"^\s*medseg (\w[\w-]*)", text, flags=re.MULTILINE))
    assert commands <= {*COMMANDS, *LIGHTNING_COMMANDS}
    assert commands, "the README shows no command"


ONE_PLACE = {
    "os.replace": "machine/files.py",
    "os.rename": "machine/files.py",
    "fcntl": "machine/files.py",
    "filelock": "machine/files.py",
    "tempfile.mkstemp": "machine/files.py",
    "tempfile.TemporaryDirectory": "machine/files.py",
    "importlib.import_module": "machine/dotted.py",
    "difflib": "errors.py",
    "<svg": "pictures/charts.py",
    'checkpoint["': "checkpoints/checkpoint.py",
    "torch.load": "checkpoints/reading.py",
    "json.loads": "machine/",
}
"""What one file alone does, since every rule about it is there: a second place would keep other rules."""

OTHERS = ("lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning", "torch")


def dotted(node: ast.AST) -> str:
    """``os.replace`` of the tree of ``os.replace``; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    head = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{head}.{node.attr}" if head else ""


def marks(tree: ast.Module) -> set[str]:
    """What a file says that a rule may be about: dotted names, imports, keys of a checkpoint, text but docstrings."""
    said: set[str] = set()
    documents = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            said.add(dotted(node))
        elif isinstance(node, ast.Import):
            said |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            said |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.JoinedStr):
            said.add(f'{dotted(node.value).rpartition(".")[2]}["')
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documents:
            said |= {mark for mark in ONE_PLACE if mark in node.value and mark.startswith("<")}
    return said


@functools.cache
def said() -> dict[Path, set[str]]:
    """The marks of every file."""
    return {path: marks(tree) for path, tree in TREES.items()}


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("mark", ONE_PLACE)
def test_one_file_alone_does_it(mark):
    elsewhere = [path for path in FILES if not path.relative_to(PACKAGE).as_posix().startswith(ONE_PLACE[mark])]
    assert not [relative(path) for path in elsewhere if mark in said()[path]]


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("import os\ndef f():\n    os.replace('a', 'b')", "os.replace"),
        ("from os import replace", "os.replace"),
        ("import tempfile as t\ntempfile.mkstemp()", "tempfile.mkstemp"),
        ("def f(checkpoint):\n    return checkpoint['epoch']", 'checkpoint["'),
        ("x = f'<svg {1}>'", "<svg"),
        ("import torch\ntorch.load('x')", "torch.load"),
    ],
)
def test_the_one_place_check_can_fail(text, mark):
    assert mark in marks(ast.parse(text))
    assert mark not in marks(ast.parse(f'"""Of {mark}."""\nckpt = replace("a", "b")'))


def classes(trees: dict[Path, ast.Module]) -> dict[str, list[str]]:
    """Class name -> the files that define it."""
    found: dict[str, list[str]] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path.name)
    return found


ALIKE = {"Row"}  # a row of the table of losses, and one of the table of augmentations


def test_a_class_name_has_one_meaning():
    assert {name: files for name, files in classes(TREES).items() if len(files) > 1 and name not in ALIKE} == {}
    twice = {Path("a.py"): ast.parse("class Plan: ..."), Path("b.py"): ast.parse("def f():\n    class Plan: ...")}
    assert classes(twice) == {"Plan": ["a.py", "b.py"]}


def private_names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Names beginning with one underscore: those that a file defines, and those that it asks of something else."""
    own: set[str] = set()
    asked: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            of_others = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OTHERS
            names = [alias.name for alias in node.names] + ([node.module or ""] if of_others else [])
            asked |= {part for name in names if of_others or name.split(".")[0] in OTHERS for part in name.split(".")}
        elif isinstance(node, ast.Attribute):
            mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if mine and isinstance(node.ctx, ast.Store) else asked).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Assign):
            own |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return tuple({name for name in names if re.match(r"_[a-z]", name)} for names in (own, asked))  # type: ignore[return-value]


PASSED = {"_replace", "_asdict", "_fields", "_exit", "_getframe", "_actions", "_is_synced"}
"""Private by name only: of named tuples, ``os`` and ``sys``; argparse's options; what torchmetrics' subclasses see."""


def test_private_names_of_lightning_and_torch_stand_in_one_file():
    own = set().union(*(private_names(tree)[0] for path, tree in TREES.items() if path.name != "lightning.py"))
    strangers = {relative(path): private_names(tree)[1] - own - PASSED for path, tree in TREES.items()}
    assert {path: names for path, names in strangers.items() if names and not path.endswith("lightning.py")} == {}


def test_the_check_of_private_names_can_fail():
    text = "from torch._dynamo import reset\nclass A:\n    def f(self, loop):\n        self._own = loop._restarting"
    assert private_names(ast.parse(text)) == ({"_own"}, {"_dynamo", "_restarting"})
