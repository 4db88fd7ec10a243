"""Metrics on disk: `metrics.jsonl`, one JSON object per line, and TensorBoard events.

The tracker of `fm.training.trackers.tracking`, if one is active, gets the same records.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from fm.errors import UserError
from fm.files import atomic_write, oserror_with_filename
from fm.training.trackers import TrackedRun

MetricRecord = dict[str, Any]  # "kind" ("train" or "validation"), "step", "tokens", then metrics

_FLUSH_SECONDS = 10.0


class MetricWriter:
    """Appends metric records to `metrics.jsonl` and to TensorBoard events in a folder.

    Attributes:
      records: records found on opening, up to the step the run resumes from.
    """

    def __init__(self, folder: pathlib.Path, step: int, digest: str = ""):
        """Opens the log of a run that resumes after `step`; later records are removed.

        Raises:
          UserError: `digest` is given and is not that of the remaining records.
        """
        self._path = pathlib.Path(folder) / "metrics.jsonl"
        self.records = read_records(self._path, step)
        lines = "".join(map(_to_line, self.records))
        self._hash = hashlib.sha256(lines.encode())
        if digest and digest != self.digest:
            raise UserError(
                f"{self._path} is damaged: its records are not those that the checkpoint of step "
                f"{step} was saved with; start again in another folder"
            )
        atomic_write(self._path, lines)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = TensorBoardWriter(self._path.parent, step)
        self._tracked = TrackedRun(self._path.parent)

    def write(self, record: MetricRecord) -> None:
        """Appends a record; values that are not numbers are left out of TensorBoard."""
        line = _to_line(record)
        with oserror_with_filename(self._path):
            self._file.write(line)
            self._file.flush()
        self._hash.update(line.encode())
        self._tensorboard.write(record)
        self._tracked.write(record)

    @property
    def digest(self) -> str:
        """SHA-256 of all records so far."""
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Writes all records through to disk, before a checkpoint refers to their digest.

        Raises:
          OSError: it failed, or the file was removed.
        """
        with oserror_with_filename(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self._still_exists():
                raise FileNotFoundError(errno.ENOENT, "was removed while the run wrote to it")
        self._tensorboard.flush()

    def _still_exists(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Closes both files, and the tracker."""
        self._tracked.close()
        with oserror_with_filename(self._path), contextlib.closing(self._tensorboard):
            self._file.close()


class TensorBoardWriter:
    """Writes scalars to TensorBoard events in the calling thread, where write errors are raised.

    tensorboardX's `SummaryWriter` writes in a thread of its own, which dies on a full disk; its
    queue then fills up and the run waits forever. Here the error is raised in the run.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Opens a new file; TensorBoard hides events after `step` in earlier ones."""
        # Imported here because it imports PyTorch if that is installed.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar

        self._event, self._scalar, self._checksum = Event, scalar, masked_crc32c
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._file = self._path.open("wb")
        self._flushed = time.monotonic()
        self._write_event(file_version="brain.Event:2")
        self._write_event(session_log=SessionLog(status=SessionLog.START), step=step + 1)

    def write(self, record: MetricRecord) -> None:
        """Writes the numbers of a record as scalars named KIND/METRIC."""
        for name, value in record.items():
            if name not in ("kind", "step", "tokens") and value is not None:
                summary = self._scalar(f"{record['kind']}/{name}", value)
                self._write_event(summary=summary, step=record["step"])
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes all events through to disk."""
        with oserror_with_filename(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with oserror_with_filename(self._path):
            self._file.close()

    def _write_event(self, **content: Any) -> None:
        """Writes one TFRecord: length, its checksum, the event, its checksum."""
        event = self._event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, event)]
        with oserror_with_filename(self._path):
            self._file.write(length + checksums[0] + event + checksums[1])


def read_records(path: pathlib.Path, step: int | None = None) -> list[MetricRecord]:
    """Returns the records of a `metrics.jsonl` up to `step`, stopping at a truncated line."""
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


def learning_curve(
    records: list[MetricRecord], metric_name: str, groups: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Returns lists of a metric's training and validation values and of the tokens seen at each.

    Args:
      records: of one run.
      metric_name: `bits_per_byte`, `bits_per_dimension` or `loss`.
      groups: metric name by group, of a multitask run.

    Returns:
      Lists by name: `tokens` and `value` of training; `validation_tokens` and `validation`; for
      each group `GROUP/value`, `GROUP/validation` and `GROUP/share`, its share of the tokens
      since the record before.
    """
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    by_group = {}
    for group, name in (groups or {}).items():
        by_group[f"{group}/value"] = [record[name] for record in train]
        by_group[f"{group}/validation"] = [record[name] for record in validation]
        by_group[f"{group}/share"] = [record[f"{group}/share"] for record in train]
    return {
        "tokens": [record["tokens"] for record in train],
        "value": [record[metric_name] for record in train],
        "validation_tokens": [record["tokens"] for record in validation],
        "validation": [record[metric_name] for record in validation],
        **by_group,
    }


def _to_line(record: MetricRecord) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
