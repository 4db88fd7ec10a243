"""Every fault that the guard checks for is found."""

import os
import pathlib
import sys
import types

import pytest

from experiments import cli
from fm.errors import UserError
from fm.training.signals import Interrupted
from tests.fuzz import helpers_guard as guard


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """`ended(main)` is the outcome of an experiment with this main function."""

    def run(main):
        fake = types.ModuleType("experiments.fake", "An experiment of this test.")
        fake.define, fake.main = lambda values: cli.define_out(values, "runs/x"), main
        monkeypatch.setitem(sys.modules, "experiments.fake", fake)
        monkeypatch.setitem(guard.WORK, "fake", [])
        return guard.run("fake", [f"--out={tmp_path / 'out'}"], tmp_path / "out")

    return run


def written(values, name):
    out = pathlib.Path(values["out"].value)
    out.mkdir()
    (out / name).write_text("half")


def refuses(values):
    raise UserError("no")


def test_a_refusal_and_the_start_of_work(ended):
    assert ended(refuses) == guard.Outcome(2, "", "error: no")

    def interrupted(values):
        raise Interrupted("work would begin")

    assert ended(interrupted).code == 130


def test_a_bug(ended):
    def main(values):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        ended(main)


def test_a_traceback_that_is_printed(ended):
    def main(values):
        print("Traceback (most recent call last):", file=sys.stderr)
        refuses(values)

    with pytest.raises(AssertionError, match="Traceback"):
        ended(main)


def test_a_file_left_by_a_refused_command(ended):
    def main(values):
        written(values, "config.json")
        refuses(values)

    with pytest.raises(AssertionError, match=r"config\.json"):
        ended(main)


def test_a_partial_file_left(ended):
    with pytest.raises(AssertionError, match=r"a\.partial"):
        ended(lambda values: written(values, "a.partial"))


def test_an_endless_loop(ended, monkeypatch):
    monkeypatch.setattr(guard, "MAX_CPU_SECONDS", 0.2)

    def main(values):
        while True:
            pass

    with pytest.raises(guard.Hangs):
        ended(main)


def test_endless_waiting(ended, monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "MAX_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(guard.Hangs):
        ended(lambda values: (tmp_path / "pipe").read_bytes())


def test_output_that_cannot_be_encoded(ended):
    with pytest.raises(UnicodeEncodeError):
        ended(lambda values: print("\udcff"))
