"""Imports point one way: to a lower layer, or to the same layer in the same folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import ganprune as gp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ganprune"
# The rooms in the order in which data flows; a module imports from its own room and from those before it.
ROOMS = [
    "core",
    "masks",
    "data",
    "networks",
    "losses",
    "scores",
    "allocation",
    "metrics",
    "training",
    "pruning",
    "dynamic",
    "channels",
    "inference",
    "lottery",
    "records",
    "plots",
    "experiments",
    "cli",
    "__main__",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return a file's module name below the package, such as ``pruning.scores``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "ganprune"


def room(module: str) -> int:
    """Return the place of a module's room in the order."""
    return ROOMS.index(module.partition(".")[0])


def exists(module: str) -> bool:
    """Return whether a dotted name below the package is a module."""
    path = PACKAGE.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path: Path) -> set[str]:
    """Return the package's modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            inner = name.removeprefix("ganprune.") if name.startswith("ganprune.") else None
            if name == "ganprune":
                found.add("ganprune")
            while inner and not exists(inner):
                inner = inner.rpartition(".")[0]
            if inner is not None:
                found.add(inner or "ganprune")
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_from_its_own_room_and_those_before(path: Path) -> None:
    own = module_name(path)
    if own == "ganprune":
        assert imported(path) == set()  # lazy: it imports a module when a name is first used
        return
    for other in imported(path) - {"ganprune"}:
        assert room(other) <= room(own), f"{own} imports {other}"


def test_every_room_is_there() -> None:
    found = {
        path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.name[:2] != "__"
    }
    assert {"__main__", *found} - {"assets", "py.typed", "py"} == set(ROOMS)


def test_no_module_is_longer_than_350_lines() -> None:
    lengths = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_relative_imports() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_no_cycles() -> None:
    edges = {module_name(path): imported(path) - {"ganprune"} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail, module])
        if module not in done:
            for other in sorted(edges.get(module, ())):
                visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, ganprune; "
        "print(*sorted({'torch', 'torchvision', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == ""


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute prnue"):
        _ = gp.prnue


def public(tree: ast.AST) -> list[str]:
    """Return what is wrong with a piece of code's use of the package: names that are not public."""
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node).split(".")
            if path[0] == "gp" and len(path) == 2 and path[1] not in {*gp.__all__, "__version__"}:
                wrong.append(".".join(path))
            if path[0] == "gp" and len(path) == 3 and path[1] in ROOMS:
                room_names = getattr(getattr(gp, path[1], None), "__all__", None)
                if room_names is not None and path[2] not in room_names:
                    wrong.append(".".join(path))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ganprune":
            wrong += [f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
    return wrong


def code_of(path: Path) -> str:
    """Return a notebook's code, without lines that only IPython reads."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))]
    return "\n".join(lines)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_use_public_names_only(path: Path) -> None:
    assert public(ast.parse(code_of(path))) == []


def test_the_command_line_uses_public_names_only() -> None:
    for path in (PACKAGE / "__main__.py", *(PACKAGE / "cli").glob("*.py")):
        assert public(ast.parse(path.read_text(encoding="utf-8"))) == [], path
