"""SHA-256 of every file of a checkpoint: part of it from the start, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence

from fm.files import read_json, replace

_NAME = "digests.json"


def write(folder: pathlib.Path) -> None:
    """Writes the digests of all files below the folder's own folders."""
    found = {name: _digest(folder / name) for name in sorted(_names(folder))}
    replace(folder / _NAME, json.dumps(found, indent=0))


def check(folder: pathlib.Path, parts: Sequence[str] | None = None) -> None:
    """Compares every file with its digest; with `parts`, those of some of the folder's folders.

    Raises:
      ValueError: a file differs, is missing or has no digest; names it.
    """
    path = folder / _NAME
    if not path.is_file():
        raise ValueError(f"it has no {_NAME}")
    try:
        found = read_json(path)
    except ValueError:
        raise ValueError(f"{_NAME} is not JSON") from None
    for name in sorted(_names(folder) | found.keys()):
        if parts is not None and name.split("/")[0] not in parts:
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _digest(folder / name) != found.get(name):
            raise ValueError(f"{name} is not what was written")


def _names(folder: pathlib.Path) -> set[str]:
    found = (path for path in folder.glob("*/**/*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
