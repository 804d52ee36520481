"""Imports point one way, and the core needs neither Flower nor Ray."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "privacy": {"privacy"},
    "fedllm": {"privacy", "fedllm"},
    "client": {"privacy", "fedllm", "client"},
    "server": {"privacy", "fedllm", "server"},
    "simulations": {"privacy", "fedllm", "client", "server", "simulations"},
}
FLOWER = {"flwr", "ray", "flwr_datasets"}

IMPORT_ALL = """
import importlib, pkgutil, sys

BLOCKED = {"flwr", "ray", "flwr_datasets"}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent())
try:
    import flwr
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the import hook blocks nothing")
count = 0
for top in ("privacy", "fedllm"):
    package = importlib.import_module(top)
    for found in pkgutil.walk_packages(package.__path__, top + "."):
        importlib.import_module(found.name)
        count += 1
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}, "imported after all"
print(count)
"""


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, within functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in files
        if (found := (imported(path) & set(ALLOWED)) - ALLOWED[package])
    }
    assert wrong == {}


def test_privacy_knows_no_models_and_no_settings_library() -> None:
    for path in (ROOT / "privacy").rglob("*.py"):
        assert not imported(path) & {"transformers", "peft", "pydantic", *FLOWER}, path


def test_flower_is_imported_by_the_apps_alone() -> None:
    for path in sorted((ROOT / "fedllm").rglob("*.py")):
        # The synthetic partitions are flwr-datasets' and are imported when one is asked for.
        allowed = {"flwr_datasets"} if path.name == "partition.py" else set()
        assert imported(path) & FLOWER <= allowed, path


def test_only_benchmarks_import_opacus() -> None:
    """It is installed for comparison (an extra), and a run must not need it."""
    using = {
        path.relative_to(ROOT).parts[:2]
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if "opacus" in imported(path)
    }
    assert using == {("simulations", "benchmarks"), ("simulations", "attacks")}


def test_core_imports_without_flower_and_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    modules = [p for top in ("privacy", "fedllm") for p in (ROOT / top).rglob("*.py")]
    packages = [p for p in modules if p.name == "__init__.py" and p.parent.parent == ROOT]
    assert int(done.stdout) == len(modules) - len(packages)


MOST_FILES = 14
"""Files of one folder, so that a reader finds his way."""
MOST_LINES = 450
"""Lines of one file, so that it has one subject."""
LONGER: set[str] = set()
"""Files that are longer. The list only shrinks."""


def imported_modules() -> dict[str, set[str]]:
    """What each module of the product imports of it, within functions and for types alone included."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= (whole & set(paths)) or {str(node.module)}
        found[module] = (names & set(paths)) - {module}
    return found


def test_no_modules_import_one_another() -> None:
    """Neither directly nor around a circle, type-only imports included."""
    sorter = graphlib.TopologicalSorter(imported_modules())
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_a_folder_has_few_files() -> None:
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for package in ALLOWED
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_a_file_has_few_lines() -> None:
    longer = {
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    assert longer == LONGER
