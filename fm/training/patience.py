"""How long a run waits for data: a reader that hangs ends it with a line, not never."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from fm.errors import UserError


@contextlib.contextmanager
def waiting(seconds: float, message: str) -> Iterator[None]:
    """Interrupts what takes longer than `seconds` inside, by the system's alarm.

    Data are read in the loop's own thread, so a stalled one is that thread, waiting. Outside the
    main thread, and on Windows, which has no alarm, it waits on.

    Raises:
      UserError: with the message, after that time.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise UserError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
