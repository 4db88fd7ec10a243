"""Fixtures that call experiments in this process, with their own cache and tiny recipes."""

import contextlib
import csv
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import cli
from fm.study import presets
from tests.study.helpers_study import recipe, texts


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("fm_cache")


@pytest.fixture(autouse=True)
def _own_cache(session_cache, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(session_cache))


@pytest.fixture
def tiny(monkeypatch):
    """Recipes of two trials and four steps in every profile."""
    monkeypatch.setattr(
        presets, "modality_recipe", lambda modality, profile="default": recipe(modality)
    )


@dataclasses.dataclass
class Called:
    """Exit code and output of a call."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only error line, which is the last one; there is no traceback."""
        lines = self.err.strip().splitlines()
        assert "Traceback" not in self.err + self.out
        assert [line.startswith("error: ") for line in lines].count(True) == 1, self.err
        assert lines[-1].startswith("error: ")
        return lines[-1]


@pytest.fixture
def call(capsys):
    """`call(name, *arguments)` runs an experiment and returns its `Called`."""

    def run(name, *arguments):
        module = importlib.import_module(f"experiments.{name}")
        capsys.readouterr()
        code = cli.call(
            name,
            module.__doc__,
            module.define,
            module.main,
            list(arguments),
            dry_run=getattr(module, "dry_run", None) or _own_dry_run(name, module),
        )
        return Called(code, *capsys.readouterr())

    return run


@pytest.fixture
def reviews(tmp_path):
    """Writes CSV files of texts with classes; `reviews.rows` are 120 in two classes."""

    def write(rows, name="reviews.csv", header=("text", "label")):
        path = tmp_path / name
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    inputs, labels = texts(120, 0)
    write.rows = list(zip(inputs, np.array(["bad", "good"])[labels], strict=True))
    return write


def _own_dry_run(name, module):
    """The main function of an experiment that handles --dry_run there."""
    return module.main if "dry_run=main" in Path(module.__file__).read_text() else None


_HOLDER = """
import pathlib, sys
from fm import lock
lock.acquire(pathlib.Path(sys.argv[1]), sys.argv[2])
print(flush=True)
input()
"""


@pytest.fixture
def held():
    """`with held(folder) as process:` another process holds the lock of the folder."""

    @contextlib.contextmanager
    def hold(folder, name=".lock"):
        folder.mkdir(parents=True, exist_ok=True)
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(folder), name],
            cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline()
        try:
            yield holder
        finally:
            holder.kill()
            holder.communicate()

    return hold
