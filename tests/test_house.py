"""The house keeps its floors: who may import whom, how long a file may be, what must be documented."""

import ast
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


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_from_floors_below_its_own(path):
    own = room(path)
    if own == "__init__":
        assert not imported_rooms(TREES[path]), "importing medseg must stay cheap"
        return
    climbs = [name for name in imported_rooms(TREES[path]) if name != own and FLOORS[name] >= FLOORS[own]]
    assert not climbs, f"{own} (floor {FLOORS[own]}) imports {climbs}"


def test_every_room_has_a_floor_and_no_refused_name():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms == set(FLOORS)
    assert not {part.removesuffix(".py") for path in FILES for part in path.parts} & REFUSED


def test_the_floor_check_can_fail():
    tree = ast.parse("def f():\n    from medseg.cli.main import main\n")
    assert imported_rooms(tree) == {"cli"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_holds_one_idea(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines"
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60
    }
    assert not long


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_public_name_is_documented(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), "the file has no docstring"
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


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
