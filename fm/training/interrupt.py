"""Ctrl-C and SIGTERM as a question the loop asks between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(Exception):
    """A run stopped by a signal; its one-line message says what was saved and how to go on."""


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], str | None]]:
    """Holds SIGINT and SIGTERM back; yields a function that names the one that came, or None.

    A second signal acts as it always did, so a hung step can be left. Outside the main thread,
    where Python hands out no signals, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, _):
        came.append(signal.Signals(number).name)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        restore()
