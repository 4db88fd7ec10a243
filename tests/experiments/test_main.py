"""The console command `fm`, its list of commands, and `fm list`."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import list as listing
from experiments import main

ROOT = Path(__file__).parents[2]
EXPERIMENTS = "compare pretrain adapt generate search ablate multitask text_quality paired report"


def fm(*arguments):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments.main", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_the_console_command_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["fm"].partition(":")
    assert getattr(importlib.import_module(module), function) is main.main
    assert "experiments*" in project["tool"]["setuptools"]["packages"]["find"]["include"]


def test_without_arguments_the_commands_are_listed(capsys):
    assert main.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line[:2] == "  " and line[2] != " "]
    assert names[:2] == ["compare", "pretrain"] and names[-1] == "doctor"
    assert {*EXPERIMENTS.split(), "plan", "benchmark", "list", "attention_maps"} <= set(names)
    assert not {"main", "cli", "unify", "study_flags"} & set(names)
    assert all(len(line) <= 100 and "\t" not in line for line in lines)


def test_every_command_has_a_line():
    assert all(line.endswith((".", "?")) for line in main.commands().values())


@pytest.mark.parametrize("arguments", [(), ("list", "--help"), ("list", "arm"), ("comparr",)])
def test_what_needs_no_library_imports_none(arguments):
    done = fm(*arguments)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"jax", "numpy", "absl"} & imported and "experiments" in imported


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["compar"], "error: fm compar: no such command; did you mean compare"),
        (["zzz"], "error: fm zzz: no such command; there are compare, pretrain, "),
        (["list", "arm"], "error: fm list takes tasks, arms, "),
        (["list", "--all"], "error: --all is not a flag; fm list takes tasks, "),
    ],
)
def test_what_is_unknown_is_one_line(capsys, arguments, line):
    assert main.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_a_command_runs_as_its_module_does():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.main", "plan", "--size=124m", "--chips=8", "--foo"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: --foo is not a flag")


@pytest.mark.parametrize("kind", listing.KINDS)
def test_each_kind_is_listed_from_its_registry(capsys, kind):
    assert main.main(["list", kind]) == 0
    out = capsys.readouterr().out
    title, *rows = out.splitlines()
    assert title.startswith(f"{kind}: ") and len(rows) >= 2
    assert "\t" not in out and max(map(len, rows)) <= 100 and "None" not in out
    column = {len(row) - len(row[2:].split("  ", 1)[1].lstrip()) for row in rows if row[2] != " "}
    assert len(column) == 1


def test_what_is_registered_later_is_listed(capsys, monkeypatch):
    from fm.study.task_registry import TASKS, TaskSpec

    monkeypatch.setitem(TASKS, "bees", TaskSpec("bees", phrasings=("which bee is it?",)))
    assert main.main(["list", "tasks"]) == 0
    assert "  bees  " in capsys.readouterr().out
