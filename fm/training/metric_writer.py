"""TensorBoard events, written by whoever logs them.

tensorboardX's `SummaryWriter` has a thread for it. Where that meets a full disk it dies, its queue
fills, and the run waits for it for ever; here the error is the run's own.
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
from fm.files import atomic_write, with_filename

_FLUSH = 10.0  # seconds a record may lie in memory


class TensorBoardWriter:
    """An events file in a folder."""

    def __init__(self, folder: pathlib.Path, step: int):
        """Opens a file of its own; TensorBoard hides what earlier ones hold after `step`."""
        # It imports all of PyTorch where that is installed: not for who trains nothing.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar

        self._event, self._scalar, self._checksum = Event, scalar, masked_crc32c
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._file = self._path.open("wb")
        self._flushed = time.monotonic()
        self._add(file_version="brain.Event:2")
        self._add(session_log=SessionLog(status=SessionLog.START), step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record of `fm.training.metric_writer`; what is not a number stays out."""
        for name, figure in record.items():
            if name not in ("kind", "step", "tokens") and figure is not None:
                summary = self._scalar(f"{record['kind']}/{name}", figure)
                self._add(summary=summary, step=record["step"])
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Brings every record to disk."""
        with with_filename(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with with_filename(self._path):
            self._file.close()

    def _add(self, **content: Any) -> None:
        """Writes an event as a record: length, its checksum, content, its checksum."""
        event = self._event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", self._checksum(each)) for each in (length, event)]
        with with_filename(self._path):
            self._file.write(length + sums[0] + event + sums[1])


MetricRecord = dict[str, Any]  # "kind" ("train" or "validation"), "step", "tokens", then figures


class MetricWriter:
    """Appends records to `metrics.jsonl` and to TensorBoard events in a folder.

    Attributes:
      records: the records of before, up to the step the run goes on from.
    """

    def __init__(self, folder: pathlib.Path, step: int, digest: str = ""):
        """Opens the log of a run that goes on after `step`; later records are dropped.

        Raises:
          UserError: the others are not those of `digest`, where that is given.
        """
        self._path = pathlib.Path(folder) / "metrics.jsonl"
        self.records = read_records(self._path, step)
        self._sum = hashlib.sha256("".join(map(_line, self.records)).encode())
        if digest and digest != self.digest:
            raise UserError(
                f"{self._path} is damaged: its records are not those that the checkpoint of step "
                f"{step} was saved with; start anew in another folder"
            )
        atomic_write(self._path, "".join(map(_line, self.records)))
        self._file = self._path.open("a", encoding="utf-8")
        self._events = TensorBoardWriter(self._path.parent, step)

    def write(self, record: MetricRecord) -> None:
        """Adds a record; what is not a number stays out of TensorBoard."""
        with with_filename(self._path):
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
        with with_filename(self._path):
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
        with with_filename(self._path), contextlib.closing(self._events):
            self._file.close()


def read_records(path: pathlib.Path, step: int | None = None) -> list[MetricRecord]:
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


def learning_curve(
    records: list[MetricRecord], metric_name: str, groups: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Figures over tokens seen.

    Args:
      records: of one run.
      metric_name: name of the figure, `bits_per_byte`, `bits_per_dimension` or `loss`.
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
        "value": [record[metric_name] for record in train],
        "validation_tokens": [record["tokens"] for record in validation],
        "validation": [record[metric_name] for record in validation],
        **apart,
    }


def _line(record: MetricRecord) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
