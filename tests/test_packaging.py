"""What is shipped: the wheel, the source archive, the container's recipe; nothing missing, nothing stray."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import medseg

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads no TOML")

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PINS = ROOT / "constraints" / "container.txt"


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned() -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in PINS.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {normalised(name): Version(number) for name, number in pairs}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and a source archive, built without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_what_the_demo_needs(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = Parser().parsestr(archive.read(f"medseg-{medseg.__version__}.dist-info/METADATA").decode())
        entry = archive.read(f"medseg-{medseg.__version__}.dist-info/entry_points.txt").decode()
    inside = (ROOT / "medseg").rglob("*")
    sources = {str(path.relative_to(ROOT)) for path in inside if path.suffix in (".py", ".csv", ".css")}
    assert sources <= names
    assert {"medseg/py.typed", "medseg/cli/demo.yaml"} <= names
    assert {name.split("/")[0] for name in names} == {"medseg", f"medseg-{medseg.__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".pyc", ".ckpt", ".gz", ".ipynb"))]
    assert about["License-Expression"] == "Apache-2.0"
    assert about["License-File"] == "LICENSE"
    assert about["Requires-Python"] == ">=3.10"
    assert about.get_payload().startswith("# medseg")
    assert "Typing :: Typed" in about.get_all("Classifier")
    assert set(about.get_all("Provides-Extra")) >= {"export", "formats", "test"}
    assert "medseg = medseg.__main__:main" in entry


def required(by: metadata.Distribution) -> dict[str, metadata.Distribution]:
    """All that the distribution requires here, by name; an extra counts where it is asked for."""
    found, waiting = {}, [(by, ("",))]
    while waiting:
        package, extras = waiting.pop()
        for wanted in map(Requirement, package.requires or []):
            name, chosen = normalised(wanted.name), ("", *sorted(wanted.extras))
            here = not wanted.marker or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
            if here and (name, chosen) not in found:
                found[name, chosen] = metadata.distribution(name)
                waiting.append((found[name, chosen], chosen))
    return {name: package for (name, _), package in found.items()}


def lend(packages: dict[str, metadata.Distribution], site: Path) -> None:
    """Link the files of the packages into another environment's ``site-packages``, and no other."""
    for package in packages.values():
        for top in {path.parts[0] for path in package.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(built, tmp_path):
    """Away from the checkout, with what the wheel says that it requires and nothing else that is installed here."""
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True)
    python = tmp_path / "empty" / "bin" / "python"
    site = tmp_path / "empty" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    (about,) = metadata.distributions(name="medseg", path=[str(site)])
    lend(required(about), site)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    where = [str(python), "-c", "import medseg; print(medseg.__file__)"]
    said = subprocess.run(where, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True).stdout
    assert Path(said.strip()) == site / "medseg" / "__init__.py"
    demo = [str(python.with_name("medseg")), "demo", "--out", "demo", "--minutes", "0.1"]
    done = subprocess.run(demo, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"report.html", "cases.csv", "predictions", "run"}
    assert "Traceback" not in done.stderr


def test_the_source_archive_holds_what_git_does_and_no_data(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        files = {member.name.partition("/")[2]: member.size for member in archive.getmembers() if member.isfile()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "medseg/py.typed",
        "tests/conftest.py",
        "configs/demo.yaml",
    } <= set(files)
    stray = re.compile(r"\.(ckpt|nii|gz|npz|pyc|b2nd|pt|onnx)$|^(data/(raw|store|runs)|demo|runs|\.venv|\.git)/")
    kept = {"tests/support/version_0.1.0.ckpt"}  # what today's code must still open
    assert not [name for name in files if stray.search(name) and name not in kept]
    assert sum(files.values()) < 20e6


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (medseg.__version__, project()["license"])


def test_the_first_notes_are_of_this_version():
    heading = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heading is not None
    assert heading[1] == medseg.__version__


def test_the_conda_recipe_asks_for_what_the_package_does():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == medseg.__version__
    called = {"torch": "pytorch", "blosc2": "python-blosc2"}  # where conda-forge has another name
    wanted = {
        normalised(called.get(of.name, of.name)): of.specifier for of in map(Requirement, project()["dependencies"])
    }
    asked = {normalised(of.name): of.specifier for of in map(Requirement, recipe["requirements"]["run"])}
    assert wanted.items() <= asked.items()


def imported_packages() -> set[str]:
    """The packages, by the name they are imported under, that any file of medseg imports."""
    names = set()
    for path in (ROOT / "medseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"medseg"}


def test_types_are_checked_alike_where_an_extra_is_absent():
    """Lint installs no extra: what only an extra brings is untyped for mypy, whether it is there or not."""
    text = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    untyped = {module for override in text["tool"]["mypy"]["overrides"] for module in override["module"]}
    always = {normalised(Requirement(line).name).replace("-", "_") for line in project()["dependencies"]}
    always |= {"PIL", "yaml", "skimage", "lightning_fabric", "lightning_utilities", "typing_extensions"}
    assert {f"{name}.*" for name in imported_packages() - always} <= untyped


def test_the_pins_of_the_container_satisfy_the_project():
    pins = pinned()
    extras = [*re.findall(r'pip install "\.\[(.+)\]"', DOCKERFILE)[0].split(",")]
    declared = project()
    wanted = [
        *declared["dependencies"],
        *[line for extra in extras for line in declared["optional-dependencies"][extra]],
    ]
    for line in wanted:
        requirement = Requirement(line)
        assert pins[normalised(requirement.name)] in requirement.specifier, line
    assert pins["torch"] == Version("2.13.0")
    assert "hatchling" in pins, "the wheel would be built by whatever is newest"


def test_the_dockerfile_copies_only_what_is_there_and_let_through():
    """With the whole folder shut out, what is copied must be let in again."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    lines = [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    copied = [source for words in lines if not words[0].startswith("--from") for source in words[:-1]]
    assert {"pyproject.toml", "medseg", "configs", "constraints/container.txt"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in let_in
    readme = project()["readme"]
    assert {readme, *project()["license-files"]} <= set(copied)


def test_the_container_runs_as_nobody_in_particular():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.fullmatch(r"debian:bookworm-\d{8}-slim", base) for base in bases), "a moving tag is not reproducible"
    last = DOCKERFILE.split("FROM ")[-1]
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert 'ENTRYPOINT ["medseg"]' in last
    assert "pip install" not in last
