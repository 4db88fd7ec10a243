"""Metrics on disk: one JSON object per line for programs, TensorBoard events for people."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fm.errors import UserError
from fm.files import naming, replace
from fm.training.events import Events

Record = dict[str, Any]  # "kind" ("train" or "validation"), "step", "tokens", then figures


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard events in a folder.

    Attributes:
      kept: the records of before, up to the step the run goes on from.
    """

    def __init__(self, folder: pathlib.Path, step: int, digest: str = ""):
        """Opens the log of a run that goes on after `step`; later records are dropped.

        Raises:
          UserError: the others are not those of `digest`, where that is given.
        """
        self._path = pathlib.Path(folder) / "metrics.jsonl"
        self.kept = read(self._path, step)
        self._sum = hashlib.sha256("".join(map(_line, self.kept)).encode())
        if digest and digest != self.digest:
            raise UserError(
                f"{self._path} is damaged: its records are not those that the checkpoint of step "
                f"{step} was saved with; start anew in another folder"
            )
        replace(self._path, "".join(map(_line, self.kept)))
        self._file = self._path.open("a", encoding="utf-8")
        self._events = Events(self._path.parent, step)

    def write(self, record: Record) -> None:
        """Adds a record; what is not a number stays out of TensorBoard."""
        with naming(self._path):
            self._file.write(_line(record))
            self._file.flush()
        self._sum.update(_line(record).encode())
        self._events.write(record)

    @property
    def digest(self) -> str:
        """SHA-256 of all records so far."""
        return self._sum.hexdigest()

    def flush(self) -> None:
        """Brings every record to disk, before a checkpoint vouches for them.

        Raises:
          OSError: it could not, or the file was removed.
        """
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self._there():
                raise FileNotFoundError(errno.ENOENT, "was removed while the run wrote to it")
        self._events.flush()

    def _there(self) -> bool:
        """Whether what it writes to is what bears the name."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Closes both."""
        with naming(self._path), contextlib.closing(self._events):
            self._file.close()


def read(path: pathlib.Path, step: int | None = None) -> list[Record]:
    """The records of a `metrics.jsonl` up to `step`; a last line cut short is not one."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if step is None or record.get("step", 0) <= step:
            records.append(record)
    return records


def curve(
    records: list[Record], unit: str, groups: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Figures over tokens seen.

    Args:
      records: of one run.
      unit: name of the figure, `bits_per_byte`, `bits_per_dimension` or `loss`.
      groups: of joint training, with the name of the figure of each.

    Returns:
      `tokens` and `value`, of training; `validation_tokens` and `validation`; of each group its
      own as `GROUP/value` and `GROUP/validation`, and its `GROUP/share` of the pieces since the
      value before.
    """
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    apart = {}
    for group, name in (groups or {}).items():
        apart[f"{group}/value"] = [record[name] for record in train]
        apart[f"{group}/validation"] = [record[name] for record in validation]
        apart[f"{group}/share"] = [record[f"{group}/share"] for record in train]
    return {
        "tokens": [record["tokens"] for record in train],
        "value": [record[unit] for record in train],
        "validation_tokens": [record["tokens"] for record in validation],
        "validation": [record[unit] for record in validation],
        **apart,
    }


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
