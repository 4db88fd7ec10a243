"""SHA-256 of every file of a folder: part of it from the start, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence

from fm.files import read_json, replace

_NAME = "digests.json"


def write(folder: pathlib.Path, but: Sequence[str] = ()) -> None:
    """Writes the digests of all files in the folder and below, but of some."""
    found = {name: _digest(folder / name) for name in sorted(_names(folder, but))}
    replace(folder / _NAME, json.dumps(found, indent=0))


def there(folder: pathlib.Path) -> bool:
    """Whether a folder has digests."""
    return (folder / _NAME).is_file()


def check(
    folder: pathlib.Path, parts: Sequence[str] | None = None, but: Sequence[str] = ()
) -> None:
    """Compares every file with its digest.

    Args:
      folder: what `write` was called for, with the same `but`.
      parts: of the folder's own folders, those to look at; all unless given.
      but: files without a digest.

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
    if not isinstance(found, dict):
        raise ValueError(f"{_NAME} is no list of digests")
    for name in sorted(_names(folder, but) | found.keys()):
        part, below, _ = name.partition("/")
        if parts is not None and below and part not in parts:
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _digest(folder / name) != found.get(name):
            raise ValueError(f"{name} is not what was written")


def _names(folder: pathlib.Path, but: Sequence[str]) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found} - {_NAME, *but}


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
