"""Metrics on disk: one JSON object per line for programs, TensorBoard events for people."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]  # "kind" ("train" or "validation"), "step", "tokens", then figures


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard events in a folder.

    Attributes:
      kept: the records of before, up to the step the run goes on from.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Opens the log of a run that goes on after `step`; later records are dropped."""
        # It imports all of PyTorch where that is installed: not for who trains nothing.
        from tensorboardX import SummaryWriter

        self._path = pathlib.Path(folder) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.kept = read(self._path, step)
        # Whole or not at all: a run killed here must find the old file or the new one.
        fresh = self._path.with_suffix(".part")
        fresh.write_text("".join(map(_line, self.kept)), encoding="utf-8")
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Adds a record; what is not a number stays out of TensorBoard."""
        self._file.write(_line(record))
        self._file.flush()
        for name, figure in record.items():
            if name not in ("kind", "step", "tokens") and figure is not None:
                self._events.add_scalar(f"{record['kind']}/{name}", figure, record["step"])

    def flush(self) -> None:
        """Brings every record to disk, before a checkpoint vouches for them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        self._events.close()


def read(path: pathlib.Path, step: int | None = None) -> list[Record]:
    """The records of a `metrics.jsonl` up to `step`; a last line cut short is not one."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if step is None or record["step"] <= step:
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
