"""Takes the next batches from the data, and places them on the devices, while a step runs."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

from fm.errors import UserError
from fm.training.objectives import Batch
from fm.training.signals import time_limit
from fm.training.trial import BatchIterator

# One batch is on the devices while the next one is read: more would only take memory.
AHEAD = 2
_JOIN_SECONDS = 1.0


class Prefetcher:
    """Supplies the batches of a trial, read and placed ahead of their steps by a thread.

    A position is that after the batches taken, whatever was read ahead. An error of the data, or
    their end, surfaces with the batch that it belongs to.

    Attributes:
      seconds_waited: time that `take` has waited for batches.
    """

    def __init__(
        self,
        batches: BatchIterator,
        *,
        ahead: int = 0,
        place: Callable[[Batch], Batch] | None = None,
    ):
        """Reads on from the present position of `batches`, which nobody else moves until `close`.

        Args:
          batches: of this process.
          ahead: batches that a thread reads ahead; 0 reads each when it is taken, without a thread.
          place: puts a batch on the devices, called in the thread; unused if `ahead` is 0.
        """
        self.seconds_waited = 0.0
        self._batches, self._ahead, self._place = batches, ahead, place
        self._taken_state = batches.get_state()
        # (batch, placed batch, position after it), or an error; shared with the thread.
        self._queue: collections.deque[Any] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def take(self, limit: float, stalled: str) -> tuple[Batch, Batch | None]:
        """Returns the next batch, and the same on the devices (None without a thread).

        Args:
          limit: seconds to wait at most.
          stalled: message of the error when they are over.

        Raises:
          StopIteration: the data end.
          UserError: no batch arrives in time.
          Exception: whatever reading or placing the batch raises.
        """
        began = time.perf_counter()
        try:
            if not self._ahead:
                with time_limit(limit, stalled):
                    return next(self._batches), None
            return self._take_ahead(limit, stalled)
        finally:
            self.seconds_waited += time.perf_counter() - began

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the batches taken so far."""
        return self._taken_state if self._ahead else self._batches.get_state()

    def close(self) -> None:
        """Ends the thread, and moves the data back to the position after the batches taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is None:
            return
        # Data that stall may hold it for ever; it ends with the process then.
        self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive() and self._queue:
            self._queue.clear()
            self._batches.set_state(self._taken_state)

    def _take_ahead(self, limit: float, stalled: str) -> tuple[Batch, Batch | None]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)
            self._thread.start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._queue, limit):
                raise UserError(stalled)
            item = self._queue[0]
            if isinstance(item, BaseException):  # stays, for whoever asks again
                raise item
            self._queue.popleft()
            self._changed.notify_all()
        batch, placed, self._taken_state = item
        return batch, placed

    def _read(self) -> None:
        """Fills the queue until it is closed or the data end; runs in the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._queue) < self._ahead)
                if self._closed:
                    return
            try:
                batch = next(self._batches)
                placed = None if self._place is None else self._place(batch)
                item = batch, placed, self._batches.get_state()
            except BaseException as error:
                item = error
            with self._changed:
                self._queue.append(item)
                self._changed.notify_all()
            if isinstance(item, BaseException):
                return
