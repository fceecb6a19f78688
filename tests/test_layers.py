"""Dependencies point one way: docs/contributing.md has the layers, and every import of adt_fast keeps to them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adt_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def layers() -> dict[str, int]:
    """The layer of each module, from 0 at the top of the table, on which all may depend."""
    page = (ROOT / "docs" / "contributing.md").read_text()
    rows = page[page.index("| layer | modules") :].split("\n\n")[0].splitlines()[2:]
    modules = [re.findall(r"`(\w+)`", row) for row in rows]
    return {name: layer for layer, names in enumerate(modules) for name in names}


LAYERS = layers()


def module_of(path: Path) -> str:
    """The module or folder of adt_fast that a file belongs to; in folders without a name of the API, the file."""
    return module_named(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def module_named(dotted: str) -> str:
    """The module that a dotted name within adt_fast belongs to: ``_support.checks``, ``attacks``."""
    first, *rest = dotted.split(".")
    inside = first.startswith("_") and (PACKAGE / first).is_dir() and rest and rest[0] != "__init__"
    return f"{first}.{rest[0]}" if inside else first


def imported(tree: ast.Module, path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, in full, and whether for type checkers alone."""
    package = path.relative_to(ROOT).parent.parts
    guarded = for_types(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield from ((f"{origin}.{alias.name}", id(node) in guarded) for alias in node.names)


def for_types(tree: ast.Module) -> set[int]:
    """What stands below ``if TYPE_CHECKING:``."""
    guards = (n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {id(node) for guard in guards for node in guard.body}


def layer_of(module: str) -> int:
    """Its own, or that of the folder it is in; below all others where the table has neither."""
    return LAYERS.get(module.partition(".")[0], len(LAYERS))


def dependencies(path: Path, source: str) -> list[tuple[str, bool]]:
    """The modules of adt_fast, other than its own, that a file depends on, and whether for type checkers alone."""
    found = []
    for name, only_types in imported(ast.parse(source), path):
        package, _, rest = name.partition(".")
        assert package not in ("benchmarks", "studies", "tests", "tools"), f"{path.name} imports {name}"
        target = module_named(rest)
        if package == "adt_fast" and target not in (module_of(path), "_C", "__version__"):
            found.append((target, only_types))
    return found


def violations(path: Path, source: str) -> list[str]:
    layer = layer_of(module_of(path))
    return [
        f"{path.relative_to(ROOT)} imports {target!r}, which is in a layer below its own"
        for target, _ in dependencies(path, source)
        if layer_of(target) > layer
    ]


def test_every_module_has_a_layer_and_every_layer_its_modules():
    modules = {module_of(path).partition(".")[0] for path in SOURCES} - {"__init__"}
    assert sorted(LAYERS) == sorted(modules)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_to_the_layers(path):
    if path != PACKAGE / "__init__.py":
        assert violations(path, path.read_text()) == []


def test_there_are_no_circles():
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        needs = {target for target, only_types in dependencies(path, path.read_text()) if not only_types}
        graph.setdefault(module_of(path), set()).update(needs)
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    "file, line",
    [
        ("ops.py", "from .attacks import PGD"),
        ("attacks/pgd.py", "from ..trainer import Trainer"),
        ("attacks/pgd.py", "from .. import trainer"),
        ("trainer.py", "    import adt_fast.cli"),
        ("methods/joint.py", "from ..experiment import TrainingRun"),
        ("noise.py", "from adt_fast.ops import normal"),
        ("_support/checks.py", "from .._operators.native import build_info"),
    ],
)
def test_a_planted_import_is_found(file, line):
    path = PACKAGE / file
    source = path.read_text() + f"\ndef late():\n    {line.strip()}\n"
    assert len(violations(path, source)) == 1


def test_native_sources_know_nothing_of_torch_and_one_of_python():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    included = {path: set(re.findall(r'#include [<"](\w+)', path.read_text())) for path in sources}
    assert not [path.name for path, names in included.items() if names & {"torch", "ATen", "c10"}]
    assert [path.name for path, names in included.items() if names & {"pybind11", "Python"}] == ["bindings.cpp"]
