"""How two configs differ: that of a run, as JSON, and that of whoever goes on with it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from fm.errors import UserError


def must_agree(folder: pathlib.Path, saved: dict, now: dict) -> None:
    """Sees that a run goes on as it began.

    Raises:
      UserError: the run in `folder` was another; names every field that differs.
    """
    found = differences(saved, now)
    if found:
        fields = ", ".join(
            f"{name}={was!r} (now {value!r})" for name, (was, value) in found.items()
        )
        raise UserError(f"{folder} holds a run with {fields}; take those values, or another folder")


def differences(saved: dict, now: dict) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, by dotted name: (saved, now); "absent" where there is none."""
    left, right = _flat(saved), _flat(json.loads(json.dumps(now)))
    return {
        name: (left.get(name, "absent"), right.get(name, "absent"))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, "absent") != right.get(name, "absent")
    }


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
