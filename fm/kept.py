"""What a run has made so far, kept as JSON beside a digest of itself: whole, or said not to be."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from fm.errors import UserError
from fm.files import read_json, replace


def keep(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON-able value; see `read`."""
    value = json.loads(json.dumps(value))  # as it will be read
    replace(path, json.dumps({"sha256": _digest(value), "value": value}))


def read(path: pathlib.Path) -> Any:
    """What `keep` wrote.

    Raises:
      UserError: the file is not what was written.
    """
    try:
        content = read_json(path)
        if content["sha256"] == _digest(content["value"]):
            return content["value"]
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is damaged; delete it, and it is made again")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
