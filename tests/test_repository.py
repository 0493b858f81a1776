"""The repository's own rules: the direction of imports, the length and first line of files, links and versions."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

import networkx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fxcompress

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fxcompress"
FOLDERS = ("fxcompress", "tests", "examples", "benchmarks")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = (
    {"errors", "version", "staging", "heap"},
    {"policies", "solvers", "nn"},
    {"graph"},
    {"passes", "measure"},
    {"planning"},
    {"tune", "train", "lowering", "reporting"},
    {"pipeline"},
    {"checkpoint", "demo", "cli", "__init__"},
)
LEVELS = {room: level for level, row in enumerate(ROWS) for room in row}
ENTRY = len(ROWS) - 1  # the ways in may use one another
WITHOUT_TORCH = {"policies", "solvers"}


def room_of(parts: tuple[str, ...]) -> str:
    """Say which room holds a module, given its dotted name below `fxcompress` (or the path of its file)."""
    name = parts[0].removesuffix(".py") if parts else "__init__"
    return name if name in LEVELS else "__init__"


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything that `source` imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def violations(room: str, source: str) -> Iterator[str]:
    """Yield what is wrong with the imports of a file in `room`."""
    for line, name in imported(source):
        package, *rest = name.split(".")
        if package == "":
            yield f"{line}: relative import of {name}"
        if package == "torch" and room in WITHOUT_TORCH:
            yield f"{line}: {room} imports torch"
        if package == "fxcompress":
            other = room_of(tuple(rest))
            if room != other and not (LEVELS[other] < LEVELS[room] or LEVELS[other] == LEVELS[room] == ENTRY):
                yield f"{line}: {room} (level {LEVELS[room]}) imports {other} (level {LEVELS[other]})"


def test_imports_point_downward():
    found = [
        f"{path.relative_to(ROOT)}:{violation}"
        for path in PACKAGE.rglob("*.py")
        for violation in violations(room_of(path.relative_to(PACKAGE).parts), path.read_text())
    ]
    assert not found, "\n".join(found)


def test_files_and_folders_of_the_graph_do_not_import_in_circles():
    imports = networkx.DiGraph()
    for path in (PACKAGE / "graph").rglob("*.py"):
        own = path.relative_to(PACKAGE / "graph").parts[0].removesuffix(".py")
        names = (name for _, name in imported(path.read_text()) if name.startswith("fxcompress.graph."))
        imports.add_edges_from(
            (own, part) for part in (name.split(".")[2] for name in names) if own not in (part, "__init__")
        )
    assert networkx.is_directed_acyclic_graph(imports), networkx.find_cycle(imports)


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("graph", "from fxcompress.nn import Mask\nimport fxcompress.errors", []),
        ("passes", "from fxcompress.passes.fold import fold", []),
        ("cli", "from fxcompress.demo.digits import load\nfrom fxcompress import transform", []),
        ("nn", "def f():\n    import fxcompress.policies", ["2: nn (level 1) imports policies (level 1)"]),
        ("graph", "from fxcompress import passes", ["1: graph (level 2) imports passes (level 3)"]),
        ("tune", "import fxcompress.train.qat as q", ["1: tune (level 5) imports train (level 5)"]),
        ("pipeline", "from fxcompress import transform", ["1: pipeline (level 6) imports __init__ (level 7)"]),
        ("solvers", "from torch import nn", ["1: solvers imports torch"]),
        ("nn", "from . import mask", ["1: relative import of ..mask"]),
    ],
)
def test_the_import_rule_itself(room, source, expected):
    assert list(violations(room, source)) == expected


def test_every_room_has_a_level():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert names - {"__pycache__"} <= set(LEVELS)


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 300}


def test_files_begin_by_saying_what_they_hold():
    def says(path: Path) -> bool:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        return bool(docstring) and re.fullmatch(r"[^\n]+[.:](\n\n.*)?", docstring, re.DOTALL) is not None

    assert not [str(path.relative_to(ROOT)) for path in FILES if not says(path)]


@pytest.mark.parametrize("name", ["passes", "policies", "solvers"])
def test_root_links_lead_into_the_package(name):
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("fxcompress") / name
    assert (link / "__init__.py").is_file()


def test_versions_agree():
    assert PROJECT["version"] == metadata.version("fxcompress") == fxcompress.__version__


def test_constraints_pin_every_direct_dependency():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"].values()
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *extras)):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
