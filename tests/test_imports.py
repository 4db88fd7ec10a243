"""The subpackages of `fm` import each other in one direction only, and no modules in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "parallel",
    "attention",
    "model",
    "data",
    "evaluation",
    "training",
    "planning",
    "hf",
    "adaptation",
    "study",
    "report",
    "benchmark",
)
# Every subpackage may import these modules, which import no subpackage.
FREE = ("config_io", "errors", "files", "lock", "progress_lines", "self_test", "xla_flags")
FILES = sorted((ROOT / "fm").rglob("*.py"))


def imported_modules(source, package):
    """Yields the absolute names of all modules that a file of a package imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from . import x": as many levels up as there are dots.
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden_imports(subpackage, names):
    """Yields the imports that a file of a subpackage of `fm` must not have."""
    allowed = ORDER[: ORDER.index(subpackage) + 1] if subpackage in ORDER else ()
    for name in names:
        top, *rest = name.split(".")
        backward = top == "fm" and rest and rest[0] not in (*allowed, *FREE)
        if backward or top in ("absl", "experiments", "tests"):
            yield name


def subpackage_of(path):
    parts = path.relative_to(ROOT / "fm").parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path):
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    names = list(imported_modules(path.read_text(encoding="utf-8"), package))
    assert list(forbidden_imports(subpackage_of(path), names)) == []


def test_every_subpackage_is_in_the_order():
    subpackages = {subpackage_of(path) for path in FILES} - {"__init__"}
    assert subpackages <= {*ORDER, *FREE}
    assert len(FILES) > 30


@pytest.mark.parametrize(
    ("subpackage", "line"),
    [
        ("model", "from fm.training import loop"),
        ("model", "import fm.training.train_loop"),
        ("model", "from fm import training"),
        ("attention", "from ..model import config"),
        ("data", "def f():\n    import experiments.compare"),
        ("report", "from absl import flags"),
        ("errors", "from fm.data import batches"),
    ],
)
def test_a_backward_import_is_found(subpackage, line):
    assert list(forbidden_imports(subpackage, imported_modules(line, f"fm.{subpackage}")))


@pytest.mark.parametrize(
    ("subpackage", "line"),
    [
        ("training", "from fm.model import flops"),
        ("training", "from fm.training.metric_writer import read"),
        ("attention", "from fm.errors import UserError"),
        ("model", "from . import layers"),
        ("adaptation", "from fm.evaluation import ner"),
    ],
)
def test_a_forward_import_is_allowed(subpackage, line):
    assert not list(forbidden_imports(subpackage, imported_modules(line, f"fm.{subpackage}")))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_modules_import_each_other():
    """Imports within functions and for type checkers count."""
    files = {module_name(path): path for path in (*FILES, *(ROOT / "experiments").rglob("*.py"))}
    graph = {
        name: {other for other in imported_modules(path.read_text("utf-8"), "") if other in files}
        for name, path in files.items()
    }
    for name, others in graph.items():
        # "from fm.data import load" names the package as well, which then imports nothing else.
        packages = {other.rpartition(".")[0] for other in others}
        others -= {name} | {each for each in packages if files.get(each, ROOT).stem == "__init__"}
    assert tuple(graphlib.TopologicalSorter(graph).static_order())
