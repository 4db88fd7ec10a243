"""Which checkpoint of a folder can be read, and what to tell of those that cannot."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import TypeVar

import orbax.checkpoint as ocp

from fm.errors import UserError

T = TypeVar("T")

_log = logging.getLogger(__name__)


def newest_readable(
    folder: pathlib.Path,
    manager: ocp.CheckpointManager,
    read: Callable[[int], T],
    only: int | None = None,
) -> tuple[T | None, list[int]]:
    """What `read` gives for the newest step it can read, and the newer steps it cannot.

    With `only`, no other step is tried.

    Raises:
      UserError: from `read`, or if there are checkpoints and none can be read.
    """
    unreadable = []
    steps = sorted(manager.all_steps(), reverse=True) if only is None else [only]
    for step in steps:
        try:
            return read(step), unreadable
        except UserError:
            raise
        # A torn file surfaces as whatever its reader happens to stumble over.
        except Exception as error:
            _log.warning(
                "checkpoint of step %d in %s is unreadable: %s",
                step,
                folder,
                reason(error, folder),
            )
            unreadable.append(step)
    if unreadable:
        raise UserError(
            f"no checkpoint in {folder} can be read (steps {unreadable}); delete the folder to "
            "start anew, or give another one"
        )
    return None, []


def left_in(folder: pathlib.Path) -> str:
    """What to tell of the checkpoints in a folder that one more could not be written to."""
    try:
        steps = [int(each.name) for each in folder.iterdir() if each.name.isdigit()]
    except FileNotFoundError:
        steps = []
    except OSError:
        return "those before it were left alone"
    if not steps:
        return "there is no other"
    return f"the one of step {max(steps)} is kept, and the same command goes on from there"


def reason(error: Exception, folder: pathlib.Path) -> str:
    """The first line of what an error says; the system's own words where there are any."""
    try:
        folder.stat()
    except FileNotFoundError:
        return "the folder is gone"
    except OSError as gone:
        # To Orbax, what it may not look at does not exist.
        error = gone
    told = getattr(error, "strerror", None) or str(error)
    if code := re.search(r"os_error_code='(\d+)'", told):
        told = os.strerror(int(code[1]))
    return (told.splitlines() or [""])[0] or type(error).__name__
