"""FILE.json: what a run found so far, whole at every moment, and where a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from fm import lock
from fm.benchmark.core import ResultRow
from fm.errors import UserError
from fm.files import atomic_write, read_json
from fm.training.config import config_differences

SCHEMA = 1
# Of a stopped run these must be the same, or its rows could not stand beside new ones.
_FIXED = ("config", "device", "versions", "xla_flags")


def begin(fresh: dict[str, Any], out: pathlib.Path) -> dict[str, Any]:
    """The results to go on from: those in the file if they are of the same run, or the fresh ones.

    Raises:
      UserError: the file cannot be written, is another process's, or holds something else.
    """
    if out.suffix != ".json":
        raise UserError(f"--out={out}: takes a file name that ends in .json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK) or out.is_dir():
            raise PermissionError(None, "a folder" if out.is_dir() else "not writable")
        lock.acquire(out.parent, f".{out.name}.lock")
        if not out.exists():
            return fresh
        found = read_json(out)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--out={out} cannot be used ({reason}); it takes a file that can be written"
        ) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "rows" not in found:
        raise UserError(f"--out={out} is there and holds no benchmark; take another name")
    changed = {}
    for part in _FIXED:
        mine = json.loads(json.dumps(fresh[part]))
        changed |= config_differences({part: found.get(part)}, {part: mine})
    if changed:
        shown = [f"{name}: {was} -> {now}" for name, (was, now) in changed.items()]
        raise UserError(
            f"--out={out} holds another benchmark ({'; '.join(shown[:4])}); take another name"
        )
    return found


def rows_of(results: dict[str, Any]) -> list[ResultRow]:
    """The rows of results, as they were measured."""
    names = [field.name for field in dataclasses.fields(ResultRow)]
    return [ResultRow(**{name: row.get(name) for name in names}) for row in results["rows"]]


def write(results: dict[str, Any], out: pathlib.Path) -> None:
    """Writes the results, whole or not at all."""
    atomic_write(out, json.dumps(results, indent=1, allow_nan=False).encode())
