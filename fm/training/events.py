"""TensorBoard events, written by whoever logs them.

tensorboardX's `SummaryWriter` has a thread for it. Where that meets a full disk it dies, its queue
fills, and the run waits for it for ever; here the error is the run's own.
"""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import time
from typing import Any

from fm.files import naming

_FLUSH = 10.0  # seconds a record may lie in memory


class Events:
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
        """Adds a record of `fm.training.log`; what is not a number stays out."""
        for name, figure in record.items():
            if name not in ("kind", "step", "tokens") and figure is not None:
                summary = self._scalar(f"{record['kind']}/{name}", figure)
                self._add(summary=summary, step=record["step"])
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Brings every record to disk."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            self._file.close()

    def _add(self, **content: Any) -> None:
        """Writes an event as a record: length, its checksum, content, its checksum."""
        event = self._event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", self._checksum(each)) for each in (length, event)]
        with naming(self._path):
            self._file.write(length + sums[0] + event + sums[1])
