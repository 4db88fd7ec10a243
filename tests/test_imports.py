"""The rooms of `fm` and the one direction in which they may import each other."""

import ast
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
# Every room may import these, and they import no room.
FREE = ("config_io", "errors", "files", "lock")
FILES = sorted((ROOT / "fm").rglob("*.py"))


def imported(source, package):
    """Absolute names of all modules a file imports, wherever in it; `package` is its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from . import x": as many levels up as there are dots.
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(room, names):
    """Imports that a file in a room of `fm` may not have."""
    allowed = ORDER[: ORDER.index(room) + 1] if room in ORDER else ()
    for name in names:
        top, *rest = name.split(".")
        backward = top == "fm" and rest and rest[0] not in (*allowed, *FREE)
        if backward or top in ("absl", "experiments", "tests"):
            yield name


def room_of(path):
    parts = path.relative_to(ROOT / "fm").parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path):
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    names = list(imported(path.read_text(encoding="utf-8"), package))
    assert list(faults(room_of(path), names)) == []


def test_every_room_has_its_place_in_the_order():
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms <= {*ORDER, *FREE}
    assert len(FILES) > 30


@pytest.mark.parametrize(
    ("room", "line"),
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
def test_a_back_edge_is_found(room, line):
    assert list(faults(room, imported(line, f"fm.{room}")))


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("training", "from fm.model import flops"),
        ("training", "from fm.training.metric_writer import read"),
        ("attention", "from fm.errors import UserError"),
        ("model", "from . import layers"),
        ("adaptation", "from fm.evaluation import ner"),
    ],
)
def test_a_forward_edge_is_not(room, line):
    assert not list(faults(room, imported(line, f"fm.{room}")))
