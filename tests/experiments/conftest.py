"""Experiments called in-process, on a data cache of their own and recipes that take seconds."""

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
    """Recipes of two settings and four steps, whatever the profile."""
    monkeypatch.setattr(
        presets, "modality_recipe", lambda modality, profile="default": recipe(modality)
    )


@dataclasses.dataclass
class Called:
    """What a call gave."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line, which is the last; nothing may look like a traceback."""
        lines = self.err.strip().splitlines()
        assert "Traceback" not in self.err + self.out
        assert [line.startswith("error: ") for line in lines].count(True) == 1, self.err
        assert lines[-1].startswith("error: ")
        return lines[-1]


@pytest.fixture
def call(capsys):
    """`call(name, *arguments)` runs an experiment."""

    def run(name, *arguments):
        module = importlib.import_module(f"experiments.{name}")
        capsys.readouterr()
        code = cli.call(name, module.__doc__, module.define, module.main, list(arguments))
        return Called(code, *capsys.readouterr())

    return run


@pytest.fixture
def reviews(tmp_path):
    """A CSV of 120 texts in two classes, and a function that writes others."""

    def write(rows, name="reviews.csv", header=("text", "label")):
        path = tmp_path / name
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    inputs, labels = texts(120, 0)
    write.rows = list(zip(inputs, np.array(["bad", "good"])[labels], strict=True))
    return write


_HOLDER = """
import pathlib, sys
from fm import lock
lock.acquire(pathlib.Path(sys.argv[1]), sys.argv[2])
print(flush=True)
input()
"""


@pytest.fixture
def held():
    """`with held(folder) as process:` another process works there."""

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
