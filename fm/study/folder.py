"""The folder of a run: whose it is, and who is at work in it."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax

from fm import lock
from fm.errors import UserError
from fm.files import read_json, replace
from fm.training.configs import differences


def holds(mine: dict[str, Any], out: pathlib.Path) -> bool:
    """Whether `out` is this run's own already.

    Args:
      mine: the run's config, JSON-able.
      out: folder, made if it is not there.

    Raises:
      UserError: the folder cannot be written, or holds a run with another config.
    """
    path = out / "config.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(None, "not writable")
        if not path.exists():
            return False
        found = differences(read_json(path), mine)
    except (OSError, ValueError) as error:
        raise _unusable(out, error) from error
    if found:
        # Of another experiment everything else differs too.
        found = {"experiment": found["experiment"]} if "experiment" in found else found
        shown = [f"{name}: {was} -> {now}" for name, (was, now) in found.items()]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"--out={out} holds a run with another config ({'; '.join(shown[:4])}{more}); "
            "take another folder, or the same flags to go on"
        )
    return True


def hold(out: pathlib.Path) -> None:
    """Makes the folder, and keeps other processes from it until this one ends.

    Raises:
      UserError: the folder cannot be written; or another process is at work there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.hold(out)
        # Of runs that were killed in the middle of a file.
        for left in out.rglob(".*.partial"):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(out, error) from error


def claim(mine: dict[str, Any], out: pathlib.Path) -> None:
    """Makes `out` this run's own, and keeps other processes from it until this one ends.

    Raises:
      UserError: as `holds` does; or another process is at work there.
    """
    # Of several processes of one run the first speaks for all.
    if jax.process_index() == 0:
        hold(out)
    if not holds(mine, out):
        replace(out / "config.json", json.dumps(mine, indent=1))


def _unusable(out: pathlib.Path, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError):
        reason = "a file is there"
    return UserError(
        f"--out={out} cannot be used ({reason}); it takes a folder that can be written"
    )
