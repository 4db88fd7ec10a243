"""constraints.txt holds names and versions alone, of everything that fm and its tests require."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import constraints

ROOT = Path(__file__).parents[1]


def pinned():
    lines = constraints.PATH.read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_lines_are_names_and_versions():
    lines = pinned()
    assert lines == sorted(set(lines), key=lambda line: line.partition("==")[0])
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", line) for line in lines)
    text = constraints.PATH.read_text()
    assert "://" not in text and "python -m tests.constraints" in text


def test_every_requirement_is_pinned_to_a_version_it_accepts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = dict(line.split("==") for line in pinned())
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} is pinned to {version}"


def test_what_is_required_is_found_through_others():
    found = constraints.required()
    assert {"jaxlib", "pytest", "pluggy", "ml-dtypes"} <= found.keys() and "fm" not in found


def test_cleaning_keeps_results_and_git_ignores_builds():
    rule = (ROOT / "Makefile").read_text().partition("\nclean:\n")[2].partition("\n\n")[0]
    assert ".venv" in rule and "runs" not in rule
    assert "build/" in (ROOT / ".gitignore").read_text().split()
