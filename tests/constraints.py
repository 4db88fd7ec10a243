"""Writes constraints.txt: the version of every package that fm and its tests run with here.

    python -m tests.constraints

Run it after `make test` has passed in a fresh environment of Python 3.11. It takes what `fm[test]`
requires, directly or not, and leaves out what else is installed.
"""

import importlib.metadata
import pathlib
import platform
import sys
import tomllib
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PATH = pathlib.Path(__file__).parents[1] / "constraints.txt"
PYTHON = "3.11"
_HEAD = (
    "# Versions that the tests passed with, for Python {python}:\n"
    '#     python -m pip install -e ".[test]" -c constraints.txt\n'
    "# Written by `make constraints` (python -m tests.constraints).\n"
)


def required(extras: tuple[str, ...] = ("test",)) -> dict[str, str]:
    """Returns the version of every package that fm requires, directly or not, by name."""
    project = tomllib.loads((PATH.parent / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][each] for each in extras)]
    found: dict[str, str] = {}
    seen, pending = set(), [pair for group in groups for pair in _named(group, "")]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        name, extra = current
        distribution = importlib.metadata.distribution(name)
        # A local build is of the same public version.
        found[canonicalize_name(name)] = Version(distribution.version).public
        pending += _named(distribution.requires or (), extra)
    return dict(sorted(found.items()))


def _named(requirements: Iterable[str], extra: str) -> list[tuple[str, str]]:
    """Returns the (package, extra) pairs of those requirements that hold here; "" for no extra."""
    parsed = [Requirement(text) for text in requirements]
    return [
        (each.name, own)
        for each in parsed
        if each.marker is None or each.marker.evaluate({"extra": extra})
        for own in ("", *each.extras)
    ]


def content() -> str:
    """Returns the lines of constraints.txt."""
    lines = [f"{name}=={version}\n" for name, version in required().items()]
    return _HEAD.format(python=PYTHON) + "".join(lines)


if __name__ == "__main__":
    if not platform.python_version().startswith(f"{PYTHON}."):
        sys.exit(f"error: constraints.txt is of Python {PYTHON}, not {platform.python_version()}")
    PATH.write_text(content(), encoding="utf-8")
    print(PATH)
